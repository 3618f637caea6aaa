"""docs/own_data: its settings are those of the example configs, which train on generated data."""

import re
from pathlib import Path

import numpy as np
import own_data
import pytest
import torch
from helpers import ROOT
from PIL import Image

pytest.importorskip("mmengine", reason="mmengine is not installed")
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import dcnv4_mm.registry  # noqa: F401

PAGES = {path.stem: path.read_text() for path in (ROOT / "docs" / "own_data").glob("*.md")}
BLOCK = re.compile(r"<!-- (in|instead in) (\S+) -->\n```python\n(.*?)```", re.DOTALL)
# (what, stem of the config) -> the block.
BLOCKS = {
    (what, Path(name).stem): code
    for text in PAGES.values()
    for what, name, code in BLOCK.findall(text)
}
FILES = {path.stem: path for path in (ROOT / "configs").glob("*/*_own-data*.py")}
REST = "# Everything below follows from the lines above.\n"
HOSTS = {"mask-rcnn": "mmdet", "dino": "mmdet", "bevformerv2": "mmdet3d", "flash": "mmpretrain"}


def marked(stems):
    """Parameters with the mark of their host."""
    hosts = [next((h for n, h in HOSTS.items() if s.startswith(n)), "mmseg") for s in stems]
    return [
        pytest.param(stem, marks=getattr(pytest.mark, host))
        for stem, host in zip(stems, hosts, strict=True)
    ]


def test_every_example_is_named_on_a_page():
    for stem in FILES:
        assert any(f"{stem}.py" in text for text in PAGES.values()), stem
    assert {stem for _, stem in BLOCKS} <= set(FILES)


@pytest.mark.parametrize("stem", [stem for what, stem in BLOCKS if what == "in"])
def test_settings_are_those_of_the_file(stem):
    header, settings = FILES[stem].read_text().split(REST)[0].split("\n", 1)
    assert header.startswith("# ")
    assert settings.strip() == BLOCKS["in", stem].strip()


def changed(text, **settings):
    """A config with other values in its first part."""
    for name, value in settings.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
        assert count == 1, name
    return text


def own_config(stem, folder, **settings):
    """The file with the settings of the page for a CPU, as a user would write it."""
    rest = FILES[stem].read_text().split(REST)[1]
    path = folder / "own.py"
    path.write_text(changed(BLOCKS["instead in", stem], **settings) + rest)
    cfg = Config.fromfile(path)
    for phase in ("train", "val", "test"):
        cfg[f"{phase}_dataloader"].update(num_workers=0, persistent_workers=False)
    return cfg


def train(cfg, folder):
    """Trains, evaluates, and returns the names of what was logged."""
    cfg.work_dir, cfg.log_level = str(folder / "out"), "WARNING"
    # As tools/train.py does.
    cfg.custom_hooks = [*cfg.custom_hooks, {"type": "dcnv4_mm.CheckDataHook"}]
    init_default_scope(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return set(runner.message_hub.log_scalars)


STEPS = {
    "mask-rcnn_flash-internimage-t_fpn_1xb2-50e_own-data": ("max_epochs", "coco/segm_mAP"),
    "dino-4scale_flash-internimage-t_1xb2-50e_own-data": ("max_epochs", "coco/bbox_mAP"),
    "upernet_flash-internimage-t_1xb4-4k_own-data-512x512": ("max_iters", "mIoU"),
    "mask2former_flash-internimage-t_1xb2-4k_own-data-512x512": ("max_iters", "mIoU"),
    "flash-internimage-t_1xb32-20e_own-data-224": ("max_epochs", "accuracy/top1"),
}


def test_every_example_is_trained():
    # tests/bev/test_own_data.py has BEVFormer v2.
    named = {stem for what, stem in BLOCKS if what == "instead in"}
    assert {stem for stem in named if not stem.startswith("bevformerv2")} == set(STEPS)


@pytest.mark.parametrize("stem", marked(STEPS))
def test_the_recipe_trains_and_evaluates(stem, tmp_path, monkeypatch):
    """Two steps on four images, with the check of the data before them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    own_data.write(Path("data/own"))
    length, metric = STEPS[stem]
    settings = {length: 1 if length == "max_epochs" else 2}
    if stem.startswith("flash"):
        settings["data_root"] = '"data/own/folders"'
    cfg = own_config(stem, tmp_path, **settings)
    cfg.train_dataloader.batch_size = 2
    scores = train(cfg, tmp_path)
    assert f"val/{metric}" in scores or metric in scores, sorted(scores)


@pytest.mark.parametrize("stem", marked(FILES))
def test_what_may_differ_is_what_depends_on_the_classes(stem, tmp_path):
    """`allow` names the tensors that the released model has in other shapes, and no others."""
    text = FILES[stem].read_text()
    base = re.search(r'^_base_ = "dcnv4_mm::(.*)"', text, re.M)[1]
    base = Config.fromfile(ROOT / "configs" / base)
    if stem.startswith("bevformerv2"):
        text = changed(text, frames=base.frames)
    (tmp_path / "own.py").write_text(text)
    own = Config.fromfile(tmp_path / "own.py")
    init_default_scope(own.default_scope)
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in MODELS.build(cfg.model).state_dict().items()}
            for cfg in (own, base)
        ]
    assert shapes[0].keys() == shapes[1].keys()
    differing = {name for name, shape in shapes[0].items() if shape != shapes[1][name]}
    (allow,) = (hook["allow"] for hook in own.custom_hooks if "allow" in hook)
    assert {n for n in differing if not n.startswith(tuple(allow))} == set()
    assert {a for a in allow if not any(n.startswith(a) for n in differing)} == set()


def test_masks_of_0_and_255_become_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/own/labels/train").mkdir(parents=True)
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(mask).save("data/own/labels/train/a.png")
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", PAGES["segmentation"], re.DOTALL)
    exec(code, {})
    assert np.array_equal(Image.open("data/own/labels/train/a.png"), mask // 255)


@pytest.mark.parametrize("stem", marked(FILES))
def test_schedules_follow_the_length(stem, tmp_path):
    """A longer training has a longer decay, and a warm-up that does not eat a short one."""
    text = FILES[stem].read_text()
    name = "max_iters" if "max_iters = " in text else "max_epochs"
    for length in (7, 200):
        (tmp_path / "own.py").write_text(changed(text, **{name: length}))
        cfg = Config.fromfile(tmp_path / "own.py")
        assert cfg.train_cfg[name] == length
        assert max(scheduler.end for scheduler in cfg.param_scheduler) == length
        first = cfg.param_scheduler[0]
        assert first.get("warmup_iters", first.end) <= max(1, length // 10)
        assert 1 <= cfg.train_cfg.val_interval <= max(1, length // 5)
