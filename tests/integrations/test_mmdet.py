"""This package's changes to mmdet's classes, and the error where mmdet is missing."""

import math

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from helpers import build_model
from mmdet.models import DINOHead as HostsDINOHead

from dcnv4_mm.registry import MODELS

pytestmark = pytest.mark.mmdet

REFERENCES = [0.0, 1e-6, 5e-4, 1e-3, 0.2, 0.5, 0.999, 0.9999, 1.0]
# x1 / (x1 + x2) of mmdet 2: x1 = max(x, 1e-3), x2 = max(1 - x, 1e-3).
LIMITED = [
    0.001 / 1.001,
    0.001 / (0.001 + 0.999999),
    0.001 / (0.001 + 0.9995),
    0.001,
    0.2,
    0.5,
    0.999,
    0.9999 / (0.9999 + 0.001),
    1 / 1.001,
]


def make_head(kind):
    """A head whose box branches add nothing to the references."""
    head = kind(
        num_classes=2,
        embed_dims=8,
        num_pred_layer=2,
        as_two_stage=True,
        loss_cls={"type": "mmdet.FocalLoss", "use_sigmoid": True},
        loss_bbox={"type": "mmdet.L1Loss"},
        loss_iou={"type": "mmdet.GIoULoss"},
        train_cfg=None,
    )
    for branch in head.reg_branches:
        torch.nn.init.zeros_(branch[-1].weight)
        torch.nn.init.zeros_(branch[-1].bias)
    return head.double()


def boxes_of(head, references):
    states = torch.randn(2, 1, len(REFERENCES), 8, dtype=torch.float64)
    return head(states, [references, references, references])[1]


def test_references_stay_as_far_from_the_border_as_in_mmdet_2():
    """The recorded values do not cover it: none of their references is that near."""
    references = torch.tensor(REFERENCES, dtype=torch.float64)[None, :, None].repeat(1, 1, 4)
    boxes = boxes_of(make_head(MODELS.get("DINOHead")), references)
    expected = torch.tensor(LIMITED, dtype=torch.float64)[:, None].expand(-1, 4)
    assert (boxes - expected).abs().max() < 1e-12
    hosts = boxes_of(make_head(HostsDINOHead), references)
    assert 9e-4 < (hosts - expected).abs().max() < 1e-3


def test_gradients_pass_the_limit_only_between_the_borders():
    references = torch.tensor(REFERENCES, dtype=torch.float64)[None, :, None].repeat(1, 1, 4)
    references.requires_grad_()
    boxes_of(make_head(MODELS.get("DINOHead")), references)[0].sum().backward()
    inside = torch.tensor([1e-3 < reference < 0.999 for reference in REFERENCES])
    assert torch.allclose(references.grad[0, inside], torch.ones(4, dtype=torch.float64))
    # Beyond, one half of the formula is cut off; at the border either is a derivative.
    beyond = torch.tensor([not 1e-3 <= reference <= 0.999 for reference in REFERENCES])
    assert (references.grad[0, beyond] < 2e-3).all()


def test_averaged_weights_follow_the_original_formula():
    """mmengine copies the model in the first step, where mmdet 2 averages with 0.9996.

    What is left of the initial weights is multiplied by 0.0011, 0.0016, ... in the next steps.
    """
    from helpers import config_of
    from mmengine.config import Config

    cfg = Config.fromfile(config_of("cascade_flash_intern_image_l_fpn_3x_coco"))
    hook = next(hook for hook in cfg.custom_hooks if hook["type"] == "EMAHook")
    model = torch.nn.BatchNorm1d(3).double()
    average = MODELS.build(
        {
            "type": f"mmdet.{hook['ema_type']}",
            "momentum": hook["momentum"],
            "update_buffers": hook["update_buffers"],
            "model": model,
        }
    )
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(12):
        momentum = (1 - 1e-4) * math.exp(-(1 + step) / 2000) + 1e-4
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_()
                expected[name] = (1 - momentum) * expected[name] + momentum * tensor
        average.update_parameters(model)
        for name, tensor in average.module.state_dict().items():
            bound = {0: 5e-3, 1: 1e-5, 2: 1e-7}.get(step, 1e-9)
            assert (tensor - expected[name]).abs().max() < bound, (step, name)


def test_the_longer_encoding_of_the_fork_gives_the_same_embedding():
    """As in onedl-mmdetection: 256 numbers for a coordinate of a model with 256 channels."""
    from mmdet.models.layers import MLP, coordinate_to_encoding

    from dcnv4_mm.integrations._mmdet import ReferencePointHead

    boxes = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    head, hosts = ReferencePointHead(256), MLP(512, 256, 256, 2)
    hosts.load_state_dict(head.state_dict())
    embedding = head(coordinate_to_encoding(boxes, num_feats=256))
    assert torch.equal(embedding, hosts(coordinate_to_encoding(boxes, num_feats=128)))


def test_dino_has_released_shapes_under_the_fork(monkeypatch):
    from mmdet.models.layers import MLP, DinoTransformerDecoder

    from dcnv4_mm.integrations._mmdet import ReferencePointHead

    init_layers = DinoTransformerDecoder._init_layers

    def init_wider_layers(self):
        init_layers(self)
        self.ref_point_head = MLP(4 * self.embed_dims, self.embed_dims, self.embed_dims, 2)

    with monkeypatch.context() as patch:
        patch.setattr(DinoTransformerDecoder, "_init_layers", init_wider_layers)
        forks, _ = build_model("dino_4scale_flash_internimage_t_1x_coco", device="meta")
    ours, _ = build_model("dino_4scale_flash_internimage_t_1x_coco", device="meta")
    assert isinstance(forks.decoder.ref_point_head, ReferencePointHead)
    shapes = [{k: t.shape for k, t in m.state_dict().items()} for m in (forks, ours)]
    assert shapes[0] == shapes[1]
