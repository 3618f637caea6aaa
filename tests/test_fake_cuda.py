"""Device consistency without a GPU: models run on a stand-in for one, from inputs to predictions.

A tensor that a forward makes on the CPU and combines with one on the GPU fails here as it would
there.
"""

import pytest
import torch
from fake_gpu import fake_gpu, on_fake_gpu
from helpers import ROOT
from layers.vision_transformers import swapped
from torch import nn
from torch.utils._pytree import tree_leaves

from dcnv4_mm.integrations import is_swapped
from dcnv4_mm.layers import DCNv3, DCNv4, DCNv4Conv2d, FlashDeformAttn

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def cuda_build():
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")


def assert_on_gpu(outputs):
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


def images():
    return torch.rand(1, 3, *SIZE, device="cuda")


class MakesCpuTensor(nn.Module):
    def forward(self, x):
        return x + torch.ones(x.shape[-1])


def test_a_cpu_tensor_is_found():
    with fake_gpu(), pytest.raises(RuntimeError, match=r"aten.add.*cuda:0.*\[\(5,\)\]"):
        MakesCpuTensor()(torch.rand(2, 5, device="cuda"))


LAYERS = {
    "DCNv4": (lambda: DCNv4(64, groups=4), (1, 8, 9, 64)),
    "strided": (lambda: DCNv4(64, groups=4, stride=2, padding=2, dw_kernel_size=3), (1, 8, 9, 64)),
    "center": (lambda: DCNv4(64, groups=4, center_feature_scale=True), (1, 8, 9, 64)),
    "DCNv3": (lambda: DCNv3(64, groups=4), (1, 8, 9, 64)),
    "convolution": (lambda: DCNv4Conv2d(64, 64, 3, padding=1), (1, 64, 8, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, shape = LAYERS[name]
    layer = make()
    with fake_gpu():
        assert_on_gpu(on_fake_gpu(layer)(torch.rand(shape, device="cuda")))


def test_attention():
    layer = FlashDeformAttn(64, num_levels=1, num_heads=4)
    with fake_gpu():
        layer = on_fake_gpu(layer)
        queries = torch.rand(1, 72, 64, device="cuda")
        references = torch.rand(1, 72, 1, 2, device="cuda")
        for shapes in ([(8, 9)], torch.tensor([[8, 9]], device="cuda")):
            assert_on_gpu(layer(queries, references, queries, shapes))


def test_attention_replaced():
    model = swapped()
    with fake_gpu():
        assert_on_gpu(on_fake_gpu(model)(torch.rand(1, 3, 32, 48, device="cuda")))


def build(config, change=lambda model: None):
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from dcnv4_mm.registry import MODELS

    config = Config.fromfile(ROOT / "configs" / config)
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    change(config.model)
    return MODELS.build(config.model)


def few_boxes(model):
    model.test_cfg.rpn.update(nms_pre=20, max_per_img=20)
    model.test_cfg.rcnn.max_per_img = 5


def few_queries(model):
    # Not more than there are pixels, to choose them from.
    model.num_queries = 50
    model.test_cfg.max_per_img = 50


@pytest.mark.mmdet
@pytest.mark.parametrize(
    ("config", "change"),
    [
        ("mask_rcnn/mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco.py", few_boxes),
        ("dino/dino-4scale_flash-internimage-t_8xb4-12e_coco.py", few_queries),
    ],
    ids=["Mask R-CNN", "DINO"],
)
def test_detectors(config, change):
    from mmdet.structures import DetDataSample

    model = build(config, change)
    assert is_swapped(model) == ("dino" in config)
    meta = dict(img_shape=SIZE, ori_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1.0, 1.0))
    with fake_gpu():
        (result,) = on_fake_gpu(model)(images(), [DetDataSample(metainfo=meta)], mode="predict")
        assert_on_gpu(result.pred_instances.to_dict())


@pytest.mark.mmseg
@pytest.mark.parametrize(
    "config",
    [
        "upernet/upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py",
        "mask2former/mask2former_flash-internimage-t_8xb2-160k_ade20k-512x512.py",
    ],
    ids=["UPerNet", "Mask2Former"],
)
def test_segmentors(config):
    model = build(config)
    assert is_swapped(model) == ("mask2former" in config)
    meta = dict(img_shape=SIZE, ori_shape=SIZE, batch_input_shape=SIZE, pad_shape=SIZE)
    with fake_gpu():
        assert_on_gpu(on_fake_gpu(model).encode_decode(images(), [meta]))


@pytest.mark.mmdet3d
@pytest.mark.parametrize(
    "settings",
    [
        dict(temporal_alignment="warp", cached_frames=4),
        dict(num_proposal_queries=3),
        dict(frames_per_batch=1),
    ],
    ids=["warp", "proposals", "projection"],
)
def test_bev(settings):
    """Encoder, alignment, fusion, decoder and the boxes of both heads."""
    from bev import small_detector

    detector = small_detector.build(frames=3, **settings)
    sample = small_detector.sample(
        flip=True, bev_augmentation=torch.eye(3).numpy(), frame_tokens=("a", "b", "c")
    )
    with fake_gpu():
        images = small_detector.images().to("cuda")
        (result,) = on_fake_gpu(detector).predict(dict(imgs=images), [sample])
        found = result.pred_instances_3d
        assert_on_gpu((found.bboxes_3d.tensor, found.scores_3d, found.labels_3d))
