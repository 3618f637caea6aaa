"""Hybrid queries: where the perspective head found something, the BEV head looks first."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.samples import RANGE
from bev.small_detector import (
    assert_all_have_gradients,
    build,
    images,
    losses_of,
    sample,
)
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from dcnv4_mm.bev.layers.proposals import proposal_reference_points

PROPOSALS = 4
QUARTER_TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.fixture
def detector():
    return build(num_proposal_queries=PROPOSALS)


def single(**kwargs):
    return sample(frames=(0,), **kwargs)


def found_at(*centers):
    boxes = torch.tensor([[*center, 4.5, 1.9, 1.6, 0, 0, 0] for center in centers])
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes.reshape(-1, 9), box_dim=9, origin=(0.5, 0.5, 0.5))
    )


def test_references_by_hand():
    """The best inside of the range, at its border pulled in, and NaN for what is not there."""
    found = [found_at((0.0, 25.6, -1), (60.0, 0, 0), (51.2, 0, 3), (9.0, 9, 0)), found_at()]
    references = proposal_reference_points(found, 2, RANGE)
    expected = torch.tensor([[0.5, 0.75, 0.5], [0.999, 0.5, 0.999]])
    torch.testing.assert_close(references[0], expected)
    assert references[1].isnan().all()
    turned = proposal_reference_points(
        found, 1, RANGE, torch.from_numpy(np.stack([QUARTER_TURN] * 2))
    )
    torch.testing.assert_close(turned[0].float(), torch.tensor([[0.25, 0.5, 0.5]]))


def sees_the_car(detector, monkeypatch, meta):
    """Lets the perspective head find, in the first camera, the car of the sample."""
    center = meta["lidar2cam"][0] @ [2.0, 12, -1, 1]
    car = InstanceData(
        labels=torch.tensor([3]),
        scores=torch.tensor([0.9]),
        centers=torch.from_numpy(center[None, :3]).float(),
        rotations=torch.eye(3)[None],
        wlh=torch.tensor([[1.9, 4.5, 1.6]]),
    )
    head = detector.fcos3d_bbox_head
    monkeypatch.setattr(head, "predict_by_feat", lambda *_: [car, *[car[:0]] * 5])


@pytest.mark.parametrize("augmentation", [None, QUARTER_TURN])
def test_proposals_lie_where_the_objects_are(detector, monkeypatch, augmentation):
    """From a camera to the LiDAR, through the BEV's augmentation, to fractions of the range."""
    meta = single(bev_augmentation=augmentation).metainfo
    sees_the_car(detector, monkeypatch, meta)
    features = detector.eval().extract_feat(images(frames=1), [meta])
    proposals = detector._proposals(features, [meta])
    center = torch.tensor([2.0, 12] if augmentation is None else [-12.0, 2])
    torch.testing.assert_close(proposals[0, 0, :2].float(), center / 102.4 + 0.5)
    assert proposals[0, 0, 2].item() == pytest.approx(0.5)
    assert proposals[0, 1:].isnan().all()


def test_queries_start_at_their_proposals(detector):
    """Where nothing is refined, a query answers with its reference; in every group."""
    head = detector.pts_bbox_head
    for branch in head.reg_branches:
        torch.nn.init.zeros_(branch[-1].weight)
        torch.nn.init.zeros_(branch[-1].bias)
    proposals = torch.full((1, PROPOSALS, 3), torch.nan)
    proposals[0, 0] = torch.tensor([0.25, 0.5, 0.75])
    bevs, valid = torch.randn(1, 1, 100, 16), torch.ones(1, 1, dtype=torch.bool)
    _, codes = head.train()(bevs, valid, 0, proposals)
    per_group = codes.unflatten(2, (2, 6 + PROPOSALS))
    expected = torch.tensor([-25.6, 0.0, 1.0])
    for group in range(2):
        started = per_group[:, 0, group, 6][..., [0, 1, 4]]
        torch.testing.assert_close(started, expected.expand_as(started), rtol=0, atol=1e-4)
    assert codes.isfinite().all()
    assert head.eval()(bevs, valid, 0, proposals)[0].shape == (2, 1, 6 + PROPOSALS, 10)


def test_the_centers_of_proposals_count_from_the_first_step_on(detector):
    """The start is the learned positions alone; what is learned beside them has a gradient."""
    queries = detector.pts_bbox_head.proposal_queries
    somewhere = torch.rand(1, PROPOSALS, 3)
    nowhere = torch.full_like(somewhere, torch.nan)
    torch.testing.assert_close(queries(somewhere, 2), queries(nowhere, 2))
    torch.nn.init.ones_(queries.encoding[-1].weight)
    assert (queries(somewhere, 2) - queries(nowhere, 2)).abs().max() > 0.1


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_every_parameter_gets_a_gradient(detector, monkeypatch, threshold):
    """With proposals and, as their scores never reach 2, without; statistics count once."""
    monkeypatch.setattr("dcnv4_mm.bev.heads.dd3d_head._MIN_SCORE", threshold)
    losses = losses_of(detector, images(frames=1), [single()])
    sum(losses.values()).backward()
    assert_all_have_gradients(detector)
    norm = detector.fcos3d_bbox_head.fcos2d_head.cls_tower[0].norm[0]
    assert norm.num_batches_tracked == 1
    assert detector.fcos3d_bbox_head.training


def test_predictions(detector):
    (result,) = detector.eval().predict(dict(imgs=images(frames=1)), [single()])
    assert len(result.pred_instances_3d.scores_3d) <= 10 * (6 + PROPOSALS)


def test_off_is_the_released_model():
    assert build().pts_bbox_head.proposal_queries is None


def test_proposals_need_the_perspective_head():
    with pytest.raises(ValueError, match="num_proposal_queries needs the perspective head"):
        build(num_proposal_queries=PROPOSALS, fcos3d_bbox_head=None)
