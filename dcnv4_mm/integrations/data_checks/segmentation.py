"""Checks datasets of mmseg: classes of heads, loaders and datasets, and label maps."""

from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from torch import nn

from dcnv4_mm.integrations.data_checks.faults import Fault
from dcnv4_mm.integrations.data_checks.images import image_size, missing_files, sample
from dcnv4_mm.integrations.data_checks.splits import Split, check_heads, transforms

__all__ = ["check"]


def check(model: nn.Module, split: Split) -> list[Fault]:
    """Finds the faults of a split of an mmseg config."""
    heads = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int)
        and name.rsplit(".", 1)[-1].isdecimal() | name.endswith("_head")
    }
    faults = check_heads(model, split, {name: head.num_classes for name, head in heads.items()})
    for name, head in heads.items():
        if head.num_classes == 1 and _uses_softmax(head):
            what = (
                f"{name} has num_classes=1 with softmax, whose loss is always 0: use num_classes=2 "
                "(background and object), or a loss with use_sigmoid=True"
            )
            faults.append(Fault("model", what))
    for dataset in split.datasets:
        if isinstance(dataset, BaseSegDataset):
            faults += _check_loaders(split, dataset)
            faults += _check_files(split, dataset)
    return faults


def _uses_softmax(head: nn.Module) -> bool:
    losses = getattr(head, "loss_decode", None)
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    return getattr(head, "out_channels", None) == 1 and not any(
        getattr(loss, "use_sigmoid", False) for loss in losses
    )


def _check_loaders(split: Split, dataset: BaseSegDataset) -> list[Fault]:
    faults = []
    classes = dataset.metainfo.get("classes") or ()
    for step in transforms(dataset.pipeline):
        if not isinstance(step, LoadAnnotations):
            continue
        name, count = type(step).__name__, getattr(step, "num_classes", len(classes))
        if count != len(classes):
            what = (
                f"{name} in the pipeline has num_classes={count}, the dataset "
                f"{len(classes)} classes: make them equal"
            )
            faults.append(Fault(split.where, what))
        if step.reduce_zero_label not in (None, dataset.reduce_zero_label):
            what = (
                f"{name} in the pipeline has reduce_zero_label={step.reduce_zero_label}, the "
                f"dataset {dataset.reduce_zero_label}: make them equal (True if 0 is ignored)"
            )
            faults.append(Fault(split.where, what))
    return faults


def _check_files(split: Split, dataset: BaseSegDataset) -> list[Fault]:
    """Finds images without label maps, and compares the sizes of a few."""
    loads = any(isinstance(step, LoadAnnotations) for step in transforms(dataset.pipeline))
    # Files elsewhere than on a disk are not looked up.
    if dataset.backend_args or not loads:
        return []
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    faults = []
    for key, kind in (("img_path", "images"), ("seg_map_path", "label maps")):
        paths = [info[key] for info in infos if info.get(key)]
        if missing := missing_files(paths):
            what = f"{len(missing)} of {len(paths)} {kind} are missing, such as {missing[0]}"
            faults.append(Fault(split.where, what))
    for info in sample(infos) if not faults else ():
        if not info.get("seg_map_path"):
            continue
        sizes = [_size(info[key]) for key in ("img_path", "seg_map_path")]
        if None not in sizes and sizes[0] != sizes[1]:
            (width, height), other = sizes
            turned = ": EXIF orientation; turn the map, or store the image upright"
            what = (
                f"{info['seg_map_path']} has {other[0]} x {other[1]} pixels, its image "
                f"{width} x {height}{turned if other == (height, width) else ''}"
            )
            faults.append(Fault(split.where, what))
    return faults


def _size(path: str) -> tuple[int, int] | None:
    try:
        return image_size(path)
    # The loader names what it cannot read.
    except OSError:
        return None
