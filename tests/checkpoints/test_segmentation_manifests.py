"""Keys and shapes of every released segmentor against mmseg's models, both ways."""

import pytest
import torch
from helpers import build_model, load_json, manifest

from dcnv4_mm.checkpoints import convert, load_released, to_released
from dcnv4_mm.checkpoints.key_mappings import MASK2FORMER, convert_keys, find_key_mappings
from dcnv4_mm.checkpoints.loading import match_state_dict

pytestmark = [pytest.mark.mmseg, pytest.mark.mmdet]

MODELS = load_json("ade20k_manifests")["models"]["segmentation"]


def shapes_of(state_dict):
    return {name: list(tensor.shape) for name, tensor in state_dict.items()}


def attention_number(name):
    """Where an attention stands in a decoder layer; mmdet numbers none, and names self first."""
    parts = name.split("attentions.")
    return (parts[0], int(parts[1][0])) if len(parts) == 2 else (name, 0)


def test_all_eight_are_here():
    assert len(MODELS) == 8


@pytest.mark.parametrize("stem", MODELS)
def test_names_shapes_and_places(stem):
    released, (model, _) = manifest("segmentation", stem), build_model(stem, device="meta")
    own = model.state_dict()
    assert convert_keys(released, find_key_mappings(own)) == shapes_of(own)
    assert convert_keys(released, find_key_mappings(released, released=True)) == shapes_of(own)
    assert sum(p.numel() for p in model.parameters()) == MODELS[stem]["num_parameters"]
    assert set(MODELS[stem]["buffers"]) == set(own) - {n for n, _ in model.named_parameters()}
    back = shapes_of(to_released(model))
    assert back == released
    # The i-th tensor of a file is the i-th of the model, but for the order of two attentions.
    order = list(back)
    if stem.startswith("mask2former"):
        first = {}
        for index, name in enumerate(order):
            first.setdefault(attention_number(name)[0], index)
        order.sort(key=lambda name: (first[attention_number(name)[0]], attention_number(name)[1]))
    assert order == list(released)
    numbered = {
        name: torch.tensor(float(index)).expand(shape)
        for index, (name, shape) in enumerate(released.items())
    }
    for name in MODELS[stem]["buffers"]:
        if name.endswith("num_batches_tracked"):
            numbered[name] = numbered[name].long()
    weights, report = match_state_dict(model, {"meta": {}, "state_dict": numbered})
    places = dict(zip(to_released(model), weights.values(), strict=True))
    for index, name in enumerate(released):
        assert (places[name] == index).all(), name
    assert not report.dropped
    assert not report.kept
    renamed_in_head = [name for name in report.renamed if name.startswith("decode_head.")]
    assert bool(renamed_in_head) == stem.startswith("mask2former")


def test_the_order_of_the_decoders_attentions():
    """Released layers attend to the image first (0), then to each other (1)."""
    prefix = "decode_head.transformer_decoder.layers.4."
    names = {f"{prefix}attentions.0.attn.in_proj_bias": 0, f"{prefix}norms.0.bias": 1}
    assert list(convert(names, MASK2FORMER.rules, prefix="decode_head.")) == [
        f"{prefix}cross_attn.attn.in_proj_bias",
        f"{prefix}norms.0.bias",
    ]


@pytest.mark.parametrize(
    ("config", "file", "first"),
    [
        ("upernet_flash_internimage_t_512_160k_ade20k", "upernet_flash_internimage_s_512", "dw"),
        (
            "mask2former_flash_internimage_t_512_160k_ade20k_ss",
            "mask2former_flash_internimage_s_640",
            "patch_embed",
        ),
        (
            "mask2former_flash_internimage_t_512_160k_ade20k_ss",
            "upernet_flash_internimage_t_512",
            "decode_head.pixel_decoder",
        ),
    ],
)
def test_files_of_other_models_are_refused(config, file, first):
    model, _ = build_model(config, device="meta")
    (stem,) = (stem for stem in MODELS if stem.startswith(file))
    other = {n: torch.tensor(0.0).expand(s) for n, s in manifest("segmentation", stem).items()}
    with pytest.raises(ValueError, match="does not fit this EncoderDecoder") as caught:
        load_released(model, {"state_dict": other})
    assert "missing" in str(caught.value) or "of another shape" in str(caught.value)
    assert first in str(caught.value)
