"""DINO's training losses and gradients against the original's, with and without denoising."""

import math

import numpy as np
import pytest
import torch
from helpers import (
    build_model,
    dino_samples,
    dino_weights,
    images,
    load_arrays,
    load_json,
)

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.models.layers import CdnQueryGenerator

from dcnv4_mm.checkpoints import load_released
from dcnv4_mm.checkpoints.key_mappings import DINO, FLASH_INTERN_IMAGE, convert_keys

pytestmark = pytest.mark.mmdet

ORIGINAL = "dino_4scale_flash_internimage_t_1x_coco"
RECORDED = load_json("dino_t_losses")["dino_t_padded_batch"]
DRAWN = {
    key.split("/")[1]: torch.from_numpy(array)
    for key, array in load_arrays("dino_t_losses").items()
}
ORDER = torch.from_numpy(load_arrays("dino_t")["padded_batch/topk_indices"])


@pytest.fixture(scope="module")
def model():
    """Training with all modules in evaluation mode: the recording has no drop path."""
    model, _ = build_model(ORIGINAL)
    load_released(model, {"state_dict": dino_weights(ORIGINAL)})
    model.eval()
    model.training = True
    return model


def padded_images():
    height, width = RECORDED["batch_input_shape"]
    batch = images(height, width, batch=2, seed=RECORDED["image_seed"])
    for image, (h, w) in zip(batch, RECORDED["img_shapes"], strict=True):
        image[:, h:] = 0
        image[:, :, w:] = 0
    return batch


def no_queries(generator, samples):
    """No denoising: the original calls its losses without."""
    empty = torch.zeros(len(samples), 0, generator.embed_dims)
    return empty, empty[..., :4], None, None


def all_matching(scores, boxes, meta):
    return scores, boxes, None, None


def replay(patch):
    """Lets the generator of denoising queries draw what the original drew."""
    reals = iter([DRAWN["dn_p"], DRAWN["dn_part"] % 1])
    patch.setattr(torch, "rand_like", lambda like: next(reals).reshape(like.shape).clone())

    def randint_like(like, low=0, high=None, dtype=None):
        if dtype is None:
            return DRAWN["dn_new_label"][like]
        return DRAWN["dn_sign"].clone()

    patch.setattr(torch, "randint_like", randint_like)


@pytest.fixture(scope="module")
def forward(model):
    """Function that computes the losses with or without denoising."""

    def forward(variant, inputs):
        with pytest.MonkeyPatch.context() as patch:
            # Otherwise two tokens of nearly the same score could be swapped.
            patch.setattr(torch, "topk", lambda *_, **__: (None, ORDER))
            if variant == "denoising":
                replay(patch)
            else:
                patch.setattr(CdnQueryGenerator, "__call__", no_queries)
                patch.setattr(type(model.bbox_head), "split_outputs", staticmethod(all_matching))
            losses = model.loss(inputs, dino_samples(RECORDED))
        return {name.replace("enc_", "interm_"): loss for name, loss in losses.items()}

    return forward


@pytest.fixture(scope="module")
def trained(model, forward):
    """Losses and gradients with denoising."""
    inputs = padded_images().requires_grad_()
    losses = forward("denoising", inputs)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return RECORDED["variants"]["denoising"], losses, gradients, inputs.grad


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


def test_losses_without_denoising(forward):
    with torch.no_grad():
        losses = forward("no_denoising", padded_images())
    recorded = RECORDED["variants"]["no_denoising"]
    assert values(losses) == pytest.approx(recorded["losses"], rel=1e-5)


def test_losses_with_denoising(trained):
    recorded, losses, _, _ = trained
    assert values(losses) == pytest.approx(recorded["losses"], rel=1e-5)


def test_gradients(trained):
    recorded, _, gradients, input_gradient = trained
    names = dict.fromkeys(recorded["param_grads"])
    ours = convert_keys(names, [("backbone.", FLASH_INTERN_IMAGE), ("", DINO)])
    for name, released in zip(ours, names, strict=True):
        expected, gradient = recorded["param_grads"][released], gradients[name]
        assert gradient.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-3), name
        assert_samples(gradient, expected["samples8"], name)
    assert_samples(input_gradient, recorded["input_grad"]["samples"], "input")


def assert_samples(gradient, expected, name):
    picked = gradient.flatten()[torch.arange(len(expected)) * gradient.numel() // len(expected)]
    largest = gradient.abs().max().item()
    assert picked.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3 * largest), name


def test_norm_of_all_gradients(trained):
    recorded, _, gradients, _ = trained
    squares = sum(g.double().square().sum().item() for g in gradients.values())
    assert math.sqrt(squares) == pytest.approx(recorded["grad_norm_all_parameters"], rel=1e-3)


def test_gradients_reach_every_parameter(trained):
    _, _, gradients, _ = trained
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def test_denoising_queries_are_the_originals(model):
    with pytest.MonkeyPatch.context() as patch:
        replay(patch)
        labels, boxes, mask, meta = model.dn_query_generator(dino_samples(RECORDED))
    expected = DRAWN["dn_labels"]
    embedded = model.dn_query_generator.label_embedding(expected.clamp(min=0))
    assert torch.equal(labels, embedded * (expected >= 0)[..., None])
    assert (boxes - DRAWN["dn_bbox_query"]).abs().max() < 1e-5
    count = mask.numel()
    packed = np.unpackbits(DRAWN["attn_mask"].numpy(), count=count).reshape(mask.shape)
    assert torch.equal(mask, torch.from_numpy(packed).bool())
    assert meta["num_denoising_groups"] == 33


def test_denoising_is_deterministic(model):
    """The seed alone decides; other draws give other losses."""
    generator = model.dn_query_generator

    def draw(seed):
        torch.manual_seed(seed)
        return generator(dino_samples(RECORDED))[:2]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert all(tensor.isfinite().all() for tensor in first)
