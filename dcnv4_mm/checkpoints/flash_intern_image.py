"""FlashInternImage, as a backbone and as a classifier: how the released files spell its names.

The original wraps every norm in a container, which numbers it. The rest is spelled alike.
"""

import re
from collections.abc import Iterable

from dcnv4_mm.checkpoints.rules import KeyRule

__all__ = ["RULES", "find_backbones", "has_released_names", "is_head", "is_layer_scale"]

RULES = (
    KeyRule("patch_embed.norm{n}.1.{p}", "patch_embed.norm{n}.{p}"),
    KeyRule("levels.{i}.blocks.{j}.norm{n}.0.{p}", "levels.{i}.blocks.{j}.norm{n}.{p}"),
    KeyRule(
        "levels.{i}.blocks.{j}.dcn.center_feature_scale_proj_{p}",
        "levels.{i}.blocks.{j}.dcn.center_feature_scale_proj.{p}",
    ),
    KeyRule("levels.{i}.norm.0.{p}", "levels.{i}.norm.{p}"),
    KeyRule("levels.{i}.downsample.norm.1.{p}", "levels.{i}.downsample.norm.{p}"),
    KeyRule("conv_head.0.{p}", "head.conv.{p}"),
    KeyRule("conv_head.1.0.{p}", "head.norm.{p}"),
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
