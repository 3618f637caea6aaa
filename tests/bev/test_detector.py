"""The detector: frames, modes, flips, batches, gradients, autocast; with small parts."""

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.small_detector import (
    CHANNELS,
    SIZE,
    assert_all_have_gradients,
    build,
    images,
    losses_of,
    sample,
)
from helpers import run_python

from dcnv4_mm.bev.feature_cache import FeatureCache, useful_capacity
from dcnv4_mm.bev.layers.grid_mask import GridMask


@pytest.fixture
def detector():
    return build(frames=3)


def test_neighbours_run_in_evaluation_mode_without_gradient(detector):
    """Their statistics do not count, and every part is as before afterwards."""
    detector.train()
    # A part that its owner keeps in evaluation mode stays there.
    detector.fcos3d_bbox_head.fcos2d_head.eval()
    losses_of(detector, images(), [sample()])
    seen = [(training, grad) for _, training, grad in detector.img_backbone.seen]
    # Both neighbours at once, then the current frame.
    assert seen == [(False, False), (True, True)]
    assert [len(images) for images, *_ in detector.img_backbone.seen] == [12, 6]
    assert detector.img_backbone.norm.num_batches_tracked == 1
    assert detector.training
    assert not detector.fcos3d_bbox_head.fcos2d_head.training


def test_missing_frames_are_not_computed(detector):
    losses_of(detector, images(), [sample(valid=(False, True, False))])
    assert len(detector.img_backbone.seen) == 1


def test_every_parameter_gets_a_gradient(detector):
    """Also at a scene's end, and without objects in the images."""
    for case in (sample(), sample(valid=(False, True, False)), sample(mono=0)):
        detector.zero_grad()
        losses = losses_of(detector, images(), [case])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert_all_have_gradients(detector)


def test_images_without_objects_cost_nothing(detector):
    losses = losses_of(detector, images(), [sample(mono=0)])
    assert all(loss == 0 for name, loss in losses.items() if name.endswith("_mono"))


@pytest.mark.parametrize("padding", [0, 16])
def test_a_flip_is_undone_on_the_features(detector, padding):
    """With a backbone that commutes with it, a mirrored sample gives the same features."""
    imgs = images()[:, :6]
    imgs[..., SIZE[1] - padding :] = 0
    metas = [sample(flip=flip).metainfo for flip in (False, True)]
    plain, mirrored = (detector.eval().extract_feat(imgs, [meta]) for meta in metas)
    (first, *_), (second, *_) = (seen[0] for seen in detector.img_backbone.seen)
    assert torch.equal(second, first.flip(-1))
    for one, other in zip(plain[:3], mirrored[:3], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("height", [64, 128])
def test_a_flip_changes_no_loss(height):
    """Boxes, intrinsics and objects stay as they are, for both heads."""
    imgs = torch.randn(1, 6, 3, height, 256)
    plain, mirrored = (
        losses_of(build(), imgs, [sample(frames=(0,), flip=flip)]) for flip in (False, True)
    )
    for name, loss in plain.items():
        torch.testing.assert_close(mirrored[name], loss, rtol=1e-4, atol=1e-5, msg=name)


def test_the_original_mirrors_without_padding():
    detector = build(legacy_flip=True)
    meta = {**sample(flip=True).metainfo, "img_shape": (64, 144)}
    imgs = images()[:, :6]
    detector.eval().extract_feat(imgs, [meta])
    seen = detector.img_backbone.seen[0][0][0, :, :, :]
    torch.testing.assert_close(seen[..., :144], imgs[0, 0, ..., :144].flip(-1))
    torch.testing.assert_close(seen[..., 144:], imgs[0, 0, ..., 144:])


def test_a_batch_is_its_samples(detector):
    """Each with its own cameras, missing frames, flip and augmentation."""
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    both = [
        sample(valid=(False, True, True), bev_augmentation=np.eye(3)),
        sample(flip=True, turn=0.5, bev_augmentation=turn),
    ]
    imgs = images(batch=2)
    detector.eval()
    with torch.no_grad():
        together = detector._forward(dict(imgs=imgs), both)
        for index in range(2):
            alone = detector._forward(dict(imgs=imgs[index : index + 1]), both[index : index + 1])
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one[:, index], other[:, 0], rtol=1e-4, atol=1e-4)


def test_warping_without_motion_is_projecting():
    imgs, samples = images(), [sample()]
    projecting, warping = (build(frames=3, temporal_alignment=a) for a in ("projection", "warp"))
    with torch.no_grad():
        expected, result = (
            model.eval().encode(imgs, [samples[0].metainfo])[0] for model in (projecting, warping)
        )
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_warping_moves_the_other_frames_alone():
    """A car that drove 20.48 m forward: content moves back by two of ten cells."""
    samples, imgs = [sample(), sample()], images(batch=2)
    moved = np.eye(4)
    moved[1, 3] = -20.48
    motion = np.stack([moved, np.eye(4), np.eye(4)])
    meta = samples[1].metainfo
    # The same view from the frame's own LiDAR.
    own = meta["lidar2img"] @ np.linalg.inv(motion)[:, None]
    samples[1].set_metainfo(dict(lidar_to_current=motion, lidar2img=own))
    imgs[1] = imgs[0]
    model = build(frames=3, temporal_alignment="warp").eval()
    with torch.no_grad():
        bevs, _, _ = model.encode(imgs, [s.metainfo for s in samples])
    still, warped = bevs.unflatten(2, (10, 10))
    torch.testing.assert_close(warped[0, :8], still[0, 2:], rtol=1e-3, atol=1e-3)
    assert (warped[0, 8:] == 0).all()
    torch.testing.assert_close(warped[1:], still[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "capacity"),
    [
        ((0,), 0),
        ((-1, 0), 2),
        (range(-7, 1), 8),
        ((-8, -4, 0, 4, 8), 20),
        ((-8, -4, 0), 12),
        ((-9, -1, 0), 18),
    ],
)
def test_useful_capacity(frames, capacity):
    """No frame is computed twice; strided offsets need more frames than they span."""
    assert useful_capacity(frames) == capacity
    cache, computed = FeatureCache(capacity), []
    for current in range(40):
        keys = [(current + offset,) for offset in frames]
        cache.fetch(
            keys,
            lambda missing, keys=keys: (
                computed.extend(keys[i] for i in missing) or [torch.zeros(len(missing), 1)]
            ),
        )
    assert len(computed) == len(set(computed))


@pytest.mark.parametrize("alignment", ["projection", "warp"])
@torch.no_grad()
def test_cached_frames_give_the_same_boxes(alignment):
    """With projection the encoder runs for every sample; warped features are encoded once."""
    detector = build(frames=3, temporal_alignment=alignment).eval()
    pixels, cameras = images(frames=5).unflatten(1, (5, 6)), sample().metainfo["lidar2img"][0]
    encoder, calls = detector.pts_bbox_head.transformer.encoder, []
    encoder.register_forward_hook(lambda module, args, output: calls.append(len(output)))

    def drive(cached):
        detector.cache = FeatureCache(cached)
        calls.clear()
        found = []
        for current in range(1, 4):
            motion = np.tile(np.eye(4), (3, 1, 1))
            motion[:, 1, 3] = [-1.7, 0, 1.7]
            packed = sample(frame_tokens=tuple(range(current - 1, current + 2)))
            packed.set_metainfo(
                dict(lidar_to_current=motion, lidar2img=cameras @ np.linalg.inv(motion)[:, None])
            )
            imgs = pixels[:, current - 1 : current + 2].flatten(1, 2)
            found.append(detector._forward(dict(imgs=imgs), [packed]))
            assert len(detector.cache) <= cached
        return found, sum(calls)

    plain, plain_encoded = drive(0)
    detector.img_backbone.seen.clear()
    ours, encoded = drive(3)
    assert sum(len(seen[0]) for seen in detector.img_backbone.seen) == 5 * 6
    assert (plain_encoded, encoded) == ((9, 9) if alignment == "projection" else (9, 5))
    for one, other in zip(ours, plain, strict=True):
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


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
    with pytest.raises(ValueError, match="must be 'projection' or 'warp', got 'flow'"):
        build(temporal_alignment="flow")
    with pytest.raises(ValueError, match="3 frames of 6 cameras make 18 images, got 6"):
        losses_of(detector, images(frames=1), [sample()])
    with pytest.raises(ValueError, match="the same frames"):
        losses_of(detector, images(batch=2), [sample(), sample(frames=(-2, -1, 0))])
    # A single embedding would broadcast over all cameras, and a model without fusion would ignore
    # the other frames.
    detector.pts_bbox_head.transformer.cams_embeds = nn.Parameter(torch.zeros(1, CHANNELS))
    with pytest.raises(ValueError, match=r"1 cameras.* got 6"):
        losses_of(detector, images(), [sample()])
    for expected in (1, 2):
        with pytest.raises(ValueError, match=f"expected {expected} frames.* got 3"):
            losses_of(build(frames=expected), images(), [sample()])


def test_grid_mask():
    """Stripes of rows and columns remain; nothing happens in evaluation."""
    torch.manual_seed(0)
    mask, imgs = GridMask(prob=1.0), torch.ones(4, 6, 3, 48, 64)
    assert mask.eval()(imgs) is imgs
    masked = mask.train()(imgs)
    assert (masked == masked[:, :1, :1]).all()
    # Other masks for other samples.
    assert not torch.equal(masked[0], masked[1])
    kept = masked[0, 0, 0].bool()
    rows, columns = kept.all(1), kept.all(0)
    assert torch.equal(kept, rows[:, None] | columns[None])
    assert 0 < kept.float().mean() < 1
    assert torch.equal(GridMask(prob=0.0)(imgs), imgs)


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """One at a scene's end, the other without objects in its images."""
    from bev import distributed_detector

    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    run_python(*torchrun, distributed_detector.__file__, tmp_path, cwd=tmp_path)
    expected = distributed_detector.gradients(
        distributed_detector.make_detector(), *distributed_detector.make_batch()
    )
    for rank in (0, 1):
        sharded = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert sharded.keys() == expected.keys()
        for name, gradient in sharded.items():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=name
            )
