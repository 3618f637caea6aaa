"""Errors of flash_deform_attn and ms_deform_attn for bad input."""

import pytest
import torch

from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn

SHAPES = [(5, 7), (3, 4)]
_VALUE, _PACKED = torch.zeros(2, 47, 2, 4), torch.zeros(2, 6, 2, 18)
_LOCATIONS, _WEIGHTS = torch.zeros(2, 6, 2, 2, 3, 2), torch.zeros(2, 6, 2, 2, 3)

# Name -> error, part of its message, and the arguments that differ from valid ones.
BAD_FLASH_INPUTS = {
    "value_rank": (ValueError, "four axes", dict(value=torch.zeros(2, 47, 8))),
    "value_integer": (TypeError, "got torch.int64", dict(value=_VALUE.long())),
    "no_heads": (ValueError, "at least one head", dict(value=torch.zeros(2, 47, 0, 4))),
    "no_channels": (ValueError, "at least one head", dict(value=torch.zeros(2, 47, 2, 0))),
    "pixels": (ValueError, r"\[\(5, 7\), \(3, 4\)\], 47 rows, got 46", dict(value=_VALUE[:, 1:])),
    "no_levels": (ValueError, "at least one level", dict(spatial_shapes=[])),
    "empty_level": (ValueError, "got 0 x 4", dict(spatial_shapes=[(5, 7), (0, 4)])),
    "negative_level": (ValueError, "got -3 x -4", dict(spatial_shapes=[(5, 7), (-3, -4)])),
    "flat_shapes": (TypeError, "pair of ints", dict(spatial_shapes=[5, 7, 3, 4])),
    "three_numbers": (ValueError, "a pair", dict(spatial_shapes=[(5, 7, 1), (3, 4, 1)])),
    "real_shapes": (TypeError, "pair of ints", dict(spatial_shapes=[(5.0, 7.0), (3.0, 4.0)])),
    "real_shapes_tensor": (TypeError, "integer", dict(spatial_shapes=torch.tensor([[5.0, 7.0]]))),
    "flat_shapes_tensor": (TypeError, r"\(L, 2\)", dict(spatial_shapes=torch.tensor([5, 7]))),
    "packed_rank": (ValueError, "must have the axes", dict(locations_logits=_PACKED[0])),
    "packed_integer": (TypeError, "got torch.int64", dict(locations_logits=_PACKED.long())),
    "packed_width": (
        ValueError,
        r"\(2, 6, 2, 18\), got",
        dict(locations_logits=torch.zeros(2, 6, 2, 19)),
    ),
    "packed_batch": (ValueError, r"\(2, 6, 2, 18\), got \(1,", dict(locations_logits=_PACKED[:1])),
    "packed_heads": (ValueError, r"got \(2, 6, 1, 18\)", dict(locations_logits=_PACKED[:, :, :1])),
    "no_points": (ValueError, "num_points must be at least 1", dict(num_points=0)),
    "other_points": (ValueError, r"\(2, 6, 2, 24\)", dict(num_points=4)),
    "wide_points": (
        TypeError,
        "float64 beside torch.float32",
        dict(locations_logits=_PACKED.double()),
    ),
    "narrow_points": (TypeError, "float32 beside torch.float64", dict(value=_VALUE.double())),
    "half_points": (
        TypeError,
        "float16 beside torch.float32",
        dict(locations_logits=_PACKED.half()),
    ),
    "devices": (ValueError, "one device", dict(locations_logits=_PACKED.to("meta"))),
}

BAD_MS_INPUTS = {
    "value_rank": (ValueError, "four axes", dict(value=torch.zeros(2, 47, 8))),
    "pixels": (ValueError, "47 rows, got 46", dict(value=_VALUE[:, 1:])),
    "locations_rank": (ValueError, "must have the axes", dict(sampling_locations=_LOCATIONS[0])),
    "locations_pairs": (
        ValueError,
        r"2, 3, 2\), got",
        dict(sampling_locations=torch.zeros(2, 6, 2, 2, 3, 3)),
    ),
    "locations_levels": (
        ValueError,
        r"2, 2, 3, 2\), got",
        dict(sampling_locations=_LOCATIONS[:, :, :, :1]),
    ),
    "no_points": (
        ValueError,
        "at least one point",
        dict(sampling_locations=_LOCATIONS[..., :0, :], attention_weights=_WEIGHTS[..., :0]),
    ),
    "weights_points": (
        ValueError,
        "attention_weights must have",
        dict(attention_weights=_WEIGHTS[..., :2]),
    ),
    "weights_queries": (
        ValueError,
        "number of queries, got 6 and 5",
        dict(attention_weights=_WEIGHTS[:, :5]),
    ),
    "weights_integer": (TypeError, "got torch.int64", dict(attention_weights=_WEIGHTS.long())),
    "weights_wide": (
        TypeError,
        "float64 beside torch.float32",
        dict(attention_weights=_WEIGHTS.double()),
    ),
    "devices": (ValueError, "one device", dict(attention_weights=_WEIGHTS.to("meta"))),
}


@pytest.mark.parametrize(
    ("error", "message", "changes"), BAD_FLASH_INPUTS.values(), ids=BAD_FLASH_INPUTS
)
def test_bad_flash_input_is_refused(error, message, changes):
    good = dict(value=_VALUE, spatial_shapes=SHAPES, locations_logits=_PACKED, num_points=3)
    flash_deform_attn(**good)
    with pytest.raises(error, match=message):
        flash_deform_attn(**{**good, **changes})


@pytest.mark.parametrize(("error", "message", "changes"), BAD_MS_INPUTS.values(), ids=BAD_MS_INPUTS)
def test_bad_ms_input_is_refused(error, message, changes):
    good = dict(
        value=_VALUE,
        spatial_shapes=SHAPES,
        sampling_locations=_LOCATIONS,
        attention_weights=_WEIGHTS,
    )
    ms_deform_attn(**good)
    with pytest.raises(error, match=message):
        ms_deform_attn(**{**good, **changes})
