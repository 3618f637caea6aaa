"""Keys of complete models in both spellings, on keys alone."""

import pytest

from dcnv4_mm.checkpoints import KeyRule, convert
from dcnv4_mm.checkpoints.key_mappings import (
    CLASSIFIER,
    DINO,
    FLASH_INTERN_IMAGE,
    KEY_MAPPINGS,
    MASK2FORMER,
    convert_keys,
    find_key_mappings,
)

RELEASED = "bbox_head.transformer."
DINO_NAMES = {
    f"{RELEASED}level_embeds": "level_embed",
    f"{RELEASED}encoder.layers.3.attentions.0.value_proj.bias": (
        "encoder.layers.3.self_attn.value_proj.bias"
    ),
    f"{RELEASED}encoder.layers.3.ffns.0.layers.0.0.bias": "encoder.layers.3.ffn.layers.0.0.bias",
    f"{RELEASED}encoder.layers.3.norms.1.bias": "encoder.layers.3.norms.1.bias",
    f"{RELEASED}decoder.layers.0.attentions.0.attn.in_proj_bias": (
        "decoder.layers.0.self_attn.attn.in_proj_bias"
    ),
    f"{RELEASED}decoder.layers.0.attentions.1.sampling_offsets.bias": (
        "decoder.layers.0.cross_attn.sampling_offsets.bias"
    ),
    f"{RELEASED}decoder.layers.0.ffns.0.layers.1.bias": "decoder.layers.0.ffn.layers.1.bias",
    f"{RELEASED}decoder.ref_point_head.2.weight": "decoder.ref_point_head.layers.1.weight",
    f"{RELEASED}decoder.norm.weight": "decoder.norm.weight",
    f"{RELEASED}enc_output.weight": "memory_trans_fc.weight",
    f"{RELEASED}enc_output_norm.weight": "memory_trans_norm.weight",
    f"{RELEASED}query_embed.weight": "query_embedding.weight",
    "bbox_head.label_embedding.weight": "dn_query_generator.label_embedding.weight",
    "bbox_head.cls_branches.6.bias": "bbox_head.cls_branches.6.bias",
    "neck.convs.0.gn.bias": "neck.convs.0.gn.bias",
}


def test_dino_keys_there_and_back():
    assert list(convert(DINO_NAMES, DINO.rules)) == list(DINO_NAMES.values())
    ours = dict.fromkeys(DINO_NAMES.values())
    assert list(convert(ours, DINO.inverse_rules)) == list(DINO_NAMES)
    assert convert(ours, DINO.rules) == ours


CLASSIFIER_NAMES = {
    "patch_embed.conv1.weight": "backbone.patch_embed.conv1.weight",
    "patch_embed.norm1.1.weight": "backbone.patch_embed.norm1.weight",
    "levels.0.blocks.3.norm2.0.bias": "backbone.levels.0.blocks.3.norm2.bias",
    "levels.0.blocks.3.dcn.offset_mask.bias": "backbone.levels.0.blocks.3.dcn.offset_mask.bias",
    "levels.0.downsample.norm.1.bias": "backbone.levels.0.downsample.norm.bias",
    "conv_head.0.weight": "head.conv_head.0.weight",
    "conv_head.1.0.running_var": "head.conv_head.1.0.running_var",
    "head.bias": "head.head.bias",
}


def test_classifier_keys_there_and_back():
    ours = dict.fromkeys(CLASSIFIER_NAMES.values())
    assert list(convert(CLASSIFIER_NAMES, CLASSIFIER.rules)) == list(ours)
    assert list(convert(ours, CLASSIFIER.inverse_rules)) == list(CLASSIFIER_NAMES)
    assert convert(ours, CLASSIFIER.rules) == ours
    assert find_key_mappings(ours) == [("", CLASSIFIER)]
    # A FlashInternImage with `num_classes`, in our spelling.
    own = list(convert(CLASSIFIER_NAMES, FLASH_INTERN_IMAGE.rules))
    assert find_key_mappings(own) == []
    assert list(convert(dict.fromkeys(own), CLASSIFIER.rules)) == list(ours)


def test_a_mapping_is_found_by_its_marker_key_at_any_depth():
    assert find_key_mappings(DINO_NAMES.values()) == [("", DINO)]
    assert find_key_mappings(DINO_NAMES) == []
    assert find_key_mappings(DINO_NAMES, released=True) == [("", DINO)]
    assert find_key_mappings(["patch_embed.norm2.weight", "head.fc.weight"]) == [
        ("", FLASH_INTERN_IMAGE)
    ]
    other = ["img_backbone.patch_embed.norm2.weight", "x.patch_embed.projection.weight"]
    assert find_key_mappings(other) == [("img_backbone.", FLASH_INTERN_IMAGE)]
    assert find_key_mappings(["xpatch_embed.norm2.weight", "neck.weight"]) == []


@pytest.mark.parametrize("mapping", KEY_MAPPINGS, ids=lambda mapping: mapping.name)
def test_marker_keys_are_distinct_and_converted(mapping):
    others = [other for other in KEY_MAPPINGS if other is not mapping]
    assert all(other.marker_key != mapping.marker_key for other in others)
    assert convert({mapping.marker_key: 0}, mapping.rules) == {mapping.marker_key: 0}
    assert convert({mapping.released_marker_key: 0}, mapping.rules) == {mapping.marker_key: 0}


def test_parts_of_a_model_there_and_back():
    released = {
        "backbone.patch_embed.norm2.1.weight": 0,
        f"decode_head.{MASK2FORMER.released_marker_key}": 1,
        "decode_head.cls_embed.bias": 2,
    }
    mappings = find_key_mappings(released, released=True)
    ours = convert_keys(released, mappings)
    assert list(ours) == [
        "backbone.patch_embed.norm2.weight",
        f"decode_head.{MASK2FORMER.marker_key}",
        "decode_head.cls_embed.bias",
    ]
    assert find_key_mappings(ours) == mappings
    assert convert_keys(ours, mappings, to_released=True) == released


def test_the_rest_of_a_key_may_have_dots():
    rule = KeyRule("a.{i}.old.{rest}", "b.{i}.{rest}")
    assert rule.apply("a.1.old.x.y.z") == "b.1.x.y.z"
    assert rule.inverse().apply("b.1.x.y.z") == "a.1.old.x.y.z"
    assert rule.apply("a.1.old.") is None
