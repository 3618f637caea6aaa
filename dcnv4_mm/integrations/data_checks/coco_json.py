"""Faults of a parsed annotation file in COCO's format."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from dcnv4_mm.integrations.data_checks.faults import Fault

__all__ = ["find_coco_faults"]

# Field -> (what its absence breaks, whether mmdet cannot load the file without it).
_IMAGE_FIELDS = ("id", "file_name", "width", "height")
_ANNOTATION_FIELDS = {
    "id": ("all", True),
    "image_id": ("all", True),
    "category_id": ("all", True),
    "bbox": ("all", True),
    "area": ("all", True),
    "iscrowd": ("scores", False),
    "segmentation": ("masks", False),
}
_POLYGON = (
    "polygons of at least 3 points (6 numbers), or an RLE with counts and the image's size "
    "[height, width]"
)
# COCO's own files have a few boxes that mmdet drops.
_DROPPED_RATIO = 0.05
# Boxes that are [x1, y1, x2, y2] by mistake: all are wider and higher than their corner is far.
_OUTSIDE_RATIO, _MIN_BOXES = 0.25, 8
# Of more, an even sample is compared with the images.
_MAX_BOXES = 50_000


def find_coco_faults(content: Any, file: str) -> list[Fault]:
    """Checks fields, identifiers, boxes and masks; takes about 2 us per annotation.

    Images without objects, crowds and gaps in the ids are legal.

    Args:
        content: Content of the JSON file.
        file: Its name, for the messages.

    Returns:
        One fault for each kind, with the number of cases and an example.
    """
    if not isinstance(content, dict):
        what = f"expected an object with images, annotations, categories; got {_kind(content)}"
        return [Fault(file, what, fatal=True)]
    absent = [key for key in ("images", "categories") if not isinstance(content.get(key), list)]
    if absent:
        what = f"has no list {' and no list '.join(repr(key) for key in absent)}"
        return [Fault(file, what, fatal=True)]
    try:
        return [Fault(file, what, scope, fatal) for what, scope, fatal in _find(content)]
    except (AttributeError, TypeError) as error:
        what = f"an entry or a field has another type than in COCO's format: {error}"
        return [Fault(file, what, fatal=True)]


def _find(content: dict) -> Iterator[tuple[str, str, bool]]:
    images, categories = content["images"], content["categories"]
    # A file without objects, such as COCO's test-dev, has none.
    annotations = content.get("annotations", [])
    if wrong := [image for image in images if not isinstance(image.get("file_name", ""), str)]:
        yield (
            _counted(wrong, "image whose file_name is not a str", lambda i: repr(_short(i))),
            "all",
            True,
        )
        return
    for number, category in enumerate(categories):
        for field in ("id", "name"):
            if field not in category:
                yield f"category number {number} has no {field!r}", "all", True
                return
    names = [category["name"] for category in categories]
    yield from _duplicates(names, "category name", fatal=False)
    yield from _duplicates([category["id"] for category in categories], "category id", fatal=False)
    for field in _IMAGE_FIELDS:
        wrong = [image for image in images if field not in image]
        if wrong:
            yield (
                _counted(wrong, f"image without {field!r}", lambda i: repr(_short(i))),
                "all",
                True,
            )
            return
    if wrong := [i for i in images if not (_is_length(i["width"]) and _is_length(i["height"]))]:
        what = "image whose width or height is not a positive number"
        yield _counted(wrong, what, lambda i: repr(_short(i))), "all", True
        return
    yield from _duplicates([image["id"] for image in images], "image id", fatal=False)
    files = {image["id"]: image["file_name"] for image in images}
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    known = {category["id"] for category in categories}
    yield from _annotations(annotations, files, sizes, known)


def _annotations(
    annotations: list[dict],
    files: dict[Any, str],
    sizes: dict[Any, tuple[float, float]],
    categories: set[Any],
) -> Iterator[tuple[str, str, bool]]:
    def name(annotation: dict) -> str:
        image = annotation.get("image_id")
        return f"annotation {annotation.get('id')} of image {files.get(image, image)}"

    columns = {field: _column(annotations, field) for field in _ANNOTATION_FIELDS}
    for field, (scope, fatal) in _ANNOTATION_FIELDS.items():
        if len(columns[field]) < len(annotations):
            wrong = [a for a in annotations if field not in a]
            yield _counted(wrong, f"annotation without {field!r}", name), scope, fatal
    yield from _duplicates(columns["id"], "annotation id", fatal=True)
    if 0 in columns["id"]:
        what = "the annotation id 0 is in use, which COCO's evaluation skips: start at 1"
        yield what, "scores", False
    # Absent fields are reported above.
    for field, known, kind in (
        ("image_id", files.keys(), "an image"),
        ("category_id", categories, "a category"),
    ):
        if not set(columns[field]) <= known:
            wrong = [a for a in annotations if field in a and a[field] not in known]
            yield _counted(wrong, f"annotation of {kind} that is not listed", name), "all", False
    if numbers := _numbers(columns["bbox"], columns["area"]):
        step = 1 + len(annotations) // _MAX_BOXES
        yield from _boxes(
            annotations[::step], *(n[::step] for n in numbers), columns["image_id"][::step], sizes
        )
    else:
        if wrong := [a for a in annotations if "bbox" in a and not _is_box(a["bbox"])]:
            what = "annotation whose bbox is not [x, y, width, height] in numbers"
            yield _counted(wrong, what, name), "all", True
        if wrong := [a for a in annotations if "area" in a and not _is_number(a["area"])]:
            yield _counted(wrong, "annotation whose area is not a number", name), "all", True
    checked = annotations
    if _are_polygons([mask for mask in columns["segmentation"] if isinstance(mask, list)]):
        checked = [a for a in annotations if not isinstance(a.get("segmentation"), list)]
    if wrong := [a for a in checked if not _is_mask(a, sizes)]:
        what = f"annotation whose segmentation is not {_POLYGON}"
        yield _counted(wrong, what, name), "masks", False


def _column(annotations: list[dict], field: str) -> list:
    """A field of all annotations that have it."""
    try:
        return list(map(itemgetter(field), annotations))
    except KeyError:
        return [annotation[field] for annotation in annotations if field in annotation]


def _numbers(boxes: list, areas: list) -> tuple[np.ndarray, np.ndarray] | None:
    """All boxes (n, 4) and areas (n); ``None`` if some are absent or no numbers."""
    try:
        four = {*map(len, boxes)} <= {4}
        found = [np.array(list(chain.from_iterable(boxes))), np.array(areas)]
    except (TypeError, ValueError):
        return None
    if not four or any(a.dtype.kind not in "iuf" or not np.isfinite(a).all() for a in found):
        return None
    return (found[0].reshape(-1, 4), found[1]) if len(boxes) == len(areas) else None


def _boxes(
    annotations: list[dict],
    boxes: np.ndarray,
    areas: np.ndarray,
    image_ids: list,
    sizes: dict[Any, tuple[float, float]],
) -> Iterator[tuple[str, str, bool]]:
    """Boxes that are numbers, but not boxes of objects in their images."""
    if len(image_ids) < len(annotations):
        return
    indices = {identifier: index for index, identifier in enumerate(sizes)}
    try:
        chosen = np.fromiter(map(indices.__getitem__, image_ids), np.int64, len(annotations))
    # An image that is not listed is reported elsewhere.
    except KeyError:
        return
    rows, columns = np.array(list(sizes.values()), np.float64).reshape(-1, 2)[chosen].T
    x, y, width, height = boxes.T
    seen = np.minimum(x + width, columns) - np.maximum(x, 0) > 0
    seen &= np.minimum(y + height, rows) - np.maximum(y, 0) > 0
    # As mmdet's CocoDataset.parse_data_info does.
    dropped = np.flatnonzero(~seen | (areas <= 0) | (width < 1) | (height < 1))
    if len(dropped) > _DROPPED_RATIO * len(annotations):
        a = annotations[dropped[0]]
        yield (
            f"{len(dropped)} of {len(annotations)} annotations would be dropped by mmdet "
            "silently, since their area is 0 or less, or their bbox is outside of the image or "
            "less than 1 pixel wide or high (bbox is [x, y, width, height] in pixels): such as "
            f"annotation {a['id']} with bbox {a['bbox']} and area {a['area']}",
            "all",
            False,
        )
    outside = (x + width > columns) | (y + height > rows)
    if (
        len(annotations) >= _MIN_BOXES
        and outside.mean() > _OUTSIDE_RATIO
        and ((width >= x) & (height >= y)).all()
    ):
        a = annotations[int(np.flatnonzero(outside)[0])]
        yield (
            f"bbox must be [x, y, width, height]; these seem to be [x1, y1, x2, y2]: "
            f"{outside.sum()} of {len(annotations)} end outside of their image, such as annotation "
            f"{a['id']} with bbox {a['bbox']}",
            "all",
            False,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_length(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _are_polygons(masks: list[list]) -> bool:
    """Whether all masks are polygons with enough points; fast, without saying which is not."""
    polygons = list(chain.from_iterable(masks))
    if not all(masks) or not {*map(type, polygons)} <= {list}:
        return False
    return all(length >= 6 and length % 2 == 0 for length in {*map(len, polygons)})


def _is_mask(annotation: dict, sizes: dict[Any, tuple[float, float]]) -> bool:
    """Whether an annotation's mask fits its image; an absent one is reported elsewhere."""
    mask = annotation.get("segmentation", ...)
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return False
        return bool(mask)
    if not isinstance(mask, dict):
        return mask is ...
    size = sizes.get(annotation.get("image_id"))
    return "counts" in mask and size in (None, tuple(mask.get("size") or ()))


def _duplicates(values: list, what: str, *, fatal: bool) -> Iterator[tuple[str, str, bool]]:
    if len(set(values)) < len(values):
        twice = [str(value) for value, count in Counter(values).items() if count > 1]
        message = f"{len(twice)} {what}{'s' * (len(twice) > 1)} in use more than once: "
        yield message + ", ".join(twice[:5]), "all", fatal


def _counted(wrong: list, what: str, name: Callable[[Any], str]) -> str:
    kind, rest = what.split(" ", 1)
    return f"{len(wrong)} {kind}{'s' * (len(wrong) > 1)} {rest}: such as {name(wrong[0])}"


def _short(image: dict) -> dict:
    return {key: image[key] for key in (*_IMAGE_FIELDS,) if key in image}


def _kind(value: Iterable) -> str:
    return {"list": "a list", "str": "a str"}.get(type(value).__name__, type(value).__name__)
