"""The detector: frames, modes, flips, batches, gradients, autocast; with small parts."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev_samples import surround_cameras
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmdet3d.utils import register_all_modules
from mmengine.structures import InstanceData
from torch import nn

from dcnv4_mm.bev.detector import BEVFormerV2
from dcnv4_mm.bev.layers.grid_mask import GridMask

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
        return [*pooled, nn.functional.max_pool2d(pooled[-1], 1, 2)]


@pytest.fixture
def detector():
    return build(frames=3)


def build(*, frames=1, **kwargs):
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    norm_cfg = dict(type="BN")
    head = dict(
        type="dcnv4_mm.BEVFormerV2Head",
        bev_shape=(10, 10),
        embed_dims=CHANNELS,
        num_queries=6,
        num_groups=2,
        encoder=dict(num_layers=1, feedforward_channels=16, dropout=0.0),
        decoder=dict(num_layers=2, feedforward_channels=16, dropout=0.0),
        fusion=dict(num_frames=frames, norm_cfg=norm_cfg) if frames > 1 else None,
    )
    mono = dict(type="dcnv4_mm.DD3DHead", in_channels=CHANNELS, norm_cfg=norm_cfg)
    detector = BEVFormerV2(
        img_backbone=dict(type="mmdet.ResNet", depth=18),
        img_neck=dict(type="mmdet.FPN", in_channels=[64], out_channels=8, num_outs=1),
        pts_bbox_head=head,
        fcos3d_bbox_head=mono,
        **{"grid_mask_prob": 0.0, **kwargs},
    )
    detector.img_backbone, detector.img_neck = ToyBackbone(), nn.Identity()
    detector.init_weights()
    return detector


def sample(frames=(-1, 0, 1), *, valid=None, flip=False, turn=0.0, mono=2, **meta):
    """One car in front, which the first camera sees ``mono`` times."""
    intrinsics = np.tile(np.array([[126.0, 0, 80], [0, 126, 23], [0, 0, 1]]), (6, 1, 1))
    cameras = surround_cameras(SIZE, turn=turn).double().numpy()
    result = Det3DDataSample(
        metainfo=dict(
            frames=frames,
            frame_valid=valid or (True,) * len(frames),
            lidar2img=np.stack([cameras] * len(frames)),
            cam2img=intrinsics,
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


def losses_of(detector, pictures, samples):
    return detector.loss(dict(imgs=pictures), samples)


def test_neighbours_run_in_evaluation_mode_without_gradient(detector):
    """P15: their statistics do not count, and every part is as before afterwards."""
    detector.train()
    # A part that its owner keeps in evaluation mode stays there.
    detector.fcos3d_bbox_head.fcos2d_head.eval()
    losses_of(detector, images(), [sample()])
    seen = [(training, grad) for _, training, grad in detector.img_backbone.seen]
    assert seen == [(False, False), (False, False), (True, True)]
    assert detector.img_backbone.norm.num_batches_tracked == 1
    assert detector.training
    assert not detector.fcos3d_bbox_head.fcos2d_head.training


def test_missing_moments_are_not_computed(detector):
    losses_of(detector, images(), [sample(valid=(False, True, False))])
    assert len(detector.img_backbone.seen) == 1


def test_every_parameter_gets_a_gradient(detector):
    """Also at a scene's end, and without objects in the pictures (P22, P26)."""
    for case in (sample(), sample(valid=(False, True, False)), sample(mono=0)):
        detector.zero_grad()
        losses = losses_of(detector, images(), [case])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        for name, parameter in detector.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


def test_pictures_without_objects_cost_nothing(detector):
    losses = losses_of(detector, images(), [sample(mono=0)])
    assert all(loss == 0 for name, loss in losses.items() if name.endswith("_mono"))


@pytest.mark.parametrize("padding", [0, 16])
def test_a_flip_is_undone_on_the_features(detector, padding):
    """P12: with a backbone that commutes with it, a mirrored sample gives the same features."""
    pictures = images()[:, :6]
    pictures[..., SIZE[1] - padding :] = 0
    metas = [sample(flip=flip).metainfo for flip in (False, True)]
    plain, mirrored = (detector.eval().extract_feat(pictures, [meta]) for meta in metas)
    (first, *_), (second, *_) = (seen[0] for seen in detector.img_backbone.seen)
    assert torch.equal(second, first.flip(-1))
    for one, other in zip(plain[:3], mirrored[:3], strict=True):
        torch.testing.assert_close(one, other)


def test_the_original_mirrors_without_padding():
    detector = build(legacy_flip=True)
    meta = {**sample(flip=True).metainfo, "img_shape": (64, 144)}
    pictures = images()[:, :6]
    detector.eval().extract_feat(pictures, [meta])
    seen = detector.img_backbone.seen[0][0][0, :, :, :]
    torch.testing.assert_close(seen[..., :144], pictures[0, 0, ..., :144].flip(-1))
    torch.testing.assert_close(seen[..., 144:], pictures[0, 0, ..., 144:])


def test_a_batch_is_its_samples(detector):
    """Each with its own cameras, missing frames, flip and augmentation."""
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    both = [
        sample(valid=(False, True, True), bev_augmentation=np.eye(3)),
        sample(flip=True, turn=0.5, bev_augmentation=turn),
    ]
    pictures = images(batch=2)
    detector.eval()
    with torch.no_grad():
        together = detector._forward(dict(imgs=pictures), both)
        for index in range(2):
            alone = detector._forward(
                dict(imgs=pictures[index : index + 1]), both[index : index + 1]
            )
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one[:, index], other[:, 0], rtol=1e-4, atol=1e-4)


def test_predictions(detector):
    results = detector.eval().predict(dict(imgs=images()), [sample()])
    (result,) = results
    assert len(result.pred_instances_3d.scores_3d) <= 60
    assert result.pred_instances_3d.bboxes_3d.tensor.shape[1] == 9
    assert len(result.pred_instances) == 0


def test_bf16_trains(detector):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(detector, images(), [sample()])
    reference = losses_of(detector, images(), [sample()])
    assert losses.keys() == reference.keys()
    sum(losses.values()).backward()
    for name, loss in losses.items():
        # bf16 has three digits; the losses are sums of tens of terms.
        assert loss.item() == pytest.approx(reference[name].item(), rel=0.1, abs=0.02), name


def test_wrong_inputs(detector):
    with pytest.raises(ValueError, match="3 frames of 6 cameras make 18 pictures, got 6"):
        losses_of(detector, images(frames=1), [sample()])
    with pytest.raises(ValueError, match="the same frames"):
        losses_of(detector, images(batch=2), [sample(), sample(frames=(-2, -1, 0))])


def test_grid_mask():
    """P15 as well: stripes of rows and columns remain; nothing happens in evaluation."""
    torch.manual_seed(0)
    mask, pictures = GridMask(prob=1.0), torch.ones(4, 6, 3, 48, 64)
    assert mask.eval()(pictures) is pictures
    masked = mask.train()(pictures)
    assert (masked == masked[:, :1, :1]).all()
    # Other masks for other samples.
    assert not torch.equal(masked[0], masked[1])
    kept = masked[0, 0, 0].bool()
    rows, columns = kept.all(1), kept.all(0)
    assert torch.equal(kept, rows[:, None] | columns[None])
    assert 0 < kept.float().mean() < 1
    assert torch.equal(GridMask(prob=0.0)(pictures), pictures)
