"""FlashInternImage-T against numbers recorded from the original project."""

import pytest
import torch
from helpers import images, load_arrays, load_json, manifest, normal, weights

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released

BACKBONE = "mask_rcnn_flash_intern_image_t_fpn_1x_coco"
CLASSIFIER = "flash_intern_image_t_1k_224"
SIZES = [(64, 96), (97, 130)]
# The recorded float32 noise is at most 6e-6 on maps of unit variance; the float64 maps are stored
# rounded to float32. An eps of 1e-5 in the norms would show as 7e-5.
TOLERANCES = [(torch.float32, 3e-5), (torch.float64, 1e-6)]


@pytest.fixture(scope="module")
def released():
    return weights(manifest("backbone", BACKBONE))


@pytest.fixture
def backbone(released):
    model = FlashInternImage("t").eval()
    load_released(model, released)
    return model


def errors(maps, size):
    """Largest difference of each of the four maps from what was recorded."""
    recorded = load_arrays("backbone_t")
    expected = [torch.from_numpy(recorded[f"{size[0]}x{size[1]}/out{i}"]) for i in range(4)]
    return [(one - other).abs().max().item() for one, other in zip(maps, expected, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_maps(backbone, size, dtype, tolerance):
    maps = backbone.to(dtype)(images(*size).to(dtype))
    assert max(errors(maps, size)) <= tolerance


def test_gradients(backbone):
    """Gradients of a scalar with respect to the image and every parameter, float64."""
    recorded = load_json("backbone_t_grads")
    height, width = recorded["h"], recorded["w"]
    x = images(height, width).double().requires_grad_()
    maps = backbone.double()(x)
    grad_maps = [
        torch.from_numpy(normal(seed, features.shape)).float().double()
        for seed, features in zip(recorded["grad_out_seed_strings"], maps, strict=True)
    ]
    loss = sum((f * grad).sum() for f, grad in zip(maps, grad_maps, strict=True))
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-9)
    assert_gradient(x.grad, recorded["input_grad"]["samples"], "image")

    # The i-th released name is the i-th of the model: see test_manifests.py.
    parameters = zip(manifest("backbone", BACKBONE), backbone.parameters(), strict=True)
    assert set(recorded["param_grads"]) == set(manifest("backbone", BACKBONE))
    for name, parameter in parameters:
        expected = recorded["param_grads"][name]
        assert_gradient(parameter.grad, expected["samples8"], name)
        absolute = parameter.grad.abs().sum().item()
        assert absolute == pytest.approx(expected["abs_sum"], rel=1e-9), name
        assert parameter.grad.sum().item() == pytest.approx(expected["sum"], abs=1e-9 * absolute)


def assert_gradient(gradient, samples, name):
    flat, count = gradient.flatten(), len(samples)
    picked = flat[torch.arange(count) * flat.numel() // count]
    atol = 1e-9 * flat.abs().max().item()
    expected = torch.tensor(samples, dtype=torch.float64)
    torch.testing.assert_close(picked, expected, rtol=1e-9, atol=atol, msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_classifier(size, dtype, tolerance):
    model = FlashInternImage("t", layer_scale=None, num_classes=1000).eval()
    load_released(model, {"model": weights(manifest("classification", CLASSIFIER))})
    pooled = []
    model.head.fc.register_forward_pre_hook(lambda _, inputs: pooled.extend(inputs))
    logits = model.to(dtype)(images(*size).to(dtype))
    for name, result in (("logits", logits), ("pooled_features", pooled[0])):
        recorded = load_arrays("cls_t")[f"t_{size[0]}x{size[1]}/{name}"]
        assert (result - torch.from_numpy(recorded)).abs().max().item() <= tolerance, name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("patch_embed.norm1.1.weight", "patch_embed.norm1.1.bias"),
        ("levels.0.blocks.0.gamma1", "levels.0.blocks.0.gamma2"),
        ("levels.1.blocks.0.norm1.0.weight", "levels.1.blocks.0.norm2.0.weight"),
        ("levels.2.blocks.17.dcn.value_proj.weight", "levels.2.blocks.17.dcn.output_proj.weight"),
        ("levels.2.blocks.3.mlp.fc1.weight", "levels.2.blocks.4.mlp.fc1.weight"),
        ("levels.3.norm.0.weight", "levels.3.blocks.3.norm2.0.weight"),
    ],
)
@torch.inference_mode()
def test_swapped_tensors_are_noticed(backbone, released, one, other):
    """Two tensors of one shape exchanged for each other fit, but give other maps."""
    assert released[one].shape == released[other].shape
    load_released(backbone, {**released, one: released[other], other: released[one]})
    assert max(errors(backbone(images(*SIZES[0])), SIZES[0])) > 1e-3
