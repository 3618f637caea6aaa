"""InternImage, which is FlashInternImage with DCNv3, against recorded numbers."""

import pytest
import torch
from backbones.intern_image import build, manifest, picked
from helpers import images, load_json, normal, weights

from dcnv4_mm.backbones import ARCHS, DCNV3_ARCHS, FlashInternImage
from dcnv4_mm.checkpoints import convert, load_released, to_released
from dcnv4_mm.checkpoints.flash_intern_image import RULES
from dcnv4_mm.layers import DCNv3

BACKBONES = load_json("internimage/backbone")
CLASSIFIERS = load_json("internimage/classification")
# The recorded float32 noise is at most 6e-6 on maps of unit variance, 7e-7 on logits.
EXACT, SINGLE = (torch.float64, 1e-10), (torch.float32, 3e-5)
TINY = {"channels": 8, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}


def backbone_shapes(tag):
    """Shapes by released name: T's are in the manifest of a detector."""
    if not tag.startswith("t_"):
        return manifest("backbone", tag.rsplit("_", 1)[0])
    detector = manifest("detection", "mask_rcnn_internimage_t_fpn_1x_coco")
    names = {n: s for n, s in detector.items() if n.startswith("backbone.")}
    return {name.removeprefix("backbone."): shape for name, shape in names.items()}


def recorded_backbone(tag):
    model = build(BACKBONES[tag]["kwargs"]).eval()
    load_released(model, weights(backbone_shapes(tag)))
    return model


@pytest.mark.parametrize(
    ("tag", "dtype", "tolerance"), [*((tag, *EXACT) for tag in BACKBONES), ("t_64x96", *SINGLE)]
)
@torch.inference_mode()
def test_maps(tag, dtype, tolerance):
    recorded = BACKBONES[tag]
    model = recorded_backbone(tag).to(dtype)
    assert sum(p.numel() for p in model.parameters()) == recorded["num_parameters"]
    maps = model(images(recorded["h"], recorded["w"]).to(dtype))
    for index, (one, expected) in enumerate(zip(maps, recorded["outputs"], strict=True)):
        assert list(one.shape) == expected["shape"]
        samples = torch.tensor(expected["samples"], dtype=torch.float64)
        assert (picked(one, 64) - samples).abs().max().item() <= tolerance
        flat = one.double().flatten()
        assert flat.mean().item() == pytest.approx(expected["mean"], abs=tolerance)
        assert flat.std(correction=0).item() == pytest.approx(expected["std"], abs=tolerance)
        # The recorded maps are rounded to float32.
        dot = flat @ torch.from_numpy(normal(f"{tag}/out{index}", flat.numel()))
        atol = max(tolerance, 1e-6) * flat.numel() ** 0.5
        assert dot.item() == pytest.approx(expected["dot"], abs=atol)


@pytest.mark.parametrize("tag", ["t", "h_like"])
def test_gradients(tag):
    """Gradients of a scalar with respect to the image and every parameter, float64."""
    recorded = load_json(f"internimage/backbone_{tag}_grads")
    case = BACKBONES[recorded["of"]]
    model = recorded_backbone(recorded["of"]).double()
    x = images(case["h"], case["w"]).double().requires_grad_()
    maps = model(x)
    loss = sum(
        (one * torch.from_numpy(normal(seed, one.shape)).float().double()).sum()
        for seed, one in zip(recorded["grad_out_seed_strings"], maps, strict=True)
    )
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-9)
    assert_gradient(x.grad, recorded["input_grad"]["samples"], "image")
    released = convert({name: name for name in recorded["param_grads"]}, RULES)
    parameters = dict(model.named_parameters())
    assert set(released) == set(parameters)
    for name, parameter in parameters.items():
        expected = recorded["param_grads"][released[name]]
        assert_gradient(parameter.grad, expected["samples8"], name)
        absolute = parameter.grad.abs().sum().item()
        assert absolute == pytest.approx(expected["abs_sum"], rel=1e-9), name
        assert parameter.grad.sum().item() == pytest.approx(expected["sum"], abs=1e-9 * absolute)


def assert_gradient(gradient, samples, name):
    atol = 1e-9 * gradient.abs().max().item()
    expected = torch.tensor(samples, dtype=torch.float64)
    torch.testing.assert_close(
        picked(gradient, len(samples)), expected, rtol=1e-9, atol=atol, msg=name
    )


@pytest.mark.parametrize(
    ("tag", "dtype", "tolerance"),
    [*((tag, *EXACT) for tag in CLASSIFIERS), ("h_like_clip_64x96", torch.float32, 5e-6)],
)
@torch.inference_mode()
def test_classifiers(tag, dtype, tolerance):
    recorded = CLASSIFIERS[tag]
    stem = {"t": "internimage_t_1k_224"}.get(tag.rsplit("_", 1)[0], tag.rsplit("_", 1)[0])
    model = build(recorded["kwargs"], num_classes=1000).eval()
    load_released(model, {"model": weights(manifest("classification", stem))})
    pooled = []
    model.head.fc.register_forward_pre_hook(lambda _, inputs: pooled.extend(inputs))
    logits = model.to(dtype)(images(recorded["h"], recorded["w"]).to(dtype))
    for result, expected in ((logits, recorded["logits"]), (pooled[0], recorded["features"])):
        samples = torch.tensor(expected["samples"], dtype=torch.float64)
        assert (picked(result, 64) - samples).abs().max().item() <= tolerance
        assert result.mean().item() == pytest.approx(expected["mean"], abs=tolerance)
        assert result.std(correction=0).item() == pytest.approx(expected["std"], abs=tolerance)


def test_the_attention_pooling_wants_multiples_of_32():
    arch = {**TINY, "attention_pooling": True}
    model = FlashInternImage(arch, core_op="DCNv3", num_classes=2)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.randn(1, 3, 48, 64))


def test_layer_scale_turns_the_second_norm_of_a_branch_off():
    """As in the original, which keeps the parameters."""
    model = FlashInternImage({**TINY, "res_post_norm": True}, core_op="DCNv3", layer_scale=1.0)
    norms = [name for name in model.state_dict() if "res_post_norm" in name]
    assert len(norms) == 4 * sum(TINY["depths"])
    image = torch.randn(1, 3, 32, 32)
    before = model.eval()(image)[3]
    for name, parameter in model.named_parameters():
        if "res_post_norm" in name:
            torch.nn.init.constant_(parameter, 7.0)
    assert torch.equal(before, model(image)[3])


def test_names_of_both_operators():
    assert isinstance(FlashInternImage("nano", core_op="DCNv3").levels[0].blocks[0].dcn, DCNv3)
    assert set(ARCHS) < set(DCNV3_ARCHS)
    assert DCNV3_ARCHS["b"].offset_scale == 1.0
    with pytest.raises(ValueError, match=r"'xl'.* for DCNv3"):
        FlashInternImage("xxl", core_op="DCNv3")
    with pytest.raises(ValueError, match=r"core_op must be one of \['DCNv3', 'DCNv4'\]"):
        FlashInternImage("t", core_op="DCNv5")


def test_depth_of_extra_norms():
    model = FlashInternImage({**TINY, "extra_norms": (1,)}, core_op="DCNv3")
    assert model.get_layer_depth("levels.2.blocks.1.norm1.weight") == (4, 7)
    assert model.get_layer_depth("levels.2.post_norms.0.weight") == (4, 7)


def test_a_dense_model_prefers_the_plain_weights():
    """Other than FlashInternImage, whose original prefers the averaged ones."""
    model = FlashInternImage(TINY, core_op="DCNv3")
    plain, averaged = ({n: t + i for n, t in to_released(model).items()} for i in (0, 1))
    assert load_released(model, {"model": plain, "model_ema": averaged}).entry == "model"
    assert load_released(model, {"model_ema": averaged}).entry == "model_ema"


def test_the_other_operators_file_is_refused():
    model = FlashInternImage(TINY, core_op="DCNv3")
    with pytest.raises(ValueError, match=r"missing .*dcn\.dw_conv"):
        load_released(model, to_released(FlashInternImage(TINY)))
