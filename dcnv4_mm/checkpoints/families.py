"""Whole models whose released names differ from the hosts' beyond the backbone.

What stands here is renamed after the backbone; Mask R-CNN, Cascade and UperNet need nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dcnv4_mm.checkpoints.flash_intern_image import RULES, is_head
from dcnv4_mm.checkpoints.rules import KeyRule, convert

__all__ = ["CLASSIFIER", "FAMILIES", "MASK2FORMER", "Family", "find_families"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one kind, and how their released files spell the names.

    Attributes:
        name: What the models are called.
        mark: A name, in the hosts' spelling, that all models of the family have, and no others.
        rules: From the released names to the hosts'. The first rule that knows a name counts, in
            both directions.
        dropped: Templates, as in :class:`KeyRule`, of released names that the hosts have no use
            for, such as constant buffers.
    """

    name: str
    mark: str
    rules: tuple[KeyRule, ...]
    dropped: tuple[str, ...] = ()

    def drops(self, name: str) -> bool:
        """Whether a released name has no counterpart in the hosts' models."""
        return any(KeyRule(template, template).apply(name) for template in self.dropped)


_DINO = Family(
    name="DINO",
    mark="dn_query_generator.label_embedding.weight",
    rules=tuple(
        KeyRule(f"bbox_head.{released}", ours)
        for released, ours in (
            ("transformer.level_embeds", "level_embed"),
            (
                "transformer.encoder.layers.{i}.attentions.0.{rest}",
                "encoder.layers.{i}.self_attn.{rest}",
            ),
            ("transformer.encoder.layers.{i}.ffns.0.{rest}", "encoder.layers.{i}.ffn.{rest}"),
            ("transformer.encoder.{rest}", "encoder.{rest}"),
            (
                "transformer.decoder.layers.{i}.attentions.0.{rest}",
                "decoder.layers.{i}.self_attn.{rest}",
            ),
            (
                "transformer.decoder.layers.{i}.attentions.1.{rest}",
                "decoder.layers.{i}.cross_attn.{rest}",
            ),
            ("transformer.decoder.layers.{i}.ffns.0.{rest}", "decoder.layers.{i}.ffn.{rest}"),
            # The activation between the two layers has no number in mmdet 3.
            ("transformer.decoder.ref_point_head.0.{p}", "decoder.ref_point_head.layers.0.{p}"),
            ("transformer.decoder.ref_point_head.2.{p}", "decoder.ref_point_head.layers.1.{p}"),
            ("transformer.decoder.{rest}", "decoder.{rest}"),
            ("transformer.enc_output.{p}", "memory_trans_fc.{p}"),
            ("transformer.enc_output_norm.{p}", "memory_trans_norm.{p}"),
            ("transformer.query_embed.weight", "query_embedding.weight"),
            ("label_embedding.weight", "dn_query_generator.label_embedding.weight"),
        )
    ),
)

MASK2FORMER = Family(
    name="Mask2Former",
    mark="decode_head.transformer_decoder.layers.0.cross_attn.attn.in_proj_weight",
    rules=tuple(
        KeyRule(
            f"decode_head.{part}.layers.{{i}}.{released}", f"decode_head.{part}.layers.{{i}}.{ours}"
        )
        for part, released, ours in (
            ("pixel_decoder.encoder", "attentions.0.{rest}", "self_attn.{rest}"),
            ("pixel_decoder.encoder", "ffns.0.{rest}", "ffn.{rest}"),
            # The original's decoder layers look at the picture first, then at each other.
            ("transformer_decoder", "attentions.0.{rest}", "cross_attn.{rest}"),
            ("transformer_decoder", "attentions.1.{rest}", "self_attn.{rest}"),
            ("transformer_decoder", "ffns.0.{rest}", "ffn.{rest}"),
        )
    ),
)

# mmpretrain's classifier. The released one has no part called backbone, so that the backbone's own
# rules stand here too.
CLASSIFIER = Family(
    name="classifier",
    mark="head.conv_head.0.weight",
    rules=(
        *(KeyRule(r.released, f"backbone.{r.ours}") for r in RULES if not is_head(r.ours)),
        KeyRule("patch_embed.{rest}", "backbone.patch_embed.{rest}"),
        KeyRule("levels.{rest}", "backbone.levels.{rest}"),
        KeyRule("conv_head.{rest}", "head.conv_head.{rest}"),
        KeyRule("head.{p}", "head.head.{p}"),
    ),
)

FAMILIES = (_DINO, MASK2FORMER, CLASSIFIER)


def find_families(names: Iterable[str], *, released: bool = False) -> list[Family]:
    """Finds the families that a model, or a file, belongs to.

    Args:
        names: Names of a whole model.
        released: Whether they may be in the released spelling.

    Returns:
        The families, at most one for the models of today.
    """
    weights = dict.fromkeys(names)
    return [
        family
        for family in FAMILIES
        if family.mark in (convert(weights, family.rules) if released else weights)
    ]
