"""Faults of a parsed annotation file in COCO's format."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np

from dcnv4_mm.integrations.data_checks.faults import Fault

__all__ = ["find_faults"]

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
_POLYGON = "polygons of at least 3 points (6 numbers), or an RLE with counts and size"


def find_faults(content: Any, file: str) -> list[Fault]:
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
    yield from _duplicates([image["id"] for image in images], "image id", fatal=False)
    files = {image["id"]: image["file_name"] for image in images}
    yield from _annotations(annotations, files, {category["id"] for category in categories})


def _annotations(
    annotations: list[dict], files: dict[Any, str], categories: Collection[Any]
) -> Iterator[tuple[str, str, bool]]:
    def name(annotation: dict) -> str:
        image = annotation.get("image_id")
        return f"annotation {annotation.get('id')} of image {files.get(image, image)}"

    fields = _ANNOTATION_FIELDS.keys()
    incomplete = [a for a in annotations if not fields <= a.keys()]
    for field, (scope, fatal) in _ANNOTATION_FIELDS.items():
        if wrong := [a for a in incomplete if field not in a]:
            yield _counted(wrong, f"annotation without {field!r}", name), scope, fatal
    ids = [a["id"] for a in annotations if "id" in a]
    yield from _duplicates(ids, "annotation id", fatal=True)
    if 0 in ids:
        what = "the annotation id 0 is in use, which COCO's evaluation skips: start at 1"
        yield what, "scores", False
    # Absent fields are reported above.
    if wrong := [a for a in annotations if a.get("image_id", ...) not in files and "image_id" in a]:
        yield _counted(wrong, "annotation of an image that is not listed", name), "all", False
    known = {*categories, None}
    if wrong := [a for a in annotations if a.get("category_id") not in known]:
        yield _counted(wrong, "annotation of a category that is not listed", name), "all", False
    if wrong := _without_box([a for a in annotations if "bbox" in a]):
        what = "annotation whose bbox is not [x, y, width, height] in numbers"
        yield _counted(wrong, what, name), "all", True
    if wrong := [a for a in annotations if not _is_mask(a.get("segmentation", ...))]:
        yield (
            _counted(wrong, f"annotation whose segmentation is not {_POLYGON}", name),
            "masks",
            False,
        )


def _without_box(annotations: list[dict]) -> list[dict]:
    boxes = [annotation["bbox"] for annotation in annotations]
    try:
        array = np.array(boxes, dtype=np.float64)
        if not boxes or (array.shape == (len(boxes), 4) and np.isfinite(array).all()):
            return []
    except (TypeError, ValueError):
        pass
    return [a for a in annotations if not _is_box(a["bbox"])]


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(number, (int, float)) and np.isfinite(number) for number in box)
    )


def _is_mask(mask: Any) -> bool:
    """Whether a mask can be used; an absent one (...) is reported elsewhere."""
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return False
        return bool(mask)
    return mask is ... or (isinstance(mask, dict) and "counts" in mask and "size" in mask)


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
