"""Images in one folder per class, or the latents that encode.py computes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

__all__ = ["ImageFolder", "open_data", "to_square"]

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Images (3, size, size) in [-1, 1] with their labels, from one folder per class.

    Args:
        folder: Holds one folder of images for each class.
        size: Side in pixels; images are resized, then center-cropped.

    Raises:
        ValueError: There are no images.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        folder = Path(folder)
        self.size = size
        self.classes = (
            sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        )
        self.items = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not self.items:
            raise ValueError(
                f"{folder} must hold a folder of images ({', '.join(sorted(SUFFIXES))}) for each "
                "class, got none"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, label = self.items[index]
        with Image.open(path) as image:
            pixels = np.array(to_square(image.convert("RGB"), self.size))
        return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, torch.tensor(label)


def to_square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side of an image to ``size`` and center-crops it."""
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    image = image.resize((wide, high), Image.Resampling.BICUBIC, reducing_gap=3)
    return image.crop((left, top, left + size, top + size))


def open_data(folder: str | Path, channels: int, size: int) -> tuple[Dataset, list[str]]:
    """Opens a training set; returns it and the names of its classes.

    Args:
        folder: One folder of images for each class, or ``*.safetensors`` of encode.py.
        channels: Channels of the U-Net; 3 for images.
        size: Side of the U-Net's input.

    Raises:
        ValueError: The folder holds no data, or data that does not fit the U-Net.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        if channels != 3:
            raise ValueError(
                f"{folder} holds no latents (*.safetensors) of {channels} channels: run encode.py"
            )
        images = ImageFolder(folder, size)
        return images, images.classes
    parts = []
    for path in paths:
        tensors = load_file(path)
        latents = tensors.get("latents", torch.empty(0))
        if latents.shape[1:] != (channels, size, size) or "labels" not in tensors:
            raise ValueError(
                f"{path} must hold latents (N, {channels}, {size}, {size}) and labels, got "
                f"{ {name: tuple(value.shape) for name, value in tensors.items()} }"
            )
        parts.append(TensorDataset(latents.float(), tensors["labels"]))
    with safe_open(paths[0], "pt") as file:
        classes = (file.metadata() or {}).get("classes", "").split("\n")
    return ConcatDataset(parts), classes
