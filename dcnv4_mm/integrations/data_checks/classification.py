"""Checks datasets of mmpretrain: classes of head and datasets, folders of the splits."""

from typing import Any

import numpy as np
from mmengine.fileio import LocalBackend, get_file_backend
from torch import nn

from dcnv4_mm.integrations.data_checks.faults import Fault, compare_names
from dcnv4_mm.integrations.data_checks.images import missing_files, sample
from dcnv4_mm.integrations.data_checks.splits import Split, check_heads

__all__ = ["check", "check_folders"]


def check(model: nn.Module, split: Split) -> list[Fault]:
    """Finds the faults of a split of an mmpretrain config."""
    heads = {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int) and name.split(".")[-1] == "head"
    }
    faults = check_heads(model, split, heads)
    for dataset in split.datasets:
        classes = list(dataset.metainfo.get("classes") or ())
        folders = list(getattr(dataset, "folder_to_idx", ()))
        # ImageNet's folders are not named after its classes.
        if set(folders) == set(classes) and folders != classes:
            titles = ("metainfo.classes", "folders, in the order of their labels")
            what = "the classes are not in the order of the folders:\n"
            where = f"{split.where} ({dataset.img_prefix})"
            faults.append(Fault(where, what + compare_names(classes, folders, titles)))
        if getattr(dataset, "ann_file", None):
            faults += _check_list(split, dataset, heads)
    return faults


def _check_list(split: Split, dataset: Any, heads: dict[str, int]) -> list[Fault]:
    """Checks the labels and the images that an annotation file lists, or an even sample of many."""
    infos = [dataset.get_data_info(index) for index in sample(range(len(dataset)), 20_000)]
    faults = []
    for name, count in heads.items():
        wrong = [info for info in infos if not _is_label(info.get("gt_label"), count)]
        if wrong:
            what = (
                f"{len(wrong)} labels are not 0 to {count - 1}, the classes of {name}: such as "
                f"{wrong[0].get('gt_label')} of {wrong[0]['img_path']}"
            )
            faults.append(Fault(dataset.ann_file, what))
    paths = [info["img_path"] for info in infos]
    # Files elsewhere than on a disk are not looked up.
    local = bool(paths) and isinstance(get_file_backend(paths[0]), LocalBackend)
    if local and (missing := missing_files(paths)):
        what = f"{len(missing)} of {len(infos)} images are missing, such as {missing[0]}"
        faults.append(Fault(dataset.ann_file, what))
    return faults


def _is_label(label: Any, classes: int) -> bool:
    """Whether a label, or each of several, is one of the classes."""
    values = np.atleast_1d(label)
    return values.dtype.kind in "iu" and bool(((values >= 0) & (values < classes)).all())


def check_folders(splits: list[Split]) -> list[Fault]:
    """Labels are numbered by each split's own folders: they must be the same."""
    found = [
        (split.where, dataset.img_prefix, list(dataset.folder_to_idx))
        for split in splits
        for dataset in split.datasets
        if getattr(dataset, "folder_to_idx", None)
    ]
    return [
        Fault(
            f"{where} ({folder})",
            f"other folders than {found[0][1]}, so labels would mean other classes:\n"
            + compare_names(found[0][2], names, (found[0][0], where)),
        )
        for where, folder, names in found[1:]
        if names != found[0][2]
    ]
