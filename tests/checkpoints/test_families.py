"""Names of whole models: the families' rules, on names alone."""

import pytest

from dcnv4_mm.checkpoints import KeyRule, convert
from dcnv4_mm.checkpoints.families import CLASSIFIER, FAMILIES, Family, find_families

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


def test_dino_names_there_and_back():
    (dino,) = (family for family in FAMILIES if family.name == "DINO")
    assert list(convert(DINO_NAMES, dino.rules)) == list(DINO_NAMES.values())
    ours = dict.fromkeys(DINO_NAMES.values())
    assert list(convert(ours, [rule.inverse() for rule in dino.rules])) == list(DINO_NAMES)
    assert convert(ours, dino.rules) == ours


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


def test_classifier_names_there_and_back():
    ours = dict.fromkeys(CLASSIFIER_NAMES.values())
    assert list(convert(CLASSIFIER_NAMES, CLASSIFIER.rules)) == list(ours)
    assert list(convert(ours, [r.inverse() for r in CLASSIFIER.rules])) == list(CLASSIFIER_NAMES)
    assert convert(ours, CLASSIFIER.rules) == ours
    assert find_families(ours) == [CLASSIFIER]
    # This package's own classifier is none of a host's.
    assert find_families(["patch_embed.conv1.weight", "head.conv.weight", "head.fc.bias"]) == []


def test_a_family_is_known_by_its_mark():
    assert [family.name for family in find_families(DINO_NAMES.values())] == ["DINO"]
    assert find_families(DINO_NAMES) == []
    assert [family.name for family in find_families(DINO_NAMES, released=True)] == ["DINO"]
    assert find_families(["backbone.patch_embed.conv1.bias", "neck.weight"], released=True) == []


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_marks_are_unlike(family):
    others = [other for other in FAMILIES if other is not family]
    assert all(other.mark != family.mark for other in others)
    assert convert({family.mark: 0}, family.rules) == {family.mark: 0}


def test_names_without_a_counterpart():
    family = Family(name="x", mark="m", rules=(), dropped=("head.{i}.empty_weight", "loss.{rest}"))
    assert family.drops("head.2.empty_weight")
    assert family.drops("loss.a.b")
    assert not family.drops("head.2.3.empty_weight")


def test_rest_of_a_name_may_have_dots():
    rule = KeyRule("a.{i}.old.{rest}", "b.{i}.{rest}")
    assert rule.apply("a.1.old.x.y.z") == "b.1.x.y.z"
    assert rule.inverse().apply("b.1.x.y.z") == "a.1.old.x.y.z"
    assert rule.apply("a.1.old.") is None
