"""Exporting a trained model: every format equals eager mode at every size, or nothing is kept."""

from importlib.metadata import version

import cv2
import numpy as np
import pytest
import torch

from dcnv4_mm.cli.overlay import colors, overlay
from dcnv4_mm.export.metadata import prepare, read_metadata
from dcnv4_mm.export.onnx import custom_ops_library

pytest.importorskip("mmseg", reason="mmsegmentation is not installed")

from integrations.host_models import small_config

pytestmark = pytest.mark.mmseg

# A whole segmentor in seconds: logits of two stages' maps.
CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.0, 116.0, 103.0], std=[58.0, 57.0, 56.0],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='dcnv4_mm.FlashInternImage',
        arch=dict(channels=16, depths=(1, 1), groups=(1, 2)),
        out_indices=(0, 1),
    ),
    decode_head=dict(
        type='FCNHead', in_channels=32, in_index=1, channels=16, num_convs=1, concat_input=False,
        num_classes=3, norm_cfg=dict(type='BN'),
    ),
    test_cfg=dict(mode='whole'),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='PackSegInputs'),
]
test_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset', pipeline=test_pipeline,
        metainfo=dict(classes=('sky', 'road', 'tree')),
    )
)
"""
SUFFIXES = {"export": ".pt2", "aotinductor": ".pt2", "onnx": ".onnx", "onnx-custom": ".onnx"}


def write(folder, config):
    """Writes a config, and a checkpoint whose points and masks depend on the images."""
    from mmengine.registry import MODELS, init_default_scope

    config.dump(folder / "config.py")
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    for name, parameter in model.named_parameters():
        # DINO's level_embed is otherwise what was in memory.
        if any(part in name for part in ("offset_mask", "sampling_offsets", "level_embed")):
            torch.nn.init.normal_(parameter, std=0.05)
        # Scores that differ by more than rounding.
        if name.endswith(("fc_cls.weight", "rpn_cls.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    meta = {"mmengine_version": "0.10.7"}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, folder / "model.pth")


@pytest.fixture
def folder(tmp_path):
    """A folder with a segmentor's config and checkpoint."""
    from mmengine.config import Config

    write(tmp_path, Config.fromstring(CONFIG, ".py"))
    return tmp_path


def table(result):
    """The shapes of images and outputs that the tool has compared."""
    assert result.message is None
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith(("1x", "2x", "3x"))]
    return [tuple(row[:2]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_format_equals_eager_mode_in_another_process(run_tool, folder, kind):
    if kind == "onnx-custom" and not custom_ops_library().exists():
        pytest.skip("built without onnxruntime's headers")
    target = f"exported{SUFFIXES[kind]}"
    arguments = ("config.py", "model.pth", target, "--format", kind, "--size", 64, 96)
    # Measured: 8e-7 as a program and in onnxruntime; 3e-5 of another model by AOTInductor.
    result = run_tool("export.py", *arguments, "--tolerance", 5e-5, cwd=folder)
    assert table(result) == [
        *(("1x3x64x96", "1x3x8x12"), ("1x3x64x96", "1x64x96")),
        *(("3x3x77x133", "3x3x10x17"), ("3x3x77x133", "3x77x133")),
        *(("2x3x96x64", "2x3x12x8"), ("2x3x96x64", "2x96x64")),
    ]
    # The program, that is, and nothing that was made on the way.
    assert {path.name for path in folder.iterdir()} == {"config.py", "model.pth", target}
    check_run(run_tool, folder, target)


def check_run(run_tool, folder, target):
    """run_exported.py draws the labels that the host predicts for an image."""
    from mmengine.config import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import MODELS, init_default_scope
    from mmseg.registry import TRANSFORMS

    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 5)
    cv2.imwrite(str(folder / "image.png"), image)
    result = run_tool("run_exported.py", target, "image.png", cwd=folder)
    assert result.message is None
    metadata = read_metadata(folder / target)
    assert metadata["classes"] == ["sky", "road", "tree"]
    assert (metadata["task"], metadata["config"]) == ("segmentation", "config")
    assert metadata["versions"]["torch"] == version("torch")

    config = Config.fromfile(folder / "config.py")
    init_default_scope("mmseg")
    model = MODELS.build(config.model).eval()
    model.load_state_dict(torch.load(folder / "model.pth")["state_dict"])
    pipeline = Compose([TRANSFORMS.build(step) for step in config.test_pipeline])
    with torch.no_grad():
        batch = pseudo_collate([pipeline({"img_path": str(folder / "image.png")})])
        inputs = model.data_preprocessor(batch, False)["inputs"]
        (sample,) = model.test_step(batch)
    np.testing.assert_allclose(prepare(image, metadata), inputs.numpy(), atol=1e-5)
    own = sample.pred_sem_seg.data[0].numpy()
    drawn = cv2.imread(str(folder / "outputs" / "image.png"))[:50, :70]
    expected = overlay(image, own, metadata["classes"], colors(3))[:50, :70]
    # Logits are resized twice by the host, labels by the tool: outlines may differ.
    assert (drawn == expected).all(-1).mean() > 0.9


# By model: the size of images, so that the coarsest map has two rows, and the outputs of an image
# at each of three sizes: boxes, scores and labels of DINO and Mask R-CNN, and its masks; class
# logits, mask logits and labels of Mask2Former; boxes and scores of BEVFormer v2's queries and its
# history, two frames of six cameras by level.
OUTPUTS = {
    "dino": ((128, 160), [("50x4", "50", "50")] * 3),
    "mask_rcnn": ((128, 160), [("100x4", "100", "100", "100x28x28")] * 3),
    "mask2former": (
        (128, 160),
        [
            ("20x7", "20x32x40", "128x160"),
            ("20x7", "20x36x50", "141x197"),
            ("20x7", "20x40x32", "160x128"),
        ],
    ),
    "bevformerv2": (
        (256, 320),
        [
            ("60x9", "60x10", *(f"2x6x48x{level}" for level in levels))
            for levels in (
                ("32x40", "16x20", "8x10"),
                ("34x45", "17x23", "9x12"),
                ("40x32", "20x16", "10x8"),
            )
        ],
    ),
}


@pytest.mark.export
@pytest.mark.parametrize("name", OUTPUTS)
def test_detectors_and_transformers_equal_eager_mode_in_another_process(run_tool, tmp_path, name):
    config = small_config(name)
    pytest.importorskip(config.default_scope, reason=f"{config.default_scope} is not installed")
    write(tmp_path, config)
    (height, width), outputs = OUTPUTS[name]
    arguments = ("config.py", "model.pth", "model.pt2", "--size", height, width)
    result = run_tool("export.py", *arguments, "--tolerance", 5e-5, cwd=tmp_path)
    images = "6x3" if name == "bevformerv2" else "3"
    sizes = (1, height, width), (3, height + 13, width + 37), (2, width, height)
    assert table(result) == [
        (f"{batch}x{images}x{h}x{w}", f"{batch}x{output}")
        for (batch, h, w), shapes in zip(sizes, outputs, strict=True)
        for output in shapes
    ]


def test_file_that_is_not_equal_is_not_kept(run_tool, folder):
    arguments = ("config.py", "model.pth", "model.pt2", "--size", 64, 64, "--tolerance", 0)
    result = run_tool("export.py", *arguments, cwd=folder)
    assert "more than 0.0" in result.message
    assert {path.name for path in folder.iterdir()} == {"config.py", "model.pth"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("c.py", "w.pth", "model.onnx"), "got model.onnx"),
        (("c.py", "w.pth", "nowhere/model.pt2"), "folder nowhere does not exist"),
        (("c.py", "w.pth", "model.pt2", "--size", 32, 64), "at least 64 x 64"),
        (("c.py", "w.pth", "model.pt2"), "checkpoint w.pth does not exist"),
    ],
)
def test_refusals(run_tool, tmp_path, arguments, words):
    assert words in run_tool("export.py", *arguments, cwd=tmp_path).message
    assert list(tmp_path.iterdir()) == []
