"""Released keys of FlashInternImage and InternImage, as backbones and as classifiers.

The originals wrap every norm in a container with an index. The other keys are the same but for
InternImage's offset branch and the attention pooling of its largest classifiers.
"""

import re

from dcnv4_mm.checkpoints.rules import KeyRule

__all__ = [
    "RULES",
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


def is_head(name: str) -> bool:
    """Whether a key in our spelling, without a key prefix, belongs to the classification head."""
    return name.startswith("head.")


def is_layer_scale(name: str) -> bool:
    """Whether a key in our spelling, with any key prefix, is a layer scale of a block."""
    return _LAYER_SCALE.fullmatch(name) is not None


def is_dcnv3(name: str) -> bool:
    """Whether a key in our spelling, with any key prefix, exists in InternImage alone."""
    return name.endswith(".dcn.mask.weight")
