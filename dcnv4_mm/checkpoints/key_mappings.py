"""The keys of released models, and of their parts, in the released spelling and in ours.

Our spelling of a host's model is the host's. Mask R-CNN, Cascade Mask R-CNN and UPerNet differ in
the backbone alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dcnv4_mm.checkpoints.flash_intern_image import RULES, is_head
from dcnv4_mm.checkpoints.rules import KeyRule, convert

__all__ = [
    "CLASSIFIER",
    "DINO",
    "FLASH_INTERN_IMAGE",
    "KEY_MAPPINGS",
    "MASK2FORMER",
    "ModelKeyMapping",
    "convert_keys",
    "find_key_mappings",
]

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class ModelKeyMapping:
    """The released spelling of the keys of one kind of model, or of a part of a model.

    Attributes:
        name: What the model or part is called.
        marker_key: A key, in our spelling, that every such model has, and no other model.
        rules: From the released keys to ours. The first rule that matches a key is applied, in
            both directions.
    """

    name: str
    marker_key: str
    rules: tuple[KeyRule, ...]

    @property
    def inverse_rules(self) -> tuple[KeyRule, ...]:
        """From our keys to the released ones."""
        return tuple(rule.inverse() for rule in self.rules)

    @property
    def released_marker_key(self) -> str:
        """The marker key in the released spelling."""
        return next(iter(convert({self.marker_key: None}, self.inverse_rules)))

    def find_prefixes(self, keys: Iterable[str], *, released: bool = False) -> list[str]:
        """Finds the key prefixes of such models in a state dict.

        Args:
            keys: Keys of the state dict.
            released: Whether the keys are in the released spelling.

        Returns:
            One key prefix for each, such as ``backbone.``; an empty str for the state dict itself.
        """
        marker = self.released_marker_key if released else self.marker_key
        return [
            key.removesuffix(marker) for key in keys if key == marker or key.endswith(f".{marker}")
        ]


FLASH_INTERN_IMAGE = ModelKeyMapping(
    name="FlashInternImage",
    # The second norm of the stem distinguishes it from other backbones with a `patch_embed`.
    marker_key="patch_embed.norm2.weight",
    rules=RULES,
)

DINO = ModelKeyMapping(
    name="DINO",
    marker_key="dn_query_generator.label_embedding.weight",
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
            # The activation between the two layers has no index in mmdet 3.
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

# Mask2Former's head, `decode_head` in mmseg.
MASK2FORMER = ModelKeyMapping(
    name="Mask2Former",
    marker_key="transformer_decoder.layers.0.cross_attn.attn.in_proj_weight",
    rules=tuple(
        KeyRule(f"{part}.layers.{{i}}.{released}", f"{part}.layers.{{i}}.{ours}")
        for part, released, ours in (
            ("pixel_decoder.encoder", "attentions.0.{rest}", "self_attn.{rest}"),
            ("pixel_decoder.encoder", "ffns.0.{rest}", "ffn.{rest}"),
            # The original's decoder layers attend to the image first, then to each other.
            ("transformer_decoder", "attentions.0.{rest}", "cross_attn.{rest}"),
            ("transformer_decoder", "attentions.1.{rest}", "self_attn.{rest}"),
            ("transformer_decoder", "ffns.0.{rest}", "ffn.{rest}"),
        )
    ),
)

# mmpretrain's classifier. The released one has no key prefix for the backbone, so the backbone's
# rules are repeated with it.
CLASSIFIER = ModelKeyMapping(
    name="classifier",
    marker_key="head.conv_head.0.weight",
    rules=(
        *(KeyRule(r.released, f"backbone.{r.ours}") for r in RULES if not is_head(r.ours)),
        KeyRule("patch_embed.{rest}", "backbone.patch_embed.{rest}"),
        KeyRule("levels.{rest}", "backbone.levels.{rest}"),
        KeyRule("conv_head.{rest}", "head.conv_head.{rest}"),
        KeyRule("head.{p}", "head.head.{p}"),
        # Our own classifier, a FlashInternImage with `num_classes`.
        KeyRule("head.conv.{p}", "head.conv_head.0.{p}"),
        KeyRule("head.norm.{p}", "head.conv_head.1.0.{p}"),
        KeyRule("head.fc.{p}", "head.head.{p}"),
    ),
)

KEY_MAPPINGS = (FLASH_INTERN_IMAGE, DINO, MASK2FORMER, CLASSIFIER)


def find_key_mappings(
    keys: Iterable[str], *, released: bool = False
) -> list[tuple[str, ModelKeyMapping]]:
    """Finds the mappings that apply to a model or file.

    Args:
        keys: Keys of its state dict.
        released: Whether they are in the released spelling. A classification file then counts as a
            FlashInternImage with ``num_classes``, not as mmpretrain's classifier.

    Returns:
        Pairs of a key prefix and a mapping, in the order in which released keys are converted.
    """
    keys = list(keys)
    mappings = [m for m in KEY_MAPPINGS if not (released and m is CLASSIFIER)]
    return [(p, m) for m in mappings for p in m.find_prefixes(keys, released=released)]


def convert_keys(
    weights: Mapping[str, _Value],
    mappings: Sequence[tuple[str, ModelKeyMapping]],
    *,
    to_released: bool = False,
) -> dict[str, _Value]:
    """Renames the keys of a state dict by mappings; order and values are kept.

    Args:
        weights: State dict.
        mappings: Result of :func:`find_key_mappings`.
        to_released: From our spelling to the released one, instead of the other way round.

    Returns:
        A new dict.

    Raises:
        ValueError: Two entries would get the same key.
    """
    for prefix, mapping in reversed(mappings) if to_released else mappings:
        rules = mapping.inverse_rules if to_released else mapping.rules
        weights = convert(weights, rules, prefix=prefix)
    return dict(weights)
