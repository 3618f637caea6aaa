"""A small BEVFormerV2 and its samples, for the tests of the detector; needs mmdet3d."""

import numpy as np
import torch
from bev.samples import surround_cameras
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmdet3d.utils import register_all_modules
from mmengine.structures import InstanceData
from torch import nn

from dcnv4_mm.bev.detector import BEVFormerV2

SIZE = (64, 160)
CHANNELS = 16


class ToyBackbone(nn.Module):
    """Averages over blocks: what is mirrored comes out mirrored. Notes what it was given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.seen = []

    def forward(self, images):
        self.seen.append((images.detach(), self.training, torch.is_grad_enabled()))
        x = self.norm(self.conv(images))
        pooled = [nn.functional.avg_pool2d(x, s, ceil_mode=True) for s in (8, 16, 32, 64)]
        return [*pooled, nn.functional.avg_pool2d(pooled[-1], (1, 2), ceil_mode=True)]


def build(*, frames=1, num_proposal_queries=0, **kwargs):
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    norm_cfg = dict(type="BN")
    head = dict(
        type="dcnv4_mm.BEVFormerV2Head",
        bev_shape=(10, 10),
        embed_dims=CHANNELS,
        num_queries=6,
        num_groups=2,
        num_proposal_queries=num_proposal_queries,
        encoder=dict(num_layers=1, feedforward_channels=16, dropout=0.0),
        decoder=dict(num_layers=2, feedforward_channels=16, dropout=0.0),
        fusion=dict(num_frames=frames, norm_cfg=norm_cfg) if frames > 1 else None,
    )
    mono = dict(type="dcnv4_mm.DD3DHead", in_channels=CHANNELS, norm_cfg=norm_cfg)
    detector = BEVFormerV2(
        img_backbone=dict(type="mmdet.ResNet", depth=18),
        img_neck=dict(type="mmdet.FPN", in_channels=[64], out_channels=8, num_outs=1),
        pts_bbox_head=head,
        **{"fcos3d_bbox_head": mono, "grid_mask_prob": 0.0, **kwargs},
    )
    detector.img_backbone, detector.img_neck = ToyBackbone(), nn.Identity()
    detector.init_weights()
    return detector


def sample(frames=(-1, 0, 1), *, valid=None, flip=False, turn=0.0, mono=2, **meta):
    """One car in front, which the first camera sees ``mono`` times."""
    to_pixels = np.eye(4)
    to_pixels[:3, :3] = [[126.4, 0, 80], [0, 126.4, 23.04], [0, 0, 1]]
    cameras = surround_cameras(SIZE, turn=turn).double().numpy()
    result = Det3DDataSample(
        metainfo=dict(
            frames=frames,
            frame_valid=valid or (True,) * len(frames),
            lidar2img=np.stack([cameras] * len(frames)),
            lidar_to_current=np.stack([np.eye(4)] * len(frames)),
            cam2img=np.tile(to_pixels[:3, :3], (6, 1, 1)),
            lidar2cam=np.linalg.inv(to_pixels) @ cameras,
            flip=flip,
            img_shape=SIZE,
            box_type_3d=LiDARInstance3DBoxes,
            **meta,
        )
    )
    boxes = torch.tensor([[2.0, 12, -1, 4.5, 1.9, 1.6, 1.5, 0, 5]])
    boxes = LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5))
    result.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=torch.tensor([3]))
    result.gt_mono_instances = InstanceData(
        bboxes=torch.tensor([[90.0, 20, 115, 45]]).repeat(mono, 1),
        labels=torch.full((mono,), 3),
        quaternions=torch.tensor([[1.0, 0, 0, 0]]).repeat(mono, 1),
        centers=torch.tensor([[2.0, 1, 12]]).repeat(mono, 1),
        wlh=torch.tensor([[1.9, 4.5, 1.6]]).repeat(mono, 1),
        attributes=torch.zeros(mono, dtype=torch.int64),
        speeds=torch.full((mono,), 5.0),
        cameras=torch.zeros(mono, dtype=torch.int64),
    )
    return result


def images(batch=1, frames=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames * 6, 3, *SIZE, generator=generator)


def losses_of(detector, imgs, samples):
    return detector.loss(dict(imgs=imgs), samples)


def assert_all_have_gradients(module):
    """Finite ones, whether or not they are zero."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
