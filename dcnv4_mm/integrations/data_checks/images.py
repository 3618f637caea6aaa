"""Image files: which are missing, and their sizes from their headers."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

__all__ = ["image_size", "missing_files", "sample"]

_T = TypeVar("_T")
_ORIENTATION = 0x0112


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as OpenCV reads it: rotated by its EXIF orientation.

    Args:
        path: The file; only its header is read.

    Returns:
        (width, height) in pixels.

    Raises:
        OSError: There is no such file, or it is not an image.
    """
    with Image.open(path) as image:
        width, height = image.size
        # Orientations 5 to 8 swap the sides.
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def sample(items: Sequence[_T], count: int = 16) -> list[_T]:
    """Some items, evenly spread, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def missing_files(paths: Iterable[str]) -> list[str]:
    """The paths where there is no file; each folder is listed once."""
    folders: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = (
                set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
            )
        if name not in folders[folder]:
            missing.append(path)
    return missing
