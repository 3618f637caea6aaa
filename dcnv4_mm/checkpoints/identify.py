"""What model a checkpoint belongs to, from its keys, shapes and metadata."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dcnv4_mm.backbones.archs import ARCHS, DCNV3_ARCHS
from dcnv4_mm.checkpoints.flash_intern_image import is_dcnv3
from dcnv4_mm.checkpoints.key_mappings import FLASH_INTERN_IMAGE

__all__ = ["identify"]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of model in the zoo.

    Attributes:
        name: What the model is called.
        marker: Pattern of a key that every such model has, in either spelling.
        classes: Pattern of the key whose first dim is the number of classes.
        background: Whether that dim counts the background as a class.
        config: Pattern of the names of the configs.
    """

    name: str
    marker: str
    classes: str
    background: bool = False
    config: str


# The first whose marker is found counts.
_KINDS = (
    _Kind(
        name="BEVFormerV2",
        marker=r"pts_bbox_head\..+",
        classes=r"pts_bbox_head\.cls_branches\.0\.6\.weight",
        config="bevformerv2_{backbone}_*_nus-3d.py",
    ),
    _Kind(
        name="Cascade Mask R-CNN",
        marker=r"roi_head\.bbox_head\.0\..+",
        classes=r"roi_head\.bbox_head\.0\.fc_cls\.weight",
        background=True,
        config="cascade-mask-rcnn_{backbone}_fpn_*_coco.py",
    ),
    _Kind(
        name="Mask R-CNN",
        marker=r"roi_head\.mask_head\..+",
        classes=r"roi_head\.bbox_head\.fc_cls\.weight",
        background=True,
        config="mask-rcnn_{backbone}_fpn_*_coco.py",
    ),
    _Kind(
        name="DINO",
        marker=r"(dn_query_generator|bbox_head)\.label_embedding\.weight",
        classes=r"bbox_head\.cls_branches\.0\.weight",
        config="dino-4scale_{backbone}_*_coco.py",
    ),
    _Kind(
        name="Mask2Former",
        marker=r"decode_head\.transformer_decoder\..+",
        classes=r"decode_head\.cls_embed\.weight",
        background=True,
        config="mask2former_{backbone}_*_ade20k-*.py",
    ),
    _Kind(
        name="UPerNet",
        marker=r"decode_head\.psp_modules\..+",
        classes=r"decode_head\.conv_seg\.weight",
        config="upernet_{backbone}_*_ade20k-*.py",
    ),
    _Kind(
        name="a classifier",
        marker=r"(conv_head\.0|head\.conv|head\.conv_head\.0)\.weight",
        classes=r"head\.(fc\.|head\.)?weight",
        config="{backbone}_*_in1k-*.py",
    ),
)


def identify(weights: Mapping[str, Tensor], meta: Any = None) -> str:
    """Describes the model that a state dict belongs to, and names the configs that fit.

    Args:
        weights: State dict in either spelling, without wrapper prefixes.
        meta: The ``meta`` of the checkpoint, if there is one; names the config it was trained with.

    Returns:
        One line, such as "Mask R-CNN with FlashInternImage-S, 80 classes; its configs are
        mask-rcnn_flash-internimage-s_fpn_*_coco.py".
    """
    backbone, slug = _backbone(weights)
    kind = next((k for k in _KINDS if _first_match(k.marker, weights)), None)
    if kind is None:
        parts = sorted({key.split(".", 1)[0] for key in weights})
        found = f"{backbone} alone" if backbone else f"a model with the parts {', '.join(parts)}"
    else:
        found = f"{kind.name} with {backbone or 'another backbone'}"
        key = _first_match(kind.classes, weights)
        if key and weights[key].dim():
            found += f", {weights[key].shape[0] - kind.background} classes"
        if slug:
            found += f"; its configs are {kind.config.format(backbone=slug)}"
    trained = _config_of(meta)
    return f"{found}; trained with {trained}" if trained else found


def _first_match(pattern: str, weights: Mapping[str, Tensor]) -> str | None:
    return next((key for key in weights if re.fullmatch(pattern, key)), None)


def _backbone(weights: Mapping[str, Tensor]) -> tuple[str | None, str | None]:
    """Name of the backbone, and its spelling in the names of configs; ``None`` if unknown."""
    for released in (False, True):
        for prefix in FLASH_INTERN_IMAGE.find_prefixes(weights, released=released):
            stem = weights.get(f"{prefix}patch_embed.conv1.weight")
            if stem is None or not stem.dim():
                continue
            dcnv3 = any(map(is_dcnv3, weights))
            name = "InternImage" if dcnv3 else "FlashInternImage"
            size = 2 * stem.shape[0], _depths(weights, prefix)
            for arch, settings in (DCNV3_ARCHS if dcnv3 else ARCHS).items():
                if (settings.channels, tuple(settings.depths)) == size:
                    slug = f"{'internimage' if dcnv3 else 'flash-internimage'}-{arch}"
                    return f"{name}-{arch.upper()}", slug
            return f"{name} of {size[0]} channels and the depths {size[1]}", None
    return None, None


def _depths(weights: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    pattern = re.compile(rf"{re.escape(prefix)}levels\.(\d+)\.blocks\.(\d+)\..+")
    depths: dict[int, int] = {}
    for level, block in (m.groups() for m in map(pattern.fullmatch, weights) if m):
        depths[int(level)] = max(depths.get(int(level), 0), int(block) + 1)
    return tuple(depths[level] for level in sorted(depths))


def _config_of(meta: Any) -> str | None:
    """The config that mmengine (``experiment_name``) or mmcv 1.x (``exp_name``) has noted."""
    if not isinstance(meta, Mapping):
        return None
    name = meta.get("experiment_name") or meta.get("exp_name")
    return re.sub(r"_\d{8}_\d{6}$", "", name) if isinstance(name, str) else None
