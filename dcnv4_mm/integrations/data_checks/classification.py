"""Checks datasets of mmpretrain: classes of head and datasets, folders of the splits."""

from torch import nn

from dcnv4_mm.integrations.data_checks.faults import Fault, compare_names
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
    return faults


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
