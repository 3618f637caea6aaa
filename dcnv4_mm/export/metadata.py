"""Metadata of exported files: how an image becomes the input, and what the outputs mean."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "KEY",
    "describe",
    "embed",
    "is_aotinductor",
    "paste_masks",
    "prepare",
    "read_metadata",
    "resize",
]

# Key in an ONNX file, and name of the entry in an archive of torch.
KEY = "dcnv4_mm"
_LIMIT = 1 << 20
# Steps of a test pipeline that change the size of an image.
_STEPS = ("Resize", "ResizeEdge", "CenterCrop")
_LIBRARIES = ("torch", "dcnv4_mm", "mmengine", "mmdet", "mmsegmentation", "mmpretrain", "mmdet3d")


def describe(cfg: Mapping[str, Any], *, task: str, meta: Any = None, name: str = "") -> dict:
    """Collects the metadata of a model.

    Args:
        cfg: Its config.
        task: As in ``ExportWrapper.task``.
        meta: The ``dataset_meta`` of its checkpoint: names and colors of the classes.
        name: Name of the config.

    Returns:
        A dict that JSON can hold: ``task``, ``config``, ``classes`` and ``palette`` (or null),
        ``mean``, ``std``, ``channels`` ("RGB" or "BGR"), ``size_divisor``, ``resize`` (the steps of
        the test pipeline), ``versions``.
    """
    settings = cfg["model"].get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    dataset = (cfg.get("test_dataloader") or {}).get("dataset", {})
    pipeline = dataset.get("pipeline") or ()
    known = meta if isinstance(meta, Mapping) and meta.get("classes") else _dataset_meta(dataset)
    rgb = settings.get("bgr_to_rgb") or settings.get("to_rgb")
    steps = [dict(step, type=step["type"].split(".")[-1]) for step in pipeline]
    testing = settings.get("test_cfg") or {}
    return {
        "task": task,
        "config": name,
        "classes": _plain(known.get("classes")),
        "palette": _plain(known.get("palette")),
        "mean": _plain(settings.get("mean")) or [0.0] * 3,
        "std": _plain(settings.get("std")) or [1.0] * 3,
        "channels": "RGB" if rgb else "BGR",
        "size_divisor": testing.get("size_divisor") or settings.get("pad_size_divisor") or 1,
        "resize": [_plain(step) for step in steps if step["type"] in _STEPS],
        "versions": _versions(),
    }


def _dataset_meta(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    from mmengine.registry import DATASETS

    found = getattr(DATASETS.get(dataset["type"]), "METAINFO", {}) if "type" in dataset else {}
    return {**found, **(dataset.get("metainfo") or {})}


def _plain(value: Any) -> Any:
    """The value with lists in place of tuples; ``None`` if JSON cannot hold it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def embed(path: str | Path, metadata: dict) -> None:
    """Adds metadata to a file of ``torch.export.save`` or AOTInductor.

    ``torch.export.load`` returns them through its ``extra_files``.

    Args:
        path: The file, a zip archive; it is changed in place.
        metadata: The metadata.
    """
    # Opened here: zipfile would empty a file that it cannot open for changes.
    with Path(path).open("r+b") as raw, zipfile.ZipFile(raw, "a") as file:
        root = file.namelist()[0].split("/")[0]
        file.writestr(f"{root}/extra/{KEY}", json.dumps(metadata))


def read_metadata(path: str | Path) -> dict:
    """Reads the metadata of a file, without loading the program in it.

    Args:
        path: A file of ``tools/deployment/export.py``.

    Returns:
        What :func:`describe` returned.

    Raises:
        ImportError: It is an ONNX file, and onnx is not installed.
        ValueError: The file is not one, or its metadata are malformed.
    """
    path = Path(path)
    try:
        text = _read_onnx(path) if path.suffix == ".onnx" else _read_archive(path)
        metadata = json.loads(text)
        _check(metadata)
    except ImportError:
        raise
    # A damaged or forged file can fail in any way.
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of tools/deployment/export.py, or is damaged ({error})"
        ) from error
    return metadata


def is_aotinductor(path: str | Path) -> bool:
    """Whether a ``.pt2`` file is a package of AOTInductor, not a program of ``torch.export``."""
    with zipfile.ZipFile(path) as file:
        return any("/data/aotinductor/" in name for name in file.namelist())


def _read_onnx(path: Path) -> str:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return next(entry.value for entry in model.metadata_props if entry.key == KEY)


def _read_archive(path: Path) -> str:
    with zipfile.ZipFile(path) as file:
        name = next(n for n in file.namelist() if n.endswith(f"/extra/{KEY}"))
        if file.getinfo(name).file_size > _LIMIT:
            raise ValueError(f"{name} has more than {_LIMIT} bytes")
        return file.read(name).decode()


def _check(metadata: Any) -> None:
    """Raises an error where a field would be used for what it is not."""
    for field, kind in (("task", str), ("config", str), ("channels", str), ("resize", list)):
        if not isinstance(metadata[field], kind):
            raise ValueError(f"{field}: expected a {kind.__name__}, got {metadata[field]!r}")
    for field in ("mean", "std"):
        np.array(metadata[field], np.float32).reshape(3)
    if not 1 <= int(metadata["size_divisor"]) <= 1024:
        raise ValueError(f"size_divisor: expected 1 to 1024, got {metadata['size_divisor']}")
    for field, kind in (("classes", str), ("palette", list)):
        values = metadata[field]
        if values is not None and not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{field}: expected a list of {kind.__name__}, or null")


def prepare(image: np.ndarray, metadata: dict) -> np.ndarray:
    """Turns an image into the input of an exported model, as the test pipeline does.

    Args:
        image: uint8 (H, W, 3) in OpenCV's channel order.
        metadata: Those of the file.

    Returns:
        float32 (1, 3, h, w): resized, normalized, and padded at the right and at the bottom.
    """
    resized = resize(image, metadata["resize"]).astype(np.float32)
    if metadata["channels"] == "RGB":
        resized = resized[..., ::-1]
    mean, std = (np.array(metadata[field], np.float32) for field in ("mean", "std"))
    divisor = int(metadata["size_divisor"])
    rest = [(0, -size % divisor) for size in resized.shape[:2]]
    padded = np.pad((resized - mean) / std, [*rest, (0, 0)])
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Resizes the masks of an instance segmentor into their boxes.

    Args:
        masks: float32 (K, m, m): probabilities on a grid over each box.
        boxes: (K, 4: x1, y1, x2, y2) in pixels of the image.
        size: Height and width of the image.
        threshold: Lowest probability inside a mask.

    Returns:
        bool (K, height, width).
    """
    import cv2

    pasted = np.zeros((len(masks), *size), bool)
    for index, (mask, box) in enumerate(zip(masks, boxes.astype(np.float64), strict=True)):
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            continue
        # Where in the grid the center of each pixel lies.
        x = (np.arange(size[1]) + 0.5 - x1) / (x2 - x1) * mask.shape[1] - 0.5
        y = (np.arange(size[0]) + 0.5 - y1) / (y2 - y1) * mask.shape[0] - 0.5
        grid = [part.astype(np.float32) for part in np.meshgrid(x, y)]
        pasted[index] = cv2.remap(mask, *grid, cv2.INTER_LINEAR) >= threshold
    return pasted


def resize(image: np.ndarray, steps: Sequence[dict]) -> np.ndarray:
    """Resizes and crops an image as the steps of a test pipeline do.

    Args:
        image: uint8 (H, W, 3).
        steps: ``Resize``, ``ResizeEdge`` and ``CenterCrop`` of the OpenMMLab libraries.

    Raises:
        ValueError: A step has settings that are not supported.
    """
    for step in steps:
        height, width = image.shape[:2]
        if step["type"] == "CenterCrop":
            rows, columns = np.broadcast_to(step["crop_size"], 2)
            top, left = (max(round((a - b) / 2), 0) for a, b in ((height, rows), (width, columns)))
            image = image[top : top + rows, left : left + columns]
            continue
        image = _scaled(image, _target(step, width, height), step)
    return image


def _target(step: dict, width: int, height: int) -> tuple[int, int]:
    """Width and height after a step."""
    if step["type"] == "ResizeEdge":
        if step.get("edge", "short") != "short":
            raise ValueError(f"ResizeEdge: expected edge='short', got {step['edge']!r}")
        factor = step["scale"] / min(width, height)
        sizes = (step["scale"], int(factor * max(width, height)))
        return sizes if width <= height else (sizes[1], sizes[0])
    if step.get("scale") is None:
        factors = np.broadcast_to(step["scale_factor"], 2)
        return int(width * factors[0] + 0.5), int(height * factors[1] + 0.5)
    if not step.get("keep_ratio", False):
        return int(step["scale"][0]), int(step["scale"][1])
    short, long = sorted(step["scale"])
    factor = min(long / max(width, height), short / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def _scaled(image: np.ndarray, size: tuple[int, int], step: dict) -> np.ndarray:
    if not all(1 <= length <= 1 << 14 for length in size):
        raise ValueError(f"{step['type']}: {size[0]} x {size[1]} pixels")
    method = step.get("interpolation", "bilinear")
    if step.get("backend", "cv2") == "pillow":
        from PIL import Image

        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        return np.asarray(Image.fromarray(image).resize(size, filters[method]))
    import cv2

    methods = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    return cv2.resize(image, size, interpolation=methods[method])
