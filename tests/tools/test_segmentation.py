"""Training, testing and drawing with mmseg's models, and released files in their original form."""

import json
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NO_WORKERS, ROOT, build_model, config_of, manifest, run_python, weights

from dcnv4_mm.checkpoints import load_released

pytest.importorskip("mmseg", reason="mmseg is not installed")

pytestmark = [pytest.mark.mmseg, pytest.mark.mmdet]

TOOLS = ROOT / "tools"
QUICKSTART = ROOT / "configs" / "quickstart"
UPERNET = QUICKSTART / "upernet_flash-internimage-nano_1xb8-500it_mini-ade20k.py"
MASK2FORMER = QUICKSTART / "mask2former_flash-internimage-nano_1xb4-300it_mini-ade20k.py"
SMALL = [*NO_WORKERS, "default_hooks.logger.interval=1"]
TWO_STEPS = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "param_scheduler.0.end=2"]
ORIGINALS = [
    "upernet_flash_internimage_t_512_160k_ade20k",
    "mask2former_flash_internimage_t_512_160k_ade20k_ss",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in, with a small dataset where the configs expect it."""
    folder = tmp_path_factory.mktemp("tools")
    sizes = ("--num-train", 8, "--num-val", 2)
    run_python(
        ROOT / "dev" / "generators" / "mini_ade20k.py", "data/mini_ade20k", *sizes, cwd=folder
    )
    (folder / "data" / "ADEChallengeData2016").symlink_to("mini_ade20k")
    return folder


@pytest.fixture(scope="module", params=[UPERNET, MASK2FORMER], ids=["upernet", "mask2former"])
def trained(request, folder):
    """Config, work folder and output of two steps of training."""
    name = request.param.name.split("_")[0]
    options = [*SMALL, *TWO_STEPS, "default_hooks.checkpoint.interval=2"]
    options += ["train_dataloader.batch_size=2"]
    command = (TOOLS / "train.py", request.param, "--work-dir", name, "--cfg-options", *options)
    output = run_python(*command, cwd=folder)
    return request.param, name, output


def test_training_evaluates_with_a_table_of_classes(trained, folder):
    _, name, output = trained
    assert (folder / name / "last_checkpoint").read_text().endswith("iter_2.pth")
    (scalars,) = (folder / name).glob("*/vis_data/scalars.json")
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 2
    assert all(0 < loss < 1000 for loss in losses)
    assert 0 <= records[-1]["mIoU"] <= 100
    for label in ("ground", "disk", "ring", "triangle", "box", "star"):
        assert re.search(rf"\| +{label} +\| +(\d+\.\d+|nan) +\| +(\d+\.\d+|nan) +\|", output), label


def test_evaluation_of_one_and_many_copies(trained, folder):
    config, name, _ = trained
    checkpoint = f"{name}/iter_2.pth"
    found = {}
    for kind, extra in (("single", []), ("copies", ["--tta"])):
        out = f"{name}-{kind}.pkl"
        options = ["--work-dir", f"{name}-{kind}", "--out", out, *extra, "--cfg-options", *SMALL]
        options += [f"tta_pipeline.1.transforms.0.{i}.scale=(256,{64 + 16 * i})" for i in range(6)]
        output = run_python(TOOLS / "test.py", config, checkpoint, *options, cwd=folder)
        assert "mIoU" in output
        found[kind] = pickle.loads((folder / out).read_bytes())
    assert len(found["copies"]) == len(found["single"])
    single, copies = ([p["pred_sem_seg"]["data"] for p in f] for f in found.values())
    assert all(one.shape == other.shape for one, other in zip(single, copies, strict=True))


def test_demo_draws_label_maps_with_a_legend(trained, folder):
    import cv2

    config, name, _ = trained
    images = "data/mini_ade20k/images/validation"
    command = (
        TOOLS / "visualization" / "demo.py",
        images,
        config,
        f"{name}/iter_2.pth",
        "--out-dir",
        f"{name}-see",
    )
    output = run_python(*command, cwd=folder)
    for number in (1, 2):
        file = f"ADE_val_{number:08d}.jpg"
        assert f"{name}-see/vis/{file}" in output
        drawn, plain = (
            cv2.imread(str(folder / path / file)) for path in (f"{name}-see/vis", images)
        )
        assert drawn.shape[1] > plain.shape[1]
        assert drawn.shape[0] >= plain.shape[0]


def test_overlay_and_legend():
    """Half of the image is of the second class, the other half of none."""
    from dcnv4_mm.cli.overlay import LEGEND, OPACITY, overlay

    image = np.full((60, 40, 3), 100, np.uint8)
    labels = np.full((60, 40), 255, np.uint8)
    labels[:, 20:] = 1
    drawn = overlay(image, labels, ("a", "b"), [(0, 0, 0), (200, 0, 0)])
    assert drawn.shape == (60, 40 + LEGEND, 3)
    assert (drawn[:, :20] == 100).all()
    mixed = [
        int((1 - OPACITY) * 100),
        int((1 - OPACITY) * 100),
        int(100 - OPACITY * 100 + OPACITY * 200),
    ]
    assert np.abs(drawn[30, 30].astype(int) - mixed).max() <= 1
    # One row: a red field and dark letters on white.
    legend = drawn[:, 40:].reshape(-1, 3)
    assert (legend == (0, 0, 200)).all(axis=1).sum() > 100
    assert (legend == 255).all(axis=1).sum() > 0.8 * len(legend)


def write_original(path, original):
    """A file as the original's training leaves it, from recorded names and order alone."""
    state = OrderedDict(weights(manifest("segmentation", original)))
    meta = {
        "mmcv_version": "1.5.0",
        "CLASSES": tuple(f"class {i}" for i in range(150)),
        "PALETTE": [[i, i, i] for i in range(150)],
        "epoch": 64,
        "iter": 160000,
        "hook_msgs": {"best_score": np.float64(0.5), "best_ckpt": "best_mIoU_iter_160000.pth"},
    }
    optimizer = {
        "state": {0: {"step": 1, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 0.0}],
    }
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer}, path)


@pytest.mark.parametrize("copies", [False, True], ids=["single", "multi-scale"])
@pytest.mark.parametrize("original", ORIGINALS, ids=["upernet", "mask2former"])
def test_a_released_file_is_evaluated_directly(original, copies, folder):
    """Its predictions and metrics are those of the model built and filled in this process."""
    from mmengine.runner import Runner

    path = folder / f"{original}.pth"
    if not path.is_file():
        write_original(path, original)
    # The sizes of the pipelines are for a GPU.
    options = {f"tta_pipeline.1.transforms.0.{i}.scale": (128, 32 + 16 * i) for i in range(6)}
    options["test_dataloader.dataset.pipeline.1.scale"] = (256, 64)
    texts = [f"{name}={str(size).replace(' ', '')}" for name, size in options.items()]
    name = f"{original}-{copies}"
    command = ["--work-dir", name, "--out", f"{name}.pkl", *(["--tta"] if copies else [])]
    command += ["--cfg-options", *SMALL, *texts]
    mim = ("-m", "mim", "test", "dcnv4_mm", config_of(original).name, "--checkpoint", path)
    run_python(*mim, *command, cwd=folder)
    found = pickle.loads((folder / f"{name}.pkl").read_bytes())
    (log,) = (folder / name).glob("*/*.json")
    metrics = json.loads(log.read_text())

    _, config = build_model(original, device="meta")
    config.merge_from_dict(options)
    config.test_dataloader.update(num_workers=0, persistent_workers=False)
    config.test_dataloader.dataset.data_root = str(folder / "data" / "ADEChallengeData2016")
    config.work_dir = str(folder / f"{name}-direct")
    config.model.backbone.init_cfg = None
    if copies:
        config.test_dataloader.dataset.pipeline = config.tta_pipeline
        config.model = {**config.tta_model, "module": config.model}
    runner = Runner.from_cfg(config)
    model = runner.model.module if copies else runner.model
    load_released(model, weights(manifest("segmentation", original)))
    kept = []
    process = runner.test_evaluator.process
    runner.test_evaluator.process = lambda data_samples, data_batch=None: (
        kept.extend(data_samples),
        process(data_samples=data_samples, data_batch=data_batch),
    )
    direct = runner.test()
    assert {key: metrics[key] for key in direct} == pytest.approx(direct, nan_ok=True)
    assert len(found) == len(kept) == 2
    for one, other in zip(found, kept, strict=True):
        assert torch.equal(torch.as_tensor(one["pred_sem_seg"]["data"]), other.pred_sem_seg.data)
        # Weights by rule see few classes in few images, but their scores are all different; of
        # many copies the last one's are kept.
        scores = torch.as_tensor(one["seg_logits"]["data"])
        assert scores.std() > 0.01
        torch.testing.assert_close(scores, other.seg_logits.data, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.unlink(),
            r"1 of 4 label maps are missing, such as .*ADE_train_00000003\.png",
        ),
        (lambda path: path.write_bytes(b""), r"ADE_train_00000003\.png is damaged"),
    ],
)
def test_a_bad_label_map_ends_the_training_by_name(damage, message, tmp_path):
    sizes = ("--num-train", 4, "--num-val", 2)
    run_python(
        ROOT / "dev" / "generators" / "mini_ade20k.py", "data/mini_ade20k", *sizes, cwd=tmp_path
    )
    damage(tmp_path / "data/mini_ade20k/annotations/training/ADE_train_00000003.png")
    options = [*SMALL, *TWO_STEPS, "train_dataloader.batch_size=4"]
    command = (TOOLS / "train.py", UPERNET, "--cfg-options", *options)
    status, output = run_python(*command, cwd=tmp_path, check=False)
    assert status != 0
    assert re.search(message, output)


def test_missing_data_names_the_folder(tmp_path):
    (tmp_path / "data" / "mini_ade20k" / "images" / "training").mkdir(parents=True)
    status, output = run_python(TOOLS / "train.py", UPERNET, cwd=tmp_path, check=False)
    assert status != 0
    assert "annotations/training does not exist" in output


def test_the_host_trains_our_config_with_its_own_tool(folder):
    import mmseg

    script = Path(mmseg.__file__).parent / ".mim" / "tools" / "train.py"
    options = [*SMALL, *TWO_STEPS, "train_dataloader.batch_size=2"]
    options += ["default_hooks.checkpoint.interval=2"]
    run_python(script, UPERNET, "--work-dir", "host", "--cfg-options", *options, cwd=folder)
    assert (folder / "host" / "iter_2.pth").is_file()
