"""Rules on names, and the report."""

import pytest
from helpers import manifest, manifest_stems

from dcnv4_mm.checkpoints import ConversionReport, KeyRule, convert
from dcnv4_mm.checkpoints.flash_intern_image import RULES, is_layer_scale

RULE = KeyRule("levels.{i}.norm.0.{p}", "levels.{i}.norm.{p}")


def test_rule_renames_its_family_alone():
    assert RULE.apply("levels.12.norm.0.bias") == "levels.12.norm.bias"
    for other in ("levels.1.norm.bias", "xlevels.1.norm.0.bias", "levels.1.2.norm.0.bias"):
        assert RULE.apply(other) is None


def test_dots_of_a_template_are_dots():
    assert RULE.apply("levelsX1Xnorm.0.bias") is None


def test_inverse_leads_back():
    assert RULE.inverse().apply("levels.12.norm.bias") == "levels.12.norm.0.bias"
    assert RULE.inverse().inverse() == RULE


def test_convert_keeps_order_values_and_other_names():
    weights = {"b": 1, "x.levels.0.norm.0.p": 2, "levels.0.norm.0.p": 3}
    converted = convert(weights, [RULE], prefix="x.")
    assert list(converted.items()) == [("b", 1), ("x.levels.0.norm.p", 2), ("levels.0.norm.0.p", 3)]
    assert "x.levels.0.norm.0.p" in weights


def test_two_spellings_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"levels\.0\.norm\.p.*twice"):
        convert({"levels.0.norm.0.p": 1, "levels.0.norm.p": 2}, [RULE])


@pytest.mark.parametrize("stem", manifest_stems("classification"))
def test_converting_twice_changes_nothing(stem):
    once = convert(manifest("classification", stem), RULES)
    assert convert(once, RULES) == once


def test_layer_scales_are_told_from_other_names():
    assert is_layer_scale("backbone.levels.0.blocks.3.gamma2")
    assert not is_layer_scale("levels.0.blocks.3.dcn.gamma1")


def test_report_is_a_few_readable_lines():
    names = [f"levels.0.blocks.{i}.gamma1" for i in range(20)]
    report = ConversionReport(
        entry="model_ema",
        loaded=["a", "b"],
        renamed={"a.0": "a"},
        dropped={"head.bias": "no head"},
        kept=dict.fromkeys(names, "no layer scale"),
    )
    assert report.fits
    assert str(report).splitlines() == [
        "2 tensors loaded, from the entry 'model_ema'; 1 renamed, as a.0 -> a",
        "left out 1 (no head): head.bias",
        "unchanged in the model 20 (no layer scale): levels.0.blocks.0.gamma1, "
        "levels.0.blocks.1.gamma1 and 18 more",
    ]


def test_report_of_what_does_not_fit():
    report = ConversionReport(
        entry="",
        loaded=["a"],
        missing=list("abcdefgh"),
        unexpected=["x", "y"],
        mismatched={"m": "(1,) and (2,)", "n": "int and float"},
    )
    assert not report.fits
    assert str(report).splitlines() == [
        "1 tensors would fit, from the file itself; 0 renamed",
        "missing 8: a, b, c, d, e, f, g, h",
        "unexpected 2: x, y",
        "of another shape or type 2: m ((1,) and (2,)), n (int and float)",
    ]
