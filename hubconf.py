"""Entry points of torch.hub: FlashInternImage and InternImage, as backbones or classifiers.

model = torch.hub.load(".", "flash_internimage_tiny", source="local", weights="released.pth")
"""

from pathlib import Path as _Path
from typing import Any as _Any

import torch as _torch

from dcnv4_mm.backbones import FlashInternImage as _FlashInternImage
from dcnv4_mm.checkpoints import load_released as _load_released
from dcnv4_mm.checkpoints.downloads import check_download as _check_download
from dcnv4_mm.checkpoints.downloads import download as _download

dependencies = ["torch"]


def flash_internimage(arch: str = "t", weights: str | _Path | None = None, **arguments: _Any):
    """A FlashInternImage, or with ``core_op="DCNv3"`` an InternImage.

    Args:
        arch: As for :class:`dcnv4_mm.backbones.FlashInternImage`.
        weights: A released file, or one in our spelling, that fits completely; or its URL, which is
            downloaded once to torch.hub's folder and compared with the hash that its host states.
        arguments: More arguments of the backbone; by default it is the released classifier.
    """
    scale = None if arch in ("t", "tiny") else 1e-5
    arguments = {"num_classes": 1000, "layer_scale": scale, **arguments}
    model = _FlashInternImage(arch, **arguments)
    if weights is not None:
        _load_released(model, _downloaded(weights) if "://" in str(weights) else weights)
    return model


def _downloaded(url: str) -> _Path:
    path = _Path(_torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    _download(url, path)
    _check_download(path)
    return path


def flash_internimage_tiny(**arguments: _Any):
    """FlashInternImage-T; see flash_internimage."""
    return flash_internimage("t", **arguments)


def flash_internimage_small(**arguments: _Any):
    """FlashInternImage-S; see flash_internimage."""
    return flash_internimage("s", **arguments)


def flash_internimage_base(**arguments: _Any):
    """FlashInternImage-B; see flash_internimage."""
    return flash_internimage("b", **arguments)


def flash_internimage_large(**arguments: _Any):
    """FlashInternImage-L; see flash_internimage."""
    return flash_internimage("l", **arguments)
