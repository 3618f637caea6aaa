"""Checks of datasets on the disk, without a config: files, fields and counts.

Each function checks one split and returns a :class:`Report`; none raises for a damaged dataset.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcnv4_mm.integrations.data_checks import coco_json
from dcnv4_mm.integrations.data_checks.faults import Fault, compare_names
from dcnv4_mm.integrations.data_checks.images import image_size, sample
from dcnv4_mm.integrations.data_checks.label_maps import LabelCount

__all__ = [
    "IMAGE_SUFFIXES",
    "Report",
    "check_class_folders",
    "check_coco",
    "check_label_maps",
    "check_nuscenes",
    "compare_splits",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_INFO_FIELDS = ("token", "timestamp", "ego2global", "images", "instances")
_CAMERA_FIELDS = ("img_path", "cam2img", "lidar2cam")


@dataclass
class Report:
    """Content and faults of a split.

    Attributes:
        counts: Counts for a table, such as images and objects, by name.
        classes: Objects, pixels or images of each class, in the order of the labels; empty where
            the split does not name its classes.
        files: Image files, to find images that two splits have in common.
        faults: The faults.
    """

    counts: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def add(self, where: str | Path, cases: Iterable[Any], what: str) -> None:
        """Adds a fault with the number of its cases and an example, if there are any."""
        found = list(cases)
        if found:
            self.faults.append(Fault(str(where), f"{what}: {len(found)}, such as {found[0]}"))


def check_coco(annotations: Path, images: Path, *, every: bool = False) -> Report:
    """Checks an annotation file in COCO's format and the images that it lists.

    Args:
        annotations: The JSON file.
        images: The folder that ``file_name`` is relative to.
        every: Whether to read the header of every image, not of a sample.
    """
    report = Report()
    try:
        content = json.loads(annotations.read_bytes())
    # The last where brackets are nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        report.faults.append(Fault(str(annotations), f"cannot be read: {error}", fatal=True))
        return report
    faults = coco_json.find_coco_faults(content, str(annotations))
    if any(fault.fatal for fault in faults):
        report.faults = faults
        return report
    objects = content.get("annotations", [])
    masks = sum(bool(o.get("segmentation")) for o in objects)
    # In a dataset without masks, their absence is no fault.
    report.faults = [fault for fault in faults if masks or fault.scope != "masks"]
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = Counter(o["category_id"] for o in objects)
    report.classes = {name: found[identifier] for identifier, name in names.items()}
    report.counts = {
        "images": len(content["images"]),
        "images without objects": len(
            {i["id"] for i in content["images"]} - {o["image_id"] for o in objects}
        ),
        "objects": len(objects),
        "objects with masks": masks,
        "crowds": sum(o.get("iscrowd") == 1 for o in objects),
        "classes": len(names),
    }
    listed = {image["file_name"]: image for image in content["images"]}
    readable = _check_files(report, images, listed)
    for name in readable if every else sample(readable):
        expected = listed[name]["width"], listed[name]["height"]
        _check_size(report, images / name, expected, str(annotations))
    return report


def _check_files(report: Report, folder: Path, names: Iterable[str]) -> list[str]:
    """Finds missing and empty files; returns the others. Each folder is listed once."""
    sizes: dict[str, dict[str, int]] = {}
    missing, empty, readable = [], [], []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in sizes:
            sizes[parent] = _list_files(folder / parent)
        size = sizes[parent].get(base)
        (missing if size is None else readable if size else empty).append(name)
    report.files = {str((folder / name).resolve()) for name in readable}
    if missing and not folder.is_dir():
        report.faults.append(Fault(str(folder), "is not a folder"))
    else:
        report.add(folder, missing, "missing images")
    report.add(folder, empty, "empty files")
    return readable


def _list_files(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return {}


def _check_size(report: Report, path: Path, expected: tuple[int, int], where: str) -> None:
    try:
        found = image_size(path)
    except OSError as error:
        report.faults.append(Fault(where, f"{path} is not an image: {error}"))
        return
    if found != expected:
        what = f"{path} has {found[0]} x {found[1]} pixels, expected {expected[0]} x {expected[1]}"
        if found == expected[::-1]:
            what += " (EXIF orientation: turn the labels, or store the image upright)"
        report.faults.append(Fault(where, what))


def check_label_maps(
    images: Path,
    maps: Path,
    *,
    classes: tuple[str, ...] = (),
    reduce_zero_label: bool = False,
    suffixes: tuple[str | None, str] = (None, ".png"),
    every: bool = False,
) -> Report:
    """Checks label maps, and that each image has one.

    Args:
        images: Folder of the images, possibly with subfolders.
        maps: Folder of the label maps, with the same subfolders.
        classes: Names of the classes; without them any label below 255 is one.
        reduce_zero_label: Whether label 0 is ignored and 1 is the first class.
        suffixes: File suffixes of images (``None``: any image) and label maps.
        every: Whether to read every label map, not a sample.
    """
    report = Report()
    if absent := [folder for folder in (images, maps) if not folder.is_dir()]:
        report.faults = [Fault(str(folder), "is not a folder", fatal=True) for folder in absent]
        return report
    # In one folder, the label maps are the files with their suffix.
    shared = {suffixes[1]} if images.resolve() == maps.resolve() else set()
    ends = (suffixes[0],) if suffixes[0] else tuple(s for s in IMAGE_SUFFIXES if s not in shared)
    found = {_stem(path, images, ends): path for path in _walk(images, ends)}
    labels = {_stem(path, maps, (suffixes[1],)): path for path in _walk(maps, (suffixes[1],))}
    report.files = {str(path.resolve()) for path in found.values()}
    report.counts = {"images": len(found), "label maps": len(labels)}
    if not found:
        report.faults.append(Fault(str(images), f"has no image ({', '.join(ends)})"))
    report.add(maps, [f"{name}{suffixes[1]}" for name in found if name not in labels],
               "missing label maps")  # fmt: skip
    report.add(maps, [path for name, path in labels.items() if name not in found],
               "label maps without an image")  # fmt: skip
    both = sorted(found.keys() & labels.keys())
    chosen = both if every else sample(both, 64)
    _count_labels(report, [(found[n], labels[n]) for n in chosen], classes, reduce_zero_label)
    return report


def _count_labels(
    report: Report,
    pairs: list[tuple[Path, Path]],
    classes: tuple[str, ...],
    reduce_zero_label: bool,
) -> None:
    """Reads label maps, counts their labels and adds faults by kind."""
    wrong: dict[str, list[str]] = {}
    raw = np.zeros(256, np.int64)
    read = 0
    for image, path in pairs:
        try:
            with Image.open(path) as file:
                mode, size, values = file.mode, file.size, np.asarray(file)
            expected = image_size(image)
        # A damaged file can make a decoder fail in any way.
        except Exception as error:
            wrong.setdefault("damaged label maps or images", []).append(f"{path} ({error})")
            continue
        if mode not in ("L", "P"):
            what = "label maps with other pixels than one channel of 8 bits (mode L or P)"
            wrong.setdefault(what, []).append(f"{path} ({mode})")
            continue
        if size != expected:
            case = f"{path} ({size[0]} x {size[1]} and {expected[0]} x {expected[1]} pixels)"
            wrong.setdefault("label maps of another size than their image", []).append(case)
        counts = np.bincount(values.ravel(), minlength=256)
        top = len(classes) + reduce_zero_label
        if classes and (beyond := np.nonzero(counts[top:255])[0]).size:
            labels = (beyond[:8] + top).tolist()
            what = f"label maps with labels that are neither 0 to {top - 1} nor 255 (ignored)"
            wrong.setdefault(what, []).append(f"{path} ({', '.join(map(str, labels))})")
        raw += counts
        read += 1
    for what, cases in wrong.items():
        report.add(pairs[0][1].parent, cases, what)
    report.counts["label maps read"] = read
    first = int(reduce_zero_label)
    names = classes or tuple(f"label {n}" for n in range(first, 255))
    count = LabelCount(names, read)
    count.pixels = np.concatenate([raw[first:255], [0] * first, [raw[:first].sum() + raw[255]]])
    pixels = {name: int(number) for name, number in zip(names, count.pixels, strict=False)}
    if classes:
        report.classes = pixels
    else:
        report.counts |= {f"pixels of {name}": number for name, number in pixels.items() if number}
    if read and (fault := count.fault()):
        report.faults.append(Fault(str(pairs[0][1].parent), fault))


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(tuple(s.lower() for s in suffixes))
    )


def _stem(path: Path, folder: Path, suffixes: tuple[str, ...]) -> str:
    name = path.relative_to(folder).as_posix()
    end = next(s for s in suffixes if name.lower().endswith(s.lower()))
    return name[: -len(end)]


def check_class_folders(folder: Path, *, every: bool = False) -> Report:
    """Checks a folder with one folder of images per class, as ImageNet's.

    Args:
        folder: The folder of the split.
        every: Whether to read the header of every image, not of a sample.
    """
    report = Report()
    if not folder.is_dir():
        report.faults.append(Fault(str(folder), "is not a folder", fatal=True))
        return report
    by_class: dict[str, list[Path]] = {}
    loose = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            by_class[path.name] = _walk(path, IMAGE_SUFFIXES)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            loose.append(path.name)
    report.classes = {name: len(paths) for name, paths in by_class.items()}
    images = [path for paths in by_class.values() for path in paths]
    report.files = {str(path.resolve()) for path in images}
    report.counts = {"images": len(images), "classes": len(by_class)}
    if not by_class:
        report.faults.append(Fault(str(folder), "has no class folders"))
    report.add(folder, loose, "images outside of the class folders")
    report.add(folder, [n for n, count in report.classes.items() if not count],
               "classes without an image")  # fmt: skip
    damaged = []
    for path in images if every else sample(images, 64):
        try:
            image_size(path)
        except OSError:
            damaged.append(path)
    report.add(folder, damaged, "files that are not images")
    return report


def check_nuscenes(infos: Path, data_root: Path) -> Report:
    """Checks an info file of mmdet3d's nuScenes format and the camera images that it names.

    Args:
        infos: The ``.pkl`` file; code in it is not run.
        data_root: The folder with ``samples``.
    """
    from dcnv4_mm.engine.pickles import load_pickle

    report = Report()
    try:
        content = load_pickle(infos)
    except (OSError, ValueError) as error:
        report.faults.append(Fault(str(infos), f"cannot be read: {error}", fatal=True))
        return report
    if not isinstance(content, dict) or not {"metainfo", "data_list"} <= content.keys():
        what = (
            "has the format of mmdet3d 0.x: convert it with mmdet3d's tools/dataset_converters/"
            "update_infos_to_v2.py, or create it again with prepare_nuscenes"
        )
        report.faults.append(Fault(str(infos), what, fatal=True))
        return report
    samples, categories = content["data_list"], content["metainfo"].get("categories", {})
    names = {label: name for name, label in categories.items()}
    labels = Counter(o["bbox_label_3d"] for s in samples for o in s.get("instances", ()))
    report.classes = {names[label]: labels[label] for label in sorted(names)}
    report.counts = {
        "samples": len(samples),
        "scenes": len({s["scene_token"] for s in samples if "scene_token" in s}),
        "objects": labels.total(),
        "classes": len(names),
    }
    for key in _INFO_FIELDS:
        lacking = [s.get("token", n) for n, s in enumerate(samples) if key not in s]
        report.add(infos, lacking, f"samples without {key!r}")
    lacking = [s.get("token", n) for n, s in enumerate(samples) if "scene_token" not in s]
    what = "samples without 'scene_token' (add_bevformerv2_infos adds it)"
    report.add(infos, lacking, what)
    cameras = [(s.get("token"), n, c) for s in samples for n, c in s.get("images", {}).items()]
    for key in _CAMERA_FIELDS:
        lacking = [f"{name} of {token}" for token, name, c in cameras if key not in c]
        report.add(infos, lacking, f"cameras without {key!r}")
    paths = [f"samples/{name}/{c['img_path']}" for _, name, c in cameras if c.get("img_path")]
    _check_files(report, data_root, paths)
    return report


def compare_splits(reports: dict[str, Report]) -> list[Fault]:
    """Compares names and order of the classes of splits, and finds images that two share.

    Args:
        reports: Reports by split, the training split first.
    """
    faults = []
    (first, reference), *others = reports.items()
    for name, report in others:
        one, other = list(reference.classes), list(report.classes)
        if one and other and one != other:
            what = f"has other classes, or another order, than {first}:\n"
            faults.append(Fault(name, what + compare_names(one, other, (first, name))))
        # Testing on the validation images is common.
        if first == "train" and (common := sorted(reference.files & report.files)):
            what = f"{len(common)} images are in {first} too, such as {common[0]}"
            faults.append(Fault(name, what))
    return faults
