"""A child of each config, as users write them, builds its loops of the host's classes and fits.

The children change classes, heads, pipelines, wrappers, hooks and evaluators. Models are built on
the meta device, and no image is read.
"""

import importlib
from pprint import pformat

import pytest
import torch
from helpers import ROOT

pytest.importorskip("mmengine", reason="mmengine is not installed")
from mmengine.config import Config
from mmengine.registry import HOOKS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner

from dcnv4_mm.integrations.data_checks import CheckDataHook
from dcnv4_mm.integrations.data_checks.splits import plain_datasets, transforms

CONFIGS = sorted(ROOT.glob("configs/[!_]*/*.py"))
CLASSES = {
    "mmdet": ("disk", "ring"),
    "mmseg": ("ground", "disk", "ring"),
    "mmpretrain": ("disk", "ring"),
}
# By host, the wrappers that take turns: {} is a dataset.
REPEAT = "dict(type='RepeatDataset', times=2, dataset={})"
CONCAT = "dict(type='ConcatDataset', datasets=[{0}, {0}])"
BALANCED = "dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset={})"
MIX = "dict(type='MultiImageMixDataset', dataset={}, pipeline=[])"
WRAPPERS = {
    "mmdet": ("{}", REPEAT, BALANCED, CONCAT, MIX),
    "mmseg": ("{}", REPEAT, CONCAT, MIX),
    "mmpretrain": ("{}", REPEAT, BALANCED, CONCAT),
    "mmdet3d": ("{}", REPEAT, CONCAT),
}
EVALUATORS = {
    "mmdet": "dict(metric=['bbox'], ann_file='{}/val/coco.json')",
    "mmseg": "dict(iou_metrics=['mIoU', 'mDice'])",
    "mmpretrain": "[dict(type='Accuracy', topk=(1, 2)), dict(type='SingleLabelMetric')]",
    "mmdet3d": "dict(data_root='{0}', ann_file='{0}/infos.pkl')",
}


def innermost(dataset, path):
    """A dataset inside of wrappers, and its path in the config."""
    while "dataset" in dataset:
        dataset, path = dataset["dataset"], f"{path}.dataset"
    return dataset, path


def with_classes(part, old, new):
    """A part of a config with another number of classes; ``None`` where nothing differs.

    Lists are complete, as a child replaces them; dicts hold what differs alone.
    """
    if isinstance(part, dict):
        found = {}
        for key, value in part.items():
            if key == "num_classes" and value == old:
                found[key] = new
            elif key == "class_weight" and isinstance(value, list) and len(value) == old + 1:
                found[key] = [*value[:new], value[-1]]
            elif (changed := with_classes(value, old, new)) is not None:
                found[key] = changed
        return found or None
    if isinstance(part, (list, tuple)):
        changed = [with_classes(value, old, new) for value in part]
        if any(value is not None for value in changed):
            return [
                value if new_value is None else {**value, **new_value}
                for value, new_value in zip(part, changed, strict=True)
            ]
    return None


def data_settings(host, root, split, dataset):
    """Arguments of a dataset that make it read the tiny data."""
    kept = ("type", "frames", "filter_cfg", "test_mode")
    settings = {key: dataset[key] for key in kept if key in dataset}
    if host == "mmdet3d":
        settings |= {"data_root": str(root), "ann_file": "infos.pkl", "frame_pipeline": []}
        meta = {**dataset["metainfo"], "version": "v1.0-trainval"}
        return {**settings, "data_prefix": dataset["data_prefix"], "metainfo": meta}
    folder = "train" if split == "train" else "val"
    settings |= {"data_root": f"{root}/{folder}", "metainfo": {"classes": CLASSES[host]}}
    if host == "mmdet":
        return {**settings, "ann_file": "coco.json", "data_prefix": {"img": "images/"}}
    if host == "mmseg":
        folders = {"img_path": "images", "seg_map_path": "maps"}
        settings |= {"type": "BaseSegDataset", "data_prefix": folders}
        zero = any(step.get("reduce_zero_label") for step in dataset["pipeline"])
        return {**settings, "reduce_zero_label": zero}
    return {**settings, "type": "CustomDataset", "ann_file": "", "data_prefix": "folders"}


def write_child(path, config, root, turn):
    """Writes a config that inherits one of ours by the package's name."""
    ours = Config.fromfile(config).to_dict()
    host = ours["default_scope"]
    lines = [f"_base_ = 'dcnv4_mm::{config.parent.name}/{config.name}'", "load_from = None"]
    old = old_classes(host, ours)
    new = len(CLASSES.get(host, ())) or old
    if model := with_classes(ours["model"], old, new):
        lines.append(f"model = {pformat(model)}")
    if host == "mmpretrain":
        lines.append(f"data_preprocessor = dict(num_classes={new})")
    for split in ("train", "val", "test"):
        path_in_config = f"_base_.{split}_dataloader.dataset"
        dataset, path_in_config = innermost(ours[f"{split}_dataloader"]["dataset"], path_in_config)
        pipeline = f"{path_in_config}.pipeline"
        if host == "mmseg":
            # The loader of label maps knows the number of classes.
            change = f"dict(s, num_classes={new}) if 'num_classes' in s else s"
            pipeline = f"[{change} for s in {pipeline}]"
        settings = pformat(data_settings(host, root, split, dataset))
        inner = f"dict(pipeline={pipeline}, **{settings})"
        wrapped = WRAPPERS[host][turn % len(WRAPPERS[host])] if split == "train" else "{}"
        lines += [
            f"{split}_data = dict(_delete_=True, **{wrapped.format(inner)})",
            f"{split}_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False)",
            f"{split}_dataloader['dataset'] = {split}_data",
        ]
        if split != "train":
            lines.append(f"{split}_evaluator = {EVALUATORS[host].format(root)}")
    if turn % 2:
        lines.append("custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook')]")
    path.write_text("\n".join(lines) + "\n")
    return host


def old_classes(host, ours):
    if host == "mmdet3d":
        return 10
    dataset, _ = innermost(ours["train_dataloader"]["dataset"], "")
    if classes := dataset.get("metainfo", {}).get("classes"):
        return len(classes)
    return {"mmdet": 80, "mmseg": 150, "mmpretrain": 1000}[host]


@pytest.fixture
def on_meta(monkeypatch):
    """Models are built without memory and initial values, where their classes allow it."""
    build_model = Runner.build_model

    def build(runner, model):
        try:
            with torch.device("meta"):
                return build_model(runner, model)
        # mmpretrain's ConvNeXt reads values while it is built.
        except RuntimeError:
            return build_model(runner, model)

    monkeypatch.setattr(Runner, "build_model", build)
    monkeypatch.setattr(Runner, "wrap_model", lambda runner, cfg, model: model)


@pytest.mark.parametrize(("turn", "config"), enumerate(CONFIGS), ids=[p.stem for p in CONFIGS])
def test_children_of_configs(turn, config, tiny_data, tmp_path, on_meta):
    host = Config.fromfile(config).default_scope
    pytest.importorskip(host, reason=f"{host} is not installed")
    path = tmp_path / "child.py"
    write_child(path, config, tiny_data, turn)
    child = Config.fromfile(path)
    child.work_dir = str(tmp_path / "out")
    child.experiment_name = f"{config.stem}_{turn}"
    init_default_scope(host)
    importlib.import_module(f"{host}.utils").register_all_modules(init_default_scope=False)
    runner = Runner.from_cfg(child)
    # Mixed precision refuses to be built without a GPU.
    if child.optim_wrapper.get("type") != "AmpOptimWrapper":
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for split in ("train", "val", "test"):
        loop = getattr(runner, f"build_{split}_loop")(getattr(runner, f"_{split}_loop"))
        setattr(runner, f"_{split}_loop", loop)
        for dataset in plain_datasets(loop.dataloader.dataset):
            for step in transforms(dataset.pipeline):
                assert_of_the_host(TRANSFORMS, step, host)
    for hook in runner.hooks:
        assert_of_the_host(HOOKS, hook, host)
    (check,) = (hook for hook in runner.hooks if isinstance(hook, CheckDataHook))
    check.before_run(runner)


def assert_of_the_host(registry, part, host):
    """A class that the host has under this name is the host's, not mmcv's or mmengine's."""
    if not type(part).__module__.startswith("dcnv4_mm."):
        with registry.switch_scope_and_registry(host) as scoped:
            assert scoped.get(type(part).__name__) is type(part)
