"""The perspective head by hand: sizes, rays, depth, losses at their edges, inference."""

import math

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.small_detector import assert_all_have_gradients
from mmengine.structures import InstanceData

from dcnv4_mm.bev.geometry import allocentric_to_egocentric, quaternion_to_matrix, unproject
from dcnv4_mm.bev.heads.dd3d_head import CANONICAL_WLH, DD3DHead
from dcnv4_mm.bev.layers.fcos import STRIDES
from dcnv4_mm.bev.losses.perspective import centerness_target, corner_loss, ltrb_giou_loss
from dcnv4_mm.bev.task_modules.point_targets import assign_points, pyramid_points
from dcnv4_mm.bev.task_modules.suppression import class_wise_nms, merge_cameras

IMAGE_SIZE = (128, 256)
INTRINSICS = torch.tensor([[200.0, 0, 128], [0, 200, 64], [0, 0, 1]])
CAR = list(CANONICAL_WLH).index("car")


@pytest.fixture
def head():
    torch.manual_seed(0)
    return DD3DHead(in_channels=8, norm_cfg=dict(type="BN"))


def features(imgs=1):
    torch.manual_seed(1)
    return [
        torch.randn(imgs, 8, math.ceil(IMAGE_SIZE[0] / s), math.ceil(IMAGE_SIZE[1] / s))
        for s in STRIDES
    ]


def img(count=1, **changes):
    """Cars of 4 x 1.8 x 1.5 m, 10 m ahead, across the line of sight."""
    objects = InstanceData(
        bboxes=torch.tensor([[88.0, 49, 168, 79]]).repeat(count, 1),
        labels=torch.full((count,), CAR),
        quaternions=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        centers=torch.tensor([[0.0, 0, 10]]).repeat(count, 1),
        wlh=torch.tensor([[1.8, 4, 1.5]]).repeat(count, 1),
        attributes=torch.ones(count, dtype=torch.int64),
        speeds=torch.zeros(count),
    )
    objects.set_metainfo(dict(intrinsics=INTRINSICS))
    for name, value in changes.items():
        objects[name] = value
    return objects


def test_canonical_sizes_follow_the_alphabet():
    """A car is 1.74 m high, and is the fourth class."""
    assert list(CANONICAL_WLH) == sorted(CANONICAL_WLH)
    assert CANONICAL_WLH["car"][2] == pytest.approx(1.74, abs=0.01)
    # A bus is longer than high than wide.
    width, length, height = CANONICAL_WLH["bus"]
    assert length > height > width


def test_unproject():
    """A pixel's ray, at the point's depth, is the point."""
    point = torch.tensor([1.0, -2, 8])
    pixel = INTRINSICS @ point
    ray = unproject(pixel[:2] / pixel[2], torch.linalg.inv(INTRINSICS))
    torch.testing.assert_close(ray * 8, point)


def test_allocentric_frame():
    """Straight ahead nothing changes; to the side, the frame turns with the line of sight."""
    identity = torch.eye(3)
    ahead = allocentric_to_egocentric(identity, torch.tensor([0.0, 0, 5]))
    torch.testing.assert_close(ahead, identity)
    aside = allocentric_to_egocentric(identity, torch.tensor([5.0, 0, 5]))
    torch.testing.assert_close(
        aside @ torch.tensor([0.0, 0, 1]), torch.tensor([0.5**0.5, 0, 0.5**0.5])
    )
    torch.testing.assert_close(aside[:, 1], torch.tensor([0.0, 1, 0]))


@pytest.mark.parametrize("scale", [0.4, 0.8, 1.2])
def test_depth_does_not_depend_on_the_resize(head, scale):
    """The same prediction means a depth in proportion to the image's scale: zoom is undone.

    A camera of focal length f sees at depth d what one of s * f sees at depth s * d.
    """
    parts = {name: torch.zeros(1, n) for name, n in (("quat", 4), ("proj_ctr", 2), ("size", 3))}
    parts["quat"][0, 0] = 1
    parts["depth"] = torch.tensor([[12.0]])
    labels, points = torch.tensor([CAR]), torch.tensor([[100.0, 50.0]])

    def decode(factor):
        shrink = torch.diag(torch.tensor([factor, factor, 1.0]))
        inverse = torch.linalg.inv(shrink @ INTRINSICS)[None]
        return head._decode(parts, labels, points * factor, inverse)

    original, resized = decode(1.0), decode(scale)
    torch.testing.assert_close(resized.depth, original.depth * scale)
    torch.testing.assert_close(resized.quat, original.quat)
    # 12 / (500 * sqrt(2) / 200)
    assert original.depth.item() == pytest.approx(12 / (500 * 2**0.5 / 200), rel=1e-5)


def test_centerness():
    ltrb = torch.tensor([[2.0, 3, 2, 3], [1, 1, 4, 1], [0, 1, 1, 1]])
    torch.testing.assert_close(centerness_target(ltrb), torch.tensor([1.0, 0.5, 0]))


def test_giou_by_hand():
    """Two boxes of 4 x 4, of which a quarter each overlaps: 1 - 5/29 + (36 - 28)/36."""
    predicted, target = torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[3.0, 3, 1, 1]])
    expected = 1 - (4 + 1) / (28 + 1) + (36 - 28) / 36
    assert ltrb_giou_loss(predicted, target).item() == pytest.approx(expected)
    assert ltrb_giou_loss(target, target).item() == 0


def test_corner_loss_jumps_at_beta():
    """The quadratic part is not divided by beta."""
    corners = torch.zeros(2, 8, 3)
    corners[0, 0, 0], corners[1, 0, 0] = 0.04, 1.0
    expected = torch.tensor([0.5 * 0.04**2, 1 - 0.025]) / 24
    torch.testing.assert_close(corner_loss(corners, torch.zeros(2, 8, 3)), expected)


def test_points_have_no_half_stride():
    points = pyramid_points([(2, 3), (1, 2)], [8, 16])
    assert points.tolist()[-4:] == [[8.0, 8], [16, 8], [0, 0], [16, 0]]


def test_assignment_by_hand():
    """A location gets the smallest box of its level with the location near its centre."""
    points = torch.tensor([[32.0, 32], [32, 32], [8, 32], [32, 0]])
    strides = torch.tensor([8.0, 16, 8, 8])
    sizes = torch.tensor([[-1.0, 64], [64, 128], [-1, 64], [-1, 64]])
    boxes = torch.tensor([[0.0, 0, 64, 64], [16, 16, 48, 48], [0, 0, 256, 256]])
    index, ltrb = assign_points(points, strides, sizes, boxes)
    # Too small a level, no level, off the centre, on the border.
    assert index.tolist() == [1, -1, -1, -1]
    assert ltrb[0].tolist() == [16, 16, 16, 16]
    assert assign_points(points, strides, sizes, boxes[:0])[0].tolist() == [-1] * 4


def test_positives_answer_for_their_object(head):
    shapes = [tuple(level.shape[-2:]) for level in features()]
    labels, positives = head.targets(shapes, [img(), img(0), img()])
    assert positives.labels.tolist() == [CAR] * len(positives.labels)
    assert labels.shape == (3 * sum(h * w for h, w in shapes),)
    # Two images of three, the same locations in both.
    first, second = positives.indices.chunk(2)
    assert (second - first == 2 * math.prod(shapes[0])).all()
    torch.testing.assert_close(positives.boxes.proj_ctr[0], torch.tensor([128.0, 64]))


@pytest.mark.parametrize("objects", [img(0), img(1)])
def test_every_parameter_gets_a_finite_gradient(head, objects):
    """With and without objects."""
    losses = head.loss(features(), [objects])
    assert len(losses) == 10
    sum(losses.values()).backward()
    assert_all_have_gradients(head)


def test_unknown_speeds_and_attributes_cost_nothing(head):
    unknown = img(attributes=torch.tensor([3]), speeds=torch.tensor([torch.nan]))
    losses = head.loss(features(), [unknown])
    assert losses["loss_speed"] == losses["loss_attr"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert head.speed.weight.grad is not None


@pytest.mark.parametrize("quaternion", [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
def test_half_turns_have_gradients(head, quaternion):
    """At the rotations where quaternions of matrices are degenerate."""
    losses = head.loss(features(), [img(quaternions=torch.tensor([quaternion]))])
    losses["loss_box3d_quat"].backward()
    assert head.fcos3d_head.box3d_quat[0].weight.grad.isfinite().all()


def test_opposite_quaternions_are_one_target(head):
    outputs = head(features())
    quaternion = torch.tensor([[0.5, 0.5, -0.5, 0.5]])
    one, other = (
        head.loss_by_feat(outputs, [img(quaternions=sign * quaternion)]) for sign in (1, -1)
    )
    assert one["loss_box3d_quat"] == other["loss_box3d_quat"]


def perfect_outputs(objects):
    """What the head would have to predict at one location for one car ahead."""
    outputs = {
        "logits": torch.full((1, 10), -9.0),
        "box2d_reg": torch.tensor([[40.0, 15, 40, 15]]),
        "centerness": torch.full((1, 1), 9.0),
        "quat": torch.zeros(1, 4, 10),
        "proj_ctr": torch.zeros(1, 2, 10),
        "depth": torch.full((1, 1, 10), 10 * 500 * 2**0.5 / 200),
        "size": torch.zeros(1, 3, 10),
        "conf": torch.full((1, 1, 10), 9.0),
    }
    outputs["logits"][0, CAR] = 9
    outputs["quat"][0, 0] = 1
    sizes = objects.wlh[0] / torch.tensor(CANONICAL_WLH["car"])
    outputs["size"][0, :, CAR] = torch.atanh(sizes - 1)
    maps = {}
    for name, values in outputs.items():
        fill = -9.0 if name in ("logits", "centerness") else 0.0
        maps[name] = [torch.full((1, values[0].numel(), 128 // s, 256 // s), fill) for s in STRIDES]
        maps[name][0][0, :, 64 // 8, 128 // 8] = values.flatten()
    return maps


def test_inference_finds_what_was_predicted(head):
    (found,) = head.predict_by_feat(perfect_outputs(img()), INTRINSICS[None])
    assert found.labels.tolist() == [CAR]
    torch.testing.assert_close(found.bboxes, img().bboxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.centers, img().centers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.wlh, img().wlh)
    assert found.scores.item() > 0.99


def test_nothing_found(head):
    maps = {
        name: [torch.full_like(x, -9.0) for x in levels]
        for name, levels in perfect_outputs(img()).items()
    }
    (found,) = head.predict_by_feat(maps, INTRINSICS[None])
    assert len(found) == 0


def camera_pose(yaw):
    """LiDAR to camera, for a camera that looks forward, turned to the left by ``yaw``."""
    right = [math.cos(yaw), math.sin(yaw), 0.0]
    forward = [-math.sin(yaw), math.cos(yaw), 0.0]
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([right, [0.0, 0.0, -1.0], forward])
    return pose


def test_an_object_that_two_cameras_see_is_one():
    """Centre, yaw and sizes in the LiDAR frame."""
    poses = torch.stack([camera_pose(0.5), camera_pose(-0.5)])
    center, yaw = torch.tensor([1.0, 20, -0.5]), 0.3
    lidar_rotation = quaternion_to_matrix(
        torch.tensor([math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)])
    )
    imgs = [
        InstanceData(
            labels=torch.tensor([CAR]),
            scores=torch.tensor([score]),
            centers=(pose[:3, :3] @ center)[None],
            rotations=(pose[:3, :3] @ lidar_rotation)[None],
            wlh=torch.tensor([[1.8, 4.0, 1.5]]),
        )
        for pose, score in zip(poses, (0.8, 0.9), strict=True)
    ]
    merged = merge_cameras(imgs, poses)
    assert merged.scores_3d.tolist() == pytest.approx([0.9])
    torch.testing.assert_close(merged.bboxes_3d.gravity_center[0], center)
    expected = torch.tensor([4.0, 1.8, 1.5, yaw, 0, 0])
    torch.testing.assert_close(merged.bboxes_3d.tensor[0, 3:], expected)


@pytest.mark.parametrize("tail", [[4.0, 4.0, 0.0], [3.0, 3.0]])
def test_suppression_keeps_classes_apart_at_negative_places(tail):
    """One class's offset must not put its boxes onto another's."""
    boxes = torch.tensor([[0.0, 0.0, *tail], [-5.0, -5.0, *tail], [0.1, 0.1, *tail]])
    if len(tail) == 2:
        boxes[:, 2:] += boxes[:, :2]
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    assert class_wise_nms(boxes, scores, labels, 0.3).tolist() == [0, 1]


def test_message():
    with pytest.raises(ValueError, match="for each of 3 classes, got 10"):
        DD3DHead(num_classes=3)


def test_speed_loss_is_the_standard_one(head):
    """Other than that of the corners, divided by beta."""
    outputs = head(features())
    _, positives = head.targets([tuple(x.shape[-2:]) for x in outputs["logits"]], [img()])
    speeds = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in outputs["speed"]])
    predicted = speeds[positives.indices, 0]
    share = centerness_target(positives.ltrb)
    distance = F.smooth_l1_loss(predicted, torch.zeros_like(predicted), beta=0.05, reduction="none")
    expected = 0.2 * (share * distance).sum() / share.sum()
    torch.testing.assert_close(head.loss_by_feat(outputs, [img()])["loss_speed"], expected)
