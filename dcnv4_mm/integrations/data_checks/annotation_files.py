"""Checks annotation files while the host's datasets load them, and keeps a summary.

mmdet's ``CocoDataset`` drops the parsed file after loading, and parsing COCO's again takes 20 s.
"""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from importlib.util import find_spec
from typing import Any

from mmengine.dataset import BaseDataset

from dcnv4_mm.integrations.data_checks.coco_json import find_coco_faults
from dcnv4_mm.integrations.data_checks.faults import DataError, Fault, compare_names, format_table
from dcnv4_mm.integrations.data_checks.images import missing_files

__all__ = [
    "AnnotationFile",
    "annotation_file",
    "fingerprint",
    "install",
    "is_coco",
    "is_plain_coco",
]

_ATTRIBUTE = "_dcnv4_mm_annotation_file"


@dataclass(frozen=True)
class AnnotationFile:
    """Summary of an annotation file in COCO's format.

    Attributes:
        names: Category names in the order of the file, which defines mmdet's labels.
        ids: Category ids in the same order.
        faults: Faults of the file and of the images that it lists.
        fingerprint: Equal for equal images, categories and annotations; ``None`` for a dataset that
            is not in test mode.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    faults: tuple[Fault, ...]
    fingerprint: int | None


def install() -> None:
    """Makes datasets built from now on keep summaries and explain why none is left; idempotent."""
    if BaseDataset._serialize_data is not _serialize_data:
        BaseDataset._serialize_data = _serialize_data
    if find_spec("mmdet") is None:
        return
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO

    # Datasets with their own reader are not changed.
    if CocoDataset.COCOAPI is COCO:
        CocoDataset.COCOAPI = _read
        CocoDataset.full_init = _pausing_collector(CocoDataset.full_init)


def is_coco(dataset: Any) -> bool:
    """Whether a dataset is mmdet's ``CocoDataset`` or derived from it."""
    if find_spec("mmdet") is None:
        return False
    from mmdet.datasets import CocoDataset

    return isinstance(dataset, CocoDataset)


def is_plain_coco(dataset: Any) -> bool:
    """Whether a dataset reads its file as mmdet's ``CocoDataset`` does.

    Those derived from it, such as LVIS' and Objects365's, may number their labels in other ways.
    """
    from mmdet.datasets import CocoDataset

    kind = type(dataset)
    return (
        isinstance(dataset, CocoDataset)
        and kind.load_data_list is CocoDataset.load_data_list
        and kind.COCOAPI is _read
    )


def annotation_file(dataset: Any) -> AnnotationFile:
    """Summary of a ``CocoDataset``'s file, which is read again if :func:`install` came later."""
    if _ATTRIBUTE not in vars(dataset):
        from mmengine.fileio import get_local_path

        with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as path:
            _read(dataset, path)
    return vars(dataset)[_ATTRIBUTE]


def fingerprint(content: dict) -> int:
    """A hash of images, categories and annotations."""
    images = frozenset((image["id"], image["file_name"]) for image in content["images"])
    categories = tuple((category["id"], category["name"]) for category in content["categories"])
    annotations = frozenset(
        (a["id"], a["image_id"], a["category_id"], *a["bbox"])
        for a in content.get("annotations", [])
    )
    return hash((images, categories, annotations))


def _read(dataset: Any, path: str) -> Any:
    """Replaces ``CocoDataset.COCOAPI``: reads the file and checks it before mmdet uses it."""
    from mmdet.datasets.api_wrappers import COCO

    class Checked(COCO):
        def createIndex(self) -> None:
            if not is_plain_coco(dataset):
                super().createIndex()
                return
            vars(dataset)[_ATTRIBUTE] = _check(dataset, self.dataset)
            super().createIndex()

    return Checked(path)


def _check(dataset: Any, content: dict) -> AnnotationFile:
    """Checks a file that has been parsed, and the images that it lists; keeps what is needed."""
    faults = find_coco_faults(content, dataset.ann_file)
    if any(fault.fatal for fault in faults):
        raise DataError(f"the data cannot be used:\n{format_table(faults)}")
    categories = content["categories"]
    parsed = AnnotationFile(
        names=tuple(category["name"] for category in categories),
        ids=tuple(category["id"] for category in categories),
        faults=tuple(faults),
        fingerprint=fingerprint(content) if dataset.test_mode else None,
    )
    kept = _kept_images(dataset, content, parsed)
    missing = _missing_images(dataset, kept)
    return replace(parsed, faults=(*faults, *missing))


def _kept_images(dataset: Any, content: dict, parsed: AnnotationFile) -> list[dict]:
    """The images that mmdet's filter keeps; raises ``DataError`` if there are none."""
    images, rules = content["images"], dataset.filter_cfg or {}
    classes = dataset.metainfo.get("classes") or ()
    if dataset.test_mode or not images:
        return images
    wanted = {i for i, name in zip(parsed.ids, parsed.names, strict=True) if name in classes}
    with_objects = {
        a["image_id"] for a in content.get("annotations", []) if a["category_id"] in wanted
    }
    side = rules.get("min_size", 0)
    empty = [i for i in images if rules.get("filter_empty_gt") and i["id"] not in with_objects]
    small = [i for i in images if min(i["width"], i["height"]) < side]
    dropped = {image["id"] for image in [*empty, *small]}
    if kept := [image for image in images if image["id"] not in dropped]:
        return kept
    what = [f"none of its {len(images)} images is left"]
    if empty:
        what.append(f"{len(empty)} have no object of the dataset's classes (filter_empty_gt)")
    if small:
        what.append(f"{len(small)} are smaller than {side} pixels (min_size={side})")
    message = "; ".join(what)
    if set(parsed.names).isdisjoint(classes):
        titles = ("metainfo.classes", "categories of the file")
        message += "; no class is in both lists:\n" + compare_names(classes, parsed.names, titles)
    table = format_table([*parsed.faults, Fault(dataset.ann_file, message)])
    raise DataError(f"the data cannot be used:\n{table}")


def _missing_images(dataset: Any, images: list[dict]) -> list[Fault]:
    # Images elsewhere than on a disk are not looked up, nor are those of a part of a dataset.
    if dataset.backend_args or dataset._indices is not None:
        return []
    folder = dataset.data_prefix["img"]
    missing = missing_files(os.path.join(folder, image["file_name"]) for image in images)
    if not missing:
        return []
    what = f"{len(missing)} of {len(images)} images are missing, such as {missing[0]}"
    return [Fault(dataset.ann_file, what)]


def _pausing_collector(full_init: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a dataset's ``full_init``, which parses millions of objects for COCO's file.

    Visiting them again and again takes the garbage collector a third of the time, in vain: mmengine
    collects at the end.
    """

    @wraps(full_init)
    def paused(dataset: Any) -> None:
        collects = gc.isenabled()
        gc.disable()
        try:
            full_init(dataset)
        finally:
            if collects:
                gc.enable()

    return paused


def _serialize_data(dataset: BaseDataset) -> Any:
    """Replaces mmengine's, which fails with "need at least one array to concatenate"."""
    if not dataset.data_list:
        settings = {
            name: getattr(dataset, name)
            for name in ("ann_file", "data_prefix", "img_suffix", "filter_cfg")
            if getattr(dataset, name, None)
        }
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise DataError(
            f"{type(dataset).__name__} has no sample: none was found, or filter_cfg has dropped "
            f"all ({listed})"
        )
    return _host_serialize(dataset)


_host_serialize = BaseDataset._serialize_data
