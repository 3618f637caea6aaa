"""Complete models of the hosts with the swap: the same outputs, losses and gradients as without."""

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

import mmdet
import numpy as np
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData

from dcnv4_mm.integrations import _mmcv, swap_deformable_attention

pytestmark = pytest.mark.mmdet

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
SIZE = 64, 96
BACKBONE = {
    "type": "ResNet",
    "depth": 18,
    "num_stages": 4,
    "norm_cfg": {"type": "BN"},
    "norm_eval": True,
    "style": "pytorch",
}
MODELS_OF_MMDET = {
    "dino": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "deformable_detr": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "deformable_detr_twostage": (
        "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py"
    ),
    "mask2former": "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
}


def build(name):
    """A host's model as configured, but small: ResNet-18, two layers, few queries."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(CONFIGS / MODELS_OF_MMDET[name]).model
    out_indices = config.backbone.out_indices
    channels = [64 * 2**i for i in out_indices]
    config.backbone = {**BACKBONE, "out_indices": out_indices}
    if name == "mask2former":
        head = config.panoptic_head
        head.in_channels = channels
        head.num_queries = 10
        head.pixel_decoder.encoder.num_layers = 2
        head.transformer_decoder.num_layers = 2
        config.train_cfg.num_points = 200
    else:
        config.neck.in_channels = channels
        config.num_queries = 20
        config.encoder.num_layers = 2
        config.decoder.num_layers = 2
        if name == "dino":
            config.dn_cfg.group_cfg.num_dn_queries = 10
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    return model.train()


def perturb(model):
    """Moves offsets and weights off their start, where coordinates are integers."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            for layer in (module.sampling_offsets, module.attention_weights):
                for parameter in layer.parameters():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.data += 0.1 * noise.to(parameter.dtype)


def batch(dtype):
    """Two normalised images with two objects each."""
    height, width = SIZE
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, height, width, generator=generator).to(dtype)
    samples = []
    for _ in range(2):
        corner = torch.rand(2, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(2, 2, generator=generator)], 1)
        masks = np.zeros((2, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(metainfo={"img_shape": SIZE, "batch_input_shape": SIZE})
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(dtype),
            labels=torch.tensor([3, 7]),
            masks=BitmapMasks(masks, height, width),
        )
        samples.append(sample)
    return images, samples


def losses(model, dtype):
    """The losses of one step, by name."""
    images, samples = batch(dtype)
    torch.manual_seed(3)  # for denoising, dropout and random points
    return {name: value for name, value in model.loss(images, samples).items() if "loss" in name}


def gradients(model, dtype):
    """The losses, and the gradients of their sum by parameter name."""
    model.zero_grad()
    values = losses(model, dtype)
    sum(values.values()).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in values.items()}, found


def with_swap(model):
    swapped = copy.deepcopy(model)
    count = sum(type(m) is MultiScaleDeformableAttention for m in model.modules())
    assert swap_deformable_attention(swapped) == count > 0
    return swapped


def assert_relative(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-12)
        assert (actual[name] - value).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("name", MODELS_OF_MMDET)
def test_fresh_model_in_float32(name):
    model = build(name)
    swapped = with_swap(model)
    with torch.no_grad():
        assert_relative(losses(swapped, torch.float32), losses(model, torch.float32), 1e-4)
        images, samples = batch(torch.float32)
        outputs, expected = (
            m.eval()(images, copy.deepcopy(samples), mode="tensor") for m in (swapped, model)
        )
    assert_nested(outputs, expected)


def assert_nested(actual, expected):
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    elif isinstance(expected, (tuple, list)):
        for a, e in zip(actual, expected, strict=True):
            assert_nested(a, e)


@pytest.fixture
def float64_hosts(monkeypatch):
    """The hosts create float32 tensors in places, and convert to it."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_hosts")
@pytest.mark.parametrize("name", MODELS_OF_MMDET)
def test_gradients_in_float64(name, monkeypatch):
    model = build(name).double()
    perturb(model)
    swapped = with_swap(model)

    distances = []

    def record(value, spatial_shapes, locations, weights):
        sizes = torch.as_tensor(spatial_shapes).flip(-1)[:, None]
        pixels = (locations * sizes - 0.5).detach()
        distances.append((pixels - pixels.round()).abs().min().item())
        return original(value, spatial_shapes, locations, weights)

    original = _mmcv.ms_deform_attn
    monkeypatch.setattr(_mmcv, "ms_deform_attn", record)
    actual = gradients(swapped, torch.float64)
    # At an integer the two formulations may differ in the derivative.
    assert min(distances) > 1e-6
    expected = gradients(model, torch.float64)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_relative(ours, theirs, 1e-10)


def error_of_gradients(results, exact):
    """Distance of all gradients from the exact ones, relative to the length of these."""
    names = exact[1].keys()
    difference = sum((results[1][n].double() - exact[1][n]).square().sum() for n in names)
    return (difference / sum(exact[1][n].square().sum() for n in names)).sqrt().item()


@pytest.mark.parametrize("name", ["deformable_detr"])
def test_gradients_in_float32(name):
    """They err at most twice as much as the host's own, and as a float32 sum of this length."""
    model = build(name)
    perturb(model)
    results = [gradients(m, torch.float32) for m in (with_swap(model), model)]
    exact = gradients(copy.deepcopy(model).double(), torch.float64)
    ours, theirs = (error_of_gradients(result, exact) for result in results)
    assert ours <= 2 * theirs + 1e-5


@pytest.mark.parametrize("name", MODELS_OF_MMDET)
def test_gradients_in_float32_are_the_hosts(name):
    """The largest difference of four models is 6.2e-7.

    With a smooth activation: the derivative of ReLU jumps, and rounding decides on which side.
    """
    model = build(name)
    for module in list(model.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, child_name, torch.nn.GELU())
    perturb(model)
    ours, theirs = (gradients(m, torch.float32) for m in (with_swap(model), model))
    assert_relative(ours[0], theirs[0], 5e-6)
    assert error_of_gradients(ours, theirs) <= 5e-6


@pytest.mark.mmseg
def test_mask2former_of_mmseg():
    mmseg = pytest.importorskip("mmseg", reason="mmseg is not installed")
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    configs = Path(mmseg.__file__).parent / ".mim" / "configs" / "mask2former"
    config = Config.fromfile(configs / "mask2former_r50_8xb2-160k_ade20k-512x512.py").model
    config.backbone = {**BACKBONE, "out_indices": (0, 1, 2, 3)}
    head = config.decode_head
    head.in_channels = [64, 128, 256, 512]
    head.num_queries = 10
    head.pixel_decoder.encoder.num_layers = 2
    head.transformer_decoder.num_layers = 2
    head.train_cfg.num_points = 200
    torch.manual_seed(0)
    model = MODELS.build(config)

    images = batch(torch.float32)[0]
    sample = SegDataSample(metainfo={"img_shape": SIZE, "batch_input_shape": SIZE})
    labels = torch.zeros(1, *SIZE, dtype=torch.int64)
    labels[:, 20:40] = 3
    sample.gt_sem_seg = PixelData(data=labels)
    results = []
    for m in (with_swap(model), model):
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(m.loss(images, [sample, sample]))
    assert_relative(*results, 1e-4)
