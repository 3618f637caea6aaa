"""The BEV head against tensors recorded from the original classes."""

import numpy as np
import pytest
import torch
from helpers import load_arrays

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from dcnv4_mm.bev.geometry import bev_augmentation_matrix
from dcnv4_mm.bev.heads.bev_head import BEVFormerV2Head

IMAGE_SIZE = (128, 320)
# File -> frames, arguments of the fusion.
FILES = {
    "tiny_head_t1": ((0,), None),
    "tiny_head_t3": ((-1, 0, 1), {}),
    "tiny_head_t3_inter": ((-1, 0, 1), {"inter_channels": 64}),
}


class Recording:
    """One file: the head with its weights, its inputs, and what the original made of them."""

    def __init__(self, stem):
        self.frames, fusion = FILES[stem]
        self.current = self.frames.index(0)
        self.arrays = load_arrays(f"bevformerv2/{stem}")
        if fusion is not None:
            fusion = dict(num_frames=len(self.frames), norm_cfg=dict(type="BN"), **fusion)
        self.head = BEVFormerV2Head(
            bev_shape=(10, 12),
            embed_dims=32,
            num_queries=12,
            num_groups=3,
            encoder=dict(num_layers=2, feedforward_channels=64, dropout=0.0),
            decoder=dict(num_layers=2, feedforward_channels=64, dropout=0.0),
            fusion=fusion,
            coder=dict(max_num=20),
        )
        self.head.load_state_dict(self.group("w/"))
        x = self.arrays["in/bda_rot_rad_scale_flipx_flipy"]
        self.augmentation = bev_augmentation_matrix(x[0], x[1], bool(x[2]), bool(x[3]))

    def group(self, prefix):
        return {
            key.removeprefix(prefix): torch.from_numpy(np.asarray(array))
            for key, array in self.arrays.items()
            if key.startswith(prefix)
        }

    def lidar_to_image(self, frame):
        return torch.from_numpy(self.arrays[f"in/lidar2img_f{frame}"]).unsqueeze(0)

    def encode(self, frame, augmentation=None):
        levels = self.group(f"in/feat_f{frame}_l")
        features = [levels[str(level)].float() for level in range(len(levels))]
        if augmentation is not None:
            augmentation = augmentation.unsqueeze(0)
        encoded = self.head.encode(features, self.lidar_to_image(frame), IMAGE_SIZE)
        return self.head.transformer.align(encoded, augmentation)

    def run(self, mode, *, missing=()):
        """BEV maps by frame, logits and codes in one of the recorded modes."""
        augmentation = self.augmentation if mode == "eval_bda" else None
        bevs = {}
        self.head.eval()
        with torch.no_grad():
            for frame in self.frames:
                if frame != 0:
                    bevs[frame] = self.encode(frame, augmentation)
        self.head.train(mode == "train")
        with torch.set_grad_enabled(mode == "train"):
            bevs[0] = self.encode(0, augmentation)
            stacked = torch.stack([bevs[frame] for frame in self.frames], dim=1)
            valid = torch.tensor([[frame not in missing for frame in self.frames]])
            logits, codes = self.head(stacked, valid, self.current)
        return bevs, logits, codes

    def instances(self):
        """The recorded objects; the sizes' meaning does not matter for codes."""
        boxes = torch.from_numpy(self.arrays["in/gt_boxes_gravity_center_code9"])
        boxes = LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5))
        labels = torch.from_numpy(self.arrays["in/gt_labels"])
        return [InstanceData(bboxes_3d=boxes, labels_3d=labels)]

    def expect(self, key, result):
        """The acceptance criterion of forward tensors."""
        expected = torch.from_numpy(self.arrays[key])
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5, msg=None)


@pytest.fixture(params=FILES)
def recording(request):
    return Recording(request.param)


@pytest.mark.parametrize("mode", ["eval", "eval_bda", "train"])
def test_forward(recording, mode):
    """Maps, logits and codes of all layers."""
    bevs, logits, codes = recording.run(mode)
    recording.expect(f"{mode}/all_cls_scores", logits)
    recording.expect(f"{mode}/all_bbox_preds", codes)
    for frame, bev in bevs.items():
        name = "bev_f0_before_fusion" if frame == 0 else f"bev_f{frame}"
        recording.expect(f"{mode}/{name}", bev)


def test_fused_bev(recording):
    for mode in ("eval", "eval_bda", "train"):
        fused = []
        handle = recording.head.transformer.decoder.register_forward_pre_hook(
            lambda _, args, kwargs, fused=fused: fused.append(kwargs["bev_embed"]), with_kwargs=True
        )
        recording.run(mode)
        handle.remove()
        recording.expect(f"{mode}/bev_embed", fused[0].transpose(0, 1))


@pytest.mark.parametrize("mode", ["eval", "eval_bda"])
def test_decoded(recording, mode):
    _, logits, codes = recording.run(mode)
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)]
    (result,) = recording.head.predict_by_feat(logits, codes, metas)
    boxes = result.bboxes_3d
    boxes = torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=-1)
    recording.expect(f"{mode}/decoded_bboxes", boxes)
    recording.expect(f"{mode}/decoded_scores", result.scores_3d)
    recording.expect(f"{mode}/decoded_labels", result.labels_3d)


@pytest.mark.parametrize("stem", ["tiny_head_t3", "tiny_head_t3_inter"])
def test_missing_frame(stem):
    """A missing frame is filled from the side of the current one."""
    recording = Recording(stem)
    _, logits, _ = recording.run("eval", missing=(-1,))
    recording.expect("eval_missing_prev/all_cls_scores", logits)


def test_losses_and_gradients(recording):
    _, logits, codes = recording.run("train")
    losses = recording.head.loss_by_feat(logits, codes, recording.instances())
    expected = recording.group("train/loss/")
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    sum(losses.values()).backward()
    norms = recording.group("train/gradnorm/")
    gradients = {
        name: parameter.grad.double().norm().item()
        for name, parameter in recording.head.named_parameters()
        if parameter.requires_grad
    }
    assert gradients.keys() == norms.keys()
    for name, norm in norms.items():
        assert gradients[name] == pytest.approx(norm.item(), rel=1e-3, abs=1e-7), name


def test_projection_and_hits(recording):
    """The recorded cells, points and cameras."""
    encoder = recording.head.transformer.encoder
    projected, inside = encoder.project_pillars(recording.lidar_to_image(0), IMAGE_SIZE)
    hits = torch.from_numpy(recording.arrays["aux/hit_mask"])
    torch.testing.assert_close(inside.transpose(0, 1), hits, rtol=0, atol=0)
    recording.expect("aux/reference_points_cam", projected.transpose(0, 1))
