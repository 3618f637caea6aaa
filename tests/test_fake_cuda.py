"""Device consistency without a GPU: forwards of models on fake CUDA tensors.

A CUDA build of torch needs no driver for tensors without data. A tensor that a forward makes on the
CPU and combines with one on the GPU fails here as it would there.
"""

import pytest
import torch
from helpers import ROOT
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

from dcnv4_mm.layers import DCNv3, DCNv4, DCNv4Conv2d, FlashDeformAttn


def on_fake_gpu(model, *shapes):
    """The model, with parameters and buffers without data on a GPU; then inputs of these shapes."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = torch.nn.Parameter(fake(tensor))
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = fake(tensor)
    return model.eval(), *(torch.empty(shape, device="cuda") for shape in shapes)


def fake(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def assert_on_gpu(outputs):
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


@pytest.fixture
def fake_mode():
    """Entered when models are built: building reads values."""
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")
    return FakeTensorMode()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: DCNv4(64, groups=4), (1, 8, 9, 64)),
        (lambda: DCNv3(64, groups=4), (1, 8, 9, 64)),
        (lambda: DCNv4Conv2d(64, 64, 3, padding=1), (1, 64, 8, 9)),
    ],
    ids=["DCNv4", "DCNv3", "DCNv4Conv2d"],
)
def test_layers(layer, shape, fake_mode):
    model = layer()
    with fake_mode:
        model, inputs = on_fake_gpu(model, shape)
        assert_on_gpu(model(inputs))


def test_attention(fake_mode):
    layer = FlashDeformAttn(64, num_levels=1, num_heads=4)
    with fake_mode:
        layer, queries, references = on_fake_gpu(layer, (1, 72, 64), (1, 72, 1, 2))
        assert_on_gpu(layer(queries, references, queries, [(8, 9)]))


def build(config):
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from dcnv4_mm.registry import MODELS

    config = Config.fromfile(ROOT / "configs" / config)
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    return MODELS.build(config.model)


# Not DINO and Mask2Former: their transformers read the shapes of features from tensors.
@pytest.mark.mmdet
def test_detector(fake_mode):
    model = build("mask_rcnn/mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco.py")
    with fake_mode:
        model, inputs = on_fake_gpu(model, (1, 3, 128, 128))
        features = model.extract_feat(inputs)
        assert_on_gpu(features)
        assert_on_gpu(model.rpn_head(features))


@pytest.mark.mmseg
def test_segmentor(fake_mode):
    model = build("upernet/upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py")
    with fake_mode:
        model, inputs = on_fake_gpu(model, (1, 3, 128, 128))
        assert_on_gpu(model(inputs, mode="tensor"))
