"""Exporting a trained model: every format equals eager mode at every size, or nothing is kept."""

import pytest
import torch

from dcnv4_mm.export.onnx import custom_ops_library

pytest.importorskip("mmseg", reason="mmsegmentation is not installed")

from integrations.host_models import small_config

pytestmark = pytest.mark.mmseg

# A whole segmentor in seconds: logits of two stages' maps.
CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='dcnv4_mm.FlashInternImage',
        arch=dict(channels=16, depths=(1, 1), groups=(1, 2)),
        out_indices=(0, 1),
    ),
    decode_head=dict(
        type='FCNHead', in_channels=32, in_index=1, channels=16, num_convs=1, concat_input=False,
        num_classes=3, norm_cfg=dict(type='BN'),
    ),
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
        ("1x3x64x96", "1x3x8x12"),
        ("3x3x77x133", "3x3x10x17"),
        ("2x3x96x64", "2x3x12x8"),
    ]
    # The program, that is, and nothing that was made on the way.
    assert {path.name for path in folder.iterdir()} == {"config.py", "model.pth", target}


# By model: the size of images, so that the coarsest map has two rows, and the outputs of an image
# at each of three sizes: class logits or scores, and boxes or masks, of every query. BEVFormer v2
# also returns the history: two frames of six cameras by level.
OUTPUTS = {
    "dino": ((128, 160), [("10x5", "10x4")] * 3),
    "mask2former": (
        (128, 160),
        [("20x7", "20x32x40"), ("20x7", "20x36x50"), ("20x7", "20x40x32")],
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
def test_transformers_equal_eager_mode_in_another_process(run_tool, tmp_path, name):
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
