"""What model a checkpoint belongs to, from its keys, shapes and metadata."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import dcnv4_mm
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


# Backbones of other projects, by a key that each of them has.
_OTHERS = {
    r".+\.relative_position_bias_table": "Swin Transformer",
    r"(.+\.)?cls_token": "Vision Transformer",
}
# Blocks of the third stage, and whether they are bottlenecks -> depth of a ResNet.
_RESNETS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}

# The first whose marker is found counts.
_KINDS = (
    _Kind(
        name="BEVFormerV2",
        marker=r"pts_bbox_head\..+",
        classes=r"pts_bbox_head\.cls_branches\.0\.6\.weight",
        config="bevformerv2_{backbone}_*.py",
    ),
    _Kind(
        name="Cascade Mask R-CNN",
        marker=r"roi_head\.bbox_head\.0\..+",
        classes=r"roi_head\.bbox_head\.0\.fc_cls\.weight",
        background=True,
        config="cascade-mask-rcnn_{backbone}_*.py",
    ),
    _Kind(
        name="Mask R-CNN",
        marker=r"roi_head\.mask_head\..+",
        classes=r"roi_head\.bbox_head\.fc_cls\.weight",
        background=True,
        config="mask-rcnn_{backbone}_*.py",
    ),
    _Kind(
        name="DINO",
        marker=r"(dn_query_generator|bbox_head)\.label_embedding\.weight",
        classes=r"bbox_head\.cls_branches\.0\.weight",
        config="dino-4scale_{backbone}_*.py",
    ),
    _Kind(
        name="Mask2Former",
        marker=r"decode_head\.transformer_decoder\..+",
        classes=r"decode_head\.cls_embed\.weight",
        background=True,
        config="mask2former_{backbone}_*.py",
    ),
    _Kind(
        name="UPerNet",
        marker=r"decode_head\.psp_modules\..+",
        classes=r"decode_head\.conv_seg\.weight",
        config="upernet_{backbone}_*.py",
    ),
    _Kind(
        name="a classifier",
        marker=r"(conv_head\.0|head\.conv|head\.conv_head\.0)\.weight",
        classes=r"head\.(fc\.|head\.)?weight",
        config="{backbone}_*.py",
    ),
)


def identify(weights: Mapping[str, Tensor], meta: Any = None) -> str:
    """Describes the model that a state dict belongs to, and names the configs that fit.

    Args:
        weights: State dict in either spelling, without wrapper prefixes.
        meta: The ``meta`` of the checkpoint, if there is one; names the config it was trained with.

    Returns:
        One line, such as "Mask R-CNN with FlashInternImage-S, 80 classes; use
        mask-rcnn_flash-internimage-s_fpn_8xb2-1x_coco.py or ...".
    """
    backbone, slug = _backbone(weights)
    if backbone is None:
        backbone, slug = _other_backbone(weights)
    kind = next((k for k in _KINDS if _first_match(k.marker, weights)), None)
    if kind is None:
        parts = sorted({key.split(".", 1)[0] for key in weights})
        found = f"{backbone} alone" if backbone else f"a model with the parts {', '.join(parts)}"
    else:
        found = f"{kind.name} with {backbone or 'another backbone'}"
        key = _first_match(kind.classes, weights)
        if key and weights[key].dim():
            found += f", {weights[key].shape[0] - kind.background} classes"
        if slug and (configs := _configs(kind.config.format(backbone=slug))):
            found += f"; use {' or '.join(configs)}"
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


def _other_backbone(weights: Mapping[str, Tensor]) -> tuple[str | None, str | None]:
    """As ``_backbone``, for well-known backbones of other projects."""
    for marker, name in _OTHERS.items():
        if _first_match(marker, weights):
            return name, None
    if (last := _first_match(r"(.+\.)?layer4\.\d+\.conv2\.weight", weights)) is None:
        return None, None
    prefix = last.rpartition("layer4.")[0]
    blocks = {
        key.split(".")[1]
        for key in (k.removeprefix(prefix) for k in weights)
        if key.startswith("layer3.")
    }
    bottleneck = f"{prefix}layer4.0.conv3.weight" in weights
    depth = _RESNETS.get((len(blocks), bottleneck))
    return (f"ResNet-{depth}", f"r{depth}") if depth else ("ResNet", None)


def _configs(pattern: str) -> list[str]:
    """File names of this package's configs that match a pattern, installed or in a clone."""
    package = Path(dcnv4_mm.__file__).parent
    folders = (package / ".mim" / "configs", package.parent / "configs")
    folder = next((path for path in folders if path.is_dir()), None)
    # Those for data of one's own have other classes.
    return (
        sorted(p.name for p in folder.rglob(pattern) if "own-data" not in p.name) if folder else []
    )


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
