"""Checks datasets of mmdet3d: classes of heads, pipelines and datasets, and the evaluator."""

from pathlib import Path
from typing import Any

from mmdet3d.datasets.transforms import ObjectNameFilter
from torch import nn

from dcnv4_mm.integrations.data_checks.faults import Fault
from dcnv4_mm.integrations.data_checks.images import missing_files, sample
from dcnv4_mm.integrations.data_checks.splits import Split, check_heads, transforms

__all__ = ["check"]


def check(model: nn.Module, split: Split) -> list[Fault]:
    """Finds the faults of a split of an mmdet3d config."""
    heads = {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int)
        and name.endswith("_head")
        and not name.endswith("rpn_head")
    }
    faults = check_heads(model, split, heads)
    for dataset in split.datasets:
        classes = list(dataset.metainfo.get("classes") or ())
        for step in transforms(dataset.pipeline):
            if isinstance(step, ObjectNameFilter) and len(step.labels) != len(classes):
                what = (
                    f"ObjectNameFilter in the pipeline keeps {len(step.labels)} classes, "
                    f"the dataset has {len(classes)}: make them equal"
                )
                faults.append(Fault(split.where, what))
        faults += _check_images(split, dataset)
        for metric in split.metrics:
            other = getattr(metric, "ann_file", None)
            if other and Path(other).resolve() != Path(dataset.ann_file).resolve():
                what = f"ann_file is {other}, {split.where} reads {dataset.ann_file}"
                faults.append(Fault(f"{split.name}_evaluator", what))
    return faults


def _check_images(split: Split, dataset: Any) -> list[Fault]:
    """Finds missing images of the cameras in a sample of the frames."""
    if dataset.backend_args or not dataset.modality.get("use_camera"):
        return []
    infos = [dataset.get_data_info(index) for index in sample(range(len(dataset)))]
    paths = [
        camera["img_path"]
        for info in infos
        for camera in info.get("images", {}).values()
        if camera.get("img_path")
    ]
    if not (missing := missing_files(paths)):
        return []
    what = f"{len(missing)} of {len(paths)} sampled images are missing, such as {missing[0]}"
    return [Fault(split.where, what)]
