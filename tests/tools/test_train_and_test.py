"""train.py, test.py and demo.py on images: training, resuming, evaluation; two processes."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from helpers import NO_WORKERS, ROOT, run_python

pytest.importorskip("mmdet", reason="mmdet is not installed")

pytestmark = pytest.mark.mmdet

TOOLS = ROOT / "tools"
NANO = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco.py"
CONFIG = ROOT / "configs" / "quickstart" / NANO
SMALL = [*NO_WORKERS, "default_hooks.logger.interval=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in, with a small dataset where the config expects it."""
    folder = tmp_path_factory.mktemp("tools")
    sizes = ("--num-train", 9, "--num-val", 3)
    run_python(ROOT / "dev" / "generators" / "mini_coco.py", "data/mini_coco", *sizes, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The folder after one epoch of training."""
    options = [*SMALL, "train_cfg.max_epochs=1"]
    output = run_python(
        TOOLS / "train.py", CONFIG, "--work-dir", "out", "--cfg-options", *options, cwd=folder
    )
    assert "Epoch(train)" in output
    return folder


def test_training_writes_a_checkpoint_and_evaluates(trained):
    assert (trained / "out" / "last_checkpoint").read_text().endswith("epoch_1.pth")
    (scalars,) = (trained / "out").glob("*/vis_data/scalars.json")
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    # Two steps: nine images, one of them without objects, in batches of four.
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    assert "coco/segm_mAP" in records[-1]


def test_training_goes_on_where_it_stopped(trained, tmp_path):
    """With the learning rate scaled from a batch size of eight to four."""
    options = [*SMALL, "train_cfg.max_epochs=2", "auto_scale_lr.base_batch_size=8"]
    work_dir = tmp_path / "out"
    work_dir.mkdir()
    for path in (trained / "out").glob("*"):
        if path.is_file():
            (work_dir / path.name).write_bytes(path.read_bytes())
    (work_dir / "last_checkpoint").write_text(str(work_dir / "epoch_1.pth"))
    command = ("--work-dir", work_dir, "--resume", "--auto-scale-lr", "--cfg-options", *options)
    output = run_python(TOOLS / "train.py", CONFIG, *command, cwd=trained)
    assert "resumed epoch: 1, iter: 2" in output
    assert "Scaling the original LR by 0.5" in output
    assert re.search(r"Epoch\(train\) +\[2\]\[1/2\]", output)
    assert not re.search(r"Epoch\(train\) +\[1\]", output)
    assert (work_dir / "epoch_2.pth").is_file()


def test_a_config_of_ones_own_inherits_by_the_packages_name(folder):
    """Other classes and another pipeline, with everything else as it was."""
    (folder / "own.py").write_text(
        f"_base_ = 'dcnv4_mm::quickstart/{NANO}'\n"
        "train_pipeline = _base_.train_dataloader.dataset.pipeline\n"
        "data = dict(metainfo=dict(classes=_base_.train_dataloader.dataset.metainfo.classes))\n"
        "wrapped = dict(_delete_=True, type='RepeatDataset', times=1,\n"
        "               dataset=_base_.train_dataloader.dataset)\n"
        "train_dataloader = dict(dataset=wrapped)\n"
        "val_dataloader = dict(dataset=data)\n"
    )
    options = [*SMALL, "train_cfg.max_epochs=1"]
    command = (TOOLS / "train.py", "own.py", "--work-dir", "own", "--cfg-options", *options)
    output = run_python(*command, cwd=folder)
    assert "coco/bbox_mAP" in output
    assert "Failed to search registry" not in output


def test_evaluation_gives_metrics_predictions_and_images(trained):
    output = ("--work-dir", "tested", "--out", "tested/found.pkl", "--show-dir", "drawn")
    options = ("--cfg-options", *SMALL, "model.test_cfg.rcnn.score_thr=0.0")
    run_python(TOOLS / "test.py", CONFIG, "out/epoch_1.pth", *output, *options, cwd=trained)
    (log,) = (trained / "tested").glob("*/*.json")
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(json.loads(log.read_text()))
    found = pickle.loads((trained / "tested" / "found.pkl").read_bytes())
    assert len(found) == 3
    assert all(len(prediction["pred_instances"]["masks"]) > 0 for prediction in found)
    assert len(list((trained / "tested").glob("*/drawn/*.jpg"))) == 3


def test_evaluation_of_flipped_copies(trained):
    """With a model without masks, which mmdet cannot average."""
    weights = torch.load(trained / "out" / "epoch_1.pth", weights_only=False)["state_dict"]
    weights = {name: tensor for name, tensor in weights.items() if ".mask_head." not in name}
    torch.save({"state_dict": weights}, trained / "boxes.pth")
    no_masks = ["model.roi_head.mask_head=None", "model.roi_head.mask_roi_extractor=None"]
    options = [*SMALL, *no_masks, "test_evaluator.metric=bbox"]
    for folder, extra in (("flipped", ["--tta"]), ("plain", [])):
        command = ("--work-dir", folder, *extra, "--out", f"{folder}.pkl")
        run_python(
            TOOLS / "test.py", CONFIG, "boxes.pth", *command, "--cfg-options", *options, cwd=trained
        )
    flipped, plain = (
        pickle.loads((trained / f"{n}.pkl").read_bytes()) for n in ("flipped", "plain")
    )
    # Other scores, since each is found in two copies; the same images.
    assert [p["img_id"] for p in flipped] == [p["img_id"] for p in plain]
    assert any(
        not torch.equal(a["pred_instances"]["scores"], b["pred_instances"]["scores"])
        for a, b in zip(flipped, plain, strict=True)
    )


def test_demo_draws_predictions(trained):
    options = ("--out-dir", "seen", "--score", 0.0)
    output = run_python(
        TOOLS / "visualization" / "demo.py",
        "data/mini_coco/val",
        CONFIG,
        "out/epoch_1.pth",
        *options,
        cwd=trained,
    )
    for name in ("000001.jpg", "000002.jpg", "000003.jpg"):
        drawn = trained / "seen" / "vis" / name
        assert str(drawn.relative_to(trained)) in output
        assert drawn.read_bytes() != (trained / "data/mini_coco/val" / name).read_bytes()


def test_the_host_trains_our_config_with_its_own_tool(folder):
    import mmdet

    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
    options = [*SMALL, "train_cfg.max_epochs=1", "train_cfg.val_interval=2"]
    run_python(script, CONFIG, "--work-dir", "host", "--cfg-options", *options, cwd=folder)
    assert (folder / "host" / "epoch_1.pth").is_file()


RECORDER = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RecordHook(Hook):
    def __init__(self):
        self.images = []

    def before_train(self, runner):
        self.before = self.parameters(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images += [sample.img_id for sample in data_batch["data_samples"]]

    def after_train(self, runner):
        record = {"before": self.before, "after": self.parameters(runner)}
        torch.save({**record, "images": self.images}, f"rank{runner.rank}.pt")

    def parameters(self, runner):
        return {k: v.detach().clone() for k, v in runner.model.module.named_parameters()}
"""


def test_two_processes_keep_equal_parameters(tmp_path):
    """Twenty steps over gloo, started as mim starts them; each process sees other images."""
    sizes = ("--num-train", 43, "--num-val", 2)
    run_python(ROOT / "dev" / "generators" / "mini_coco.py", "data/mini_coco", *sizes, cwd=tmp_path)
    (tmp_path / "recorder.py").write_text(RECORDER)
    (tmp_path / "config.py").write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "custom_imports = dict(imports=['recorder'])\n"
        "custom_hooks = [dict(type='RecordHook')]\n"
    )
    launcher = ("-m", "torch.distributed.launch", "--nproc_per_node=2", "--master_port=29613")
    options = [*SMALL, "train_cfg.max_epochs=2", "train_cfg.val_interval=2"]
    options += ["train_dataloader.batch_size=2", "train_dataloader.batch_sampler.drop_last=True"]
    output = run_python(
        *launcher,
        TOOLS / "train.py",
        "config.py",
        "--launcher",
        "pytorch",
        "--cfg-options",
        *options,
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        OMP_NUM_THREADS="1",
    )
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(first["images"]) >= 20 * 2, output[-2000:]
    assert set(first["images"]) != set(second["images"])
    assert first["after"].keys() == second["after"].keys()
    for name, parameter in first["after"].items():
        assert torch.equal(parameter, second["after"][name]), name
        assert torch.equal(first["before"][name], second["before"][name]), name
    changed = [n for n, p in first["after"].items() if not torch.equal(p, first["before"][n])]
    assert len(changed) > 0.95 * len(first["after"])
