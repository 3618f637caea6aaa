"""Whole models of transformers, before and after their attention is swapped."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is not installed")

import transformers_models as tiny_models

from dcnv4_mm.integrations import swap_deformable_attention

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
# The second image is smaller than the first, which is what valid ratios are for.
MASK = torch.ones(2, 64, 96, dtype=torch.long)
MASK[1, 40:] = 0
MASK[1, :, 70:] = 0


TOKENS = torch.tensor([[101, 5, 1012, 6, 7, 1012, 102]] * 2)
CLASSES = torch.tensor([[1, 4, 49], [1, 5, 49]])
# Model, arguments beside the images, attention layers.
MODELS = {
    "deformable_detr": (tiny_models.deformable_detr, {"pixel_mask": MASK}, 3),
    "two_stage": (
        partial(tiny_models.deformable_detr, two_stage=True, with_box_refine=True),
        {"pixel_mask": MASK},
        3,
    ),
    "rt_detr": (partial(tiny_models.hybrid, "RTDetr"), {}, 2),
    "rt_detr_v2": (partial(tiny_models.hybrid, "RTDetrV2"), {}, 2),
    "d_fine": (
        partial(tiny_models.hybrid, "DFine", decoder_n_points=[3, 6, 3], lqe_hidden_dim=8),
        {},
        2,
    ),
    "grounding_dino": (tiny_models.grounding_dino, {"pixel_mask": MASK, "input_ids": TOKENS}, 3),
    "omdet": (
        tiny_models.omdet,
        {
            "classes_input_ids": CLASSES,
            "classes_attention_mask": torch.ones_like(CLASSES),
            "classes_structure": torch.tensor([1, 1]),
            "tasks_input_ids": CLASSES,
            "tasks_attention_mask": torch.ones_like(CLASSES),
        },
        2,
    ),
    "mask2former": (tiny_models.mask2former, {"pixel_mask": MASK}, 2),
    "oneformer": (
        tiny_models.oneformer,
        {"pixel_mask": MASK, "task_inputs": torch.rand(2, 77).double()},
        2,
    ),
}


def make_model(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().double().eval()
    for layer_name, layer in model.named_modules():
        # They start at whole pixels, where grid_sample has no derivative.
        if layer_name.endswith(("sampling_offsets", "attention_weights")):
            nn.init.normal_(layer.weight, std=0.3)
            nn.init.normal_(layer.bias, std=0.3)
    return model


def run(model, arguments):
    """All floating-point outputs, and the gradients of the parameters."""
    images = IMAGES[:, :, :, :64] if "classes_input_ids" in arguments else IMAGES
    outputs = model(images, **arguments).to_tuple()
    tensors = [x for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    total = sum(x.clamp(-10, 10).square().sum() for x in tensors if x.requires_grad)
    gradients = torch.autograd.grad(total, parameters.values(), allow_unused=True)
    return tensors, dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_and_gradients(name):
    _, arguments, count = MODELS[name]
    model = make_model(name)
    swapped = copy.deepcopy(model)
    assert swap_deformable_attention(swapped) == count
    (outputs, gradients), (expected, other) = run(swapped, arguments), run(model, arguments)
    assert len(outputs) >= 2
    torch.testing.assert_close(outputs, expected, rtol=1e-7, atol=1e-7)
    reached = [key for key, value in gradients.items() if value is not None]
    assert any("sampling_offsets" in key for key in reached)
    for key in reached:
        torch.testing.assert_close(gradients[key], other[key], rtol=1e-7, atol=1e-7)
