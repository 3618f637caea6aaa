"""FlashInternImage and InternImage, backbones and classifiers: how released files spell the names.

The originals wrap every norm in a container, which numbers it. The rest is spelled alike, but for
InternImage's offset branch and the attention pooling of its largest classifiers.
"""

import re
from collections.abc import Iterable

from dcnv4_mm.checkpoints.rules import KeyRule

__all__ = [
    "RULES",
    "find_backbones",
    "has_released_names",
    "is_dcnv3",
    "is_head",
    "is_layer_scale",
]

RULES = (
    KeyRule("patch_embed.norm{n}.1.{p}", "patch_embed.norm{n}.{p}"),
    KeyRule("levels.{i}.blocks.{j}.norm{n}.0.{p}", "levels.{i}.blocks.{j}.norm{n}.{p}"),
    KeyRule(
        "levels.{i}.blocks.{j}.dcn.center_feature_scale_proj_{p}",
        "levels.{i}.blocks.{j}.dcn.center_feature_scale_proj.{p}",
    ),
    KeyRule("levels.{i}.blocks.{j}.dcn.dw_conv.0.{p}", "levels.{i}.blocks.{j}.dcn.dw_conv.{p}"),
    KeyRule("levels.{i}.blocks.{j}.dcn.dw_conv.1.1.{p}", "levels.{i}.blocks.{j}.dcn.dw_norm.{p}"),
    KeyRule(
        "levels.{i}.blocks.{j}.res_post_norm{n}.0.{p}", "levels.{i}.blocks.{j}.res_post_norm{n}.{p}"
    ),
    KeyRule("levels.{i}.norm.0.{p}", "levels.{i}.norm.{p}"),
    KeyRule("levels.{i}.post_norms.{n}.0.{p}", "levels.{i}.post_norms.{n}.{p}"),
    KeyRule("levels.{i}.downsample.norm.1.{p}", "levels.{i}.downsample.norm.{p}"),
    KeyRule("conv_head.0.{p}", "head.conv.{p}"),
    KeyRule("conv_head.1.0.{p}", "head.norm.{p}"),
    KeyRule("dcnv3_head_x4.0.{p}", "head.conv_x4.{p}"),
    KeyRule("dcnv3_head_x3.{p}", "head.conv_x3.{p}"),
    *(KeyRule(f"clip_projector.norm1_{n}.0.{{p}}", f"head.pool.norm_{n}.{{p}}") for n in "qkv"),
    *(KeyRule(f"clip_projector.cross_dcn.{n}_bias", f"head.pool.{n}.bias") for n in "qkv"),
    KeyRule("clip_projector.cross_dcn.{n}.{p}", "head.pool.{n}.{p}"),
    KeyRule("fc_norm.0.{p}", "head.fc_norm.{p}"),
    KeyRule("head.{p}", "head.fc.{p}"),
)

_LAYER_SCALE = re.compile(r"(.+\.)?levels\.\d+\.blocks\.\d+\.gamma[12]")


def find_backbones(names: Iterable[str]) -> list[str]:
    """Finds what stands before this backbone's names in a model, such as ``backbone.``.

    Args:
        names: This package's names of a whole model.

    Returns:
        One prefix for each FlashInternImage in the model; empty text for the model itself.
    """
    # The two norms of the stem tell it from other backbones that have a `patch_embed`.
    mark = "patch_embed.norm2.weight"
    return [name.removesuffix(mark) for name in names if re.fullmatch(rf"(.+\.)?{mark}", name)]


def has_released_names(names: Iterable[str], prefix: str = "") -> bool:
    """Whether a state dict holds this backbone in the released spelling, below ``prefix``."""
    mark = "patch_embed.norm1.1.weight"
    return any(re.fullmatch(rf"{re.escape(prefix)}(.+\.)?{re.escape(mark)}", n) for n in names)


def is_head(name: str) -> bool:
    """Whether this package's name, without a prefix, belongs to the classification head."""
    return name.startswith("head.")


def is_layer_scale(name: str) -> bool:
    """Whether this package's name, with any prefix, is a layer scale of a block."""
    return _LAYER_SCALE.fullmatch(name) is not None


def is_dcnv3(name: str) -> bool:
    """Whether this package's name, with any prefix, is one that InternImage alone has."""
    return name.endswith(".dcn.mask.weight")
