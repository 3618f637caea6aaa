"""Checks datasets of mmdet: the annotation files, their classes, and the evaluator."""

from mmcv.cnn import VGG
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmengine.fileio import load
from torch import nn

from dcnv4_mm.integrations.data_checks.annotation_files import (
    annotation_file,
    fingerprint,
    is_plain_coco,
)
from dcnv4_mm.integrations.data_checks.faults import Fault, compare_names
from dcnv4_mm.integrations.data_checks.images import image_size, sample
from dcnv4_mm.integrations.data_checks.splits import Split, check_heads, transforms

__all__ = ["check"]


def check(model: nn.Module, split: Split) -> list[Fault]:
    """Finds the faults of a split of an mmdet config."""
    faults = check_heads(model, split, _heads(model))
    for dataset in split.datasets:
        if is_plain_coco(dataset):
            faults += _check_file(split, dataset)
            faults += _check_sizes(dataset)
    faults += _check_metrics(split)
    return faults


def _heads(model: nn.Module) -> dict[str, int]:
    return {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int)
        and not name.endswith("rpn_head")
        and not isinstance(module, (VGG, FusedSemanticHead))
    }


def _check_file(split: Split, dataset: CocoDataset) -> list[Fault]:
    parsed, scored = annotation_file(dataset), split.name != "train"
    masks = any(getattr(step, "with_mask", False) for step in transforms(dataset.pipeline))
    masks |= any("segm" in getattr(metric, "metrics", ()) for metric in split.metrics)
    scopes = {"all"} | ({"scores"} if scored else set()) | ({"masks"} if masks else set())
    faults = [fault for fault in parsed.faults if fault.scope in scopes]
    classes = list(dataset.metainfo.get("classes") or ())
    # Categories that the dataset leaves out are legal.
    used = [(i, n) for i, n in zip(parsed.ids, parsed.names, strict=True) if n in classes]
    if [name for _, name in used] != classes:
        titles = (f"metainfo.classes of {split.where}", "categories of the file")
        what = (
            "mmdet numbers the labels by the order of categories in the file, which differs from "
            "metainfo.classes: give both the same names in the same order\n"
        )
        faults.append(Fault(dataset.ann_file, what + compare_names(classes, parsed.names, titles)))
    ids = [identifier for identifier, _ in used]
    if ids != sorted(ids) and any(getattr(m, "classwise", False) for m in split.metrics):
        what = (
            "the ids of categories do not ascend, so the table of classes (classwise=True) would "
            "name wrong ones: order categories by id, or set classwise=False"
        )
        faults.append(Fault(dataset.ann_file, what))
    return faults


def _check_sizes(dataset: CocoDataset) -> list[Fault]:
    """Compares the sizes in the file with the headers of a few images."""
    # Images elsewhere than on a disk are not fetched.
    if dataset.backend_args:
        return []
    faults = []
    for index in sample(range(len(dataset))):
        info = dataset.get_data_info(index)
        path, size = info["img_path"], (info["width"], info["height"])
        try:
            found = image_size(path)
        except FileNotFoundError:
            # All missing images are one fault of the file.
            continue
        except OSError as error:
            faults.append(Fault(dataset.ann_file, f"{path} is not an image: {error}"))
            continue
        if found != size:
            turned = found == size[::-1]
            why = (
                " (EXIF orientation: turn the boxes, or store the image upright)" if turned else ""
            )
            faults.append(
                Fault(
                    dataset.ann_file,
                    f"{path} has {found[0]} x {found[1]} pixels, the file lists "
                    f"{size[0]} x {size[1]}{why}",
                )
            )
    return faults


def _check_metrics(split: Split) -> list[Fault]:
    """The evaluator must score against the file that the dataset reads."""
    if len(split.datasets) != 1 or not is_plain_coco(split.datasets[0]):
        return []
    (dataset,) = split.datasets
    scored = [m for m in split.metrics if isinstance(m, CocoMetric) and m._coco_api is not None]
    expected = annotation_file(dataset).fingerprint
    # A dataset that is evaluated without test_mode is legal.
    if scored and expected is None:
        expected = fingerprint(load(dataset.ann_file, backend_args=dataset.backend_args))
    return [
        Fault(
            f"{split.name}_evaluator",
            f"ann_file holds other images or annotations than {dataset.ann_file}, which "
            f"{split.where} reads: make them equal file",
        )
        for metric in scored
        if fingerprint(metric._coco_api.dataset) != expected
    ]
