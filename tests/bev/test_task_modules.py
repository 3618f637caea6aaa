"""Box codes and matching, by hand."""

import math

import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.samples import RANGE
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from dcnv4_mm.bev.heads.bev_head import BEVFormerV2Head
from dcnv4_mm.bev.task_modules.assigner import HungarianAssigner
from dcnv4_mm.bev.task_modules.box_coder import BoxCoder

WIDE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


@pytest.fixture
def coder():
    return BoxCoder(point_cloud_range=RANGE, post_center_range=WIDE, max_num=3)


def a_car(yaw=0.3):
    """Gravity centre, length, width, height, yaw, velocity."""
    return torch.tensor([[10.0, -20, -1, 4.5, 1.9, 1.6, yaw, 3, -1]])


def test_code_by_hand():
    code = BoxCoder.encode(a_car(yaw=math.pi / 6))[0]
    sizes = [math.log(4.5), math.log(1.9)]
    expected = [10.0, -20, *sizes, -1, math.log(1.6), 0.5, math.sqrt(3) / 2, 3, -1]
    torch.testing.assert_close(code, torch.tensor(expected))


@pytest.mark.parametrize("yaw", [-3.0, -1.0, 0.0, 0.3, 2.0])
def test_round_trip(coder, yaw):
    """Through the code and mmdet3d's boxes, whose origin is at the bottom."""
    logits = torch.full((1, 10), -9.0)
    logits[0, 3] = 9
    boxes, scores, labels = coder.decode(logits, BoxCoder.encode(a_car(yaw)))
    torch.testing.assert_close(boxes[:1], a_car(yaw))
    assert labels[0] == 3
    assert scores[0] > 0.999
    car = LiDARInstance3DBoxes(boxes[:1], box_dim=9, origin=(0.5, 0.5, 0.5))
    assert car.gravity_center[0, 2] == pytest.approx(-1)
    assert car.bottom_center[0, 2] == pytest.approx(-1.8)
    assert car.dims[0, 0] > car.dims[0, 1]
    # The front lies where the yaw points to.
    forward = torch.tensor([math.cos(yaw), math.sin(yaw)])
    ahead = (car.corners[0, :, :2] - torch.tensor([10.0, -20])) @ forward
    torch.testing.assert_close(ahead.max(), torch.tensor(2.25), rtol=1e-4, atol=1e-4)


def test_fractions_become_metres(coder):
    code = torch.zeros(1, 10)
    code[0, [0, 1, 4]] = torch.tensor([0.5, 1.0, 0.0])
    assert coder.to_metres(code)[0, [0, 1, 4]].tolist() == pytest.approx([0, 51.2, -5])


def test_decoding_takes_the_best_inside_the_range(coder):
    codes = BoxCoder.encode(a_car()).repeat(3, 1)
    codes[1, 0] = 70.0
    logits = torch.tensor([[1.0, 0.5], [3.0, -3.0], [-5.0, 2.0]])
    boxes, scores, labels = coder.decode(logits, codes)
    # The first of the three best lies outside.
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(scores, torch.tensor([2.0, 1.0]).sigmoid())
    assert len(boxes) == 2


def test_coder_message():
    with pytest.raises(ValueError, match="lower corner, then of the upper"):
        BoxCoder(point_cloud_range=[0, 0, 0, 1, 1], post_center_range=WIDE)


def test_matching_by_hand():
    """Two objects, three queries, two groups: each group answers once for each object."""
    targets = torch.zeros(2, 10)
    targets[1, 0] = 10
    codes = torch.zeros(2, 3, 10)
    codes[0, 0, 0], codes[0, 2, 0] = 9, 50
    codes[1, 0, 0], codes[1, 1, 0] = 50, 11
    assigned = HungarianAssigner().assign(
        torch.zeros(2, 3, 4), codes, torch.tensor([0, 1]), targets
    )
    assert assigned.tolist() == [[1, 0, -1], [-1, 1, 0]]


def test_classes_decide_between_equal_boxes():
    logits = torch.tensor([[3.0, -3], [-3, 3]])
    assigned = HungarianAssigner().assign(
        logits, torch.zeros(2, 10), torch.tensor([1, 0]), torch.zeros(2, 10)
    )
    assert assigned.tolist() == [1, 0]


def test_velocity_does_not_count():
    codes, targets = torch.zeros(1, 2, 10), torch.zeros(1, 10)
    codes[0, 0, 8:] = 30
    codes[0, 1, 0] = 0.1
    assigned = HungarianAssigner().assign(torch.zeros(1, 2, 3), codes, torch.tensor([2]), targets)
    assert assigned.tolist() == [[0, -1]]


def test_broken_predictions_are_matched_last():
    codes = torch.zeros(1, 3, 10)
    codes[0, 0] = torch.nan
    codes[0, 1] = torch.inf
    assigned = HungarianAssigner().assign(
        torch.zeros(1, 3, 2), codes, torch.tensor([0]), torch.ones(1, 10)
    )
    assert assigned.tolist() == [[-1, -1, 0]]


def build_head(**kwargs):
    torch.manual_seed(0)
    head = BEVFormerV2Head(
        bev_shape=(4, 4),
        embed_dims=16,
        num_queries=5,
        num_groups=2,
        encoder=dict(num_layers=1, feedforward_channels=16),
        decoder=dict(num_layers=2, feedforward_channels=16),
        **kwargs,
    )
    head.init_weights()
    return head


@pytest.fixture
def head():
    return build_head()


def instances(boxes, labels):
    boxes = LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5))
    return InstanceData(bboxes_3d=boxes, labels_3d=torch.tensor(labels, dtype=torch.int64))


def forward(head, batch=1):
    return head(torch.randn(batch, 1, 16, 16), torch.ones(batch, 1, dtype=torch.bool), 0)


def test_a_sample_without_objects(head):
    """Nothing to find is a loss of the classes alone, finite, with all its gradients."""
    losses = head.loss_by_feat(*forward(head), [instances(torch.zeros(0, 9), [])])
    assert losses["loss_bbox"] == 0
    assert losses["loss_cls"] > 0
    sum(losses.values()).backward()
    for name, parameter in [
        *head.cls_branches.named_parameters(),
        *head.reg_branches.named_parameters(),
    ]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_target_that_is_not_finite_counts_for_its_class_alone(head):
    logits, codes = forward(head)
    box = a_car()
    box[0, 7] = torch.nan
    losses = head.loss_by_feat(logits, codes, [instances(box, [3])])
    assert losses["loss_bbox"] == 0
    assert losses["loss_cls"].isfinite()


def test_velocities_weigh_as_the_config_says(head):
    """A fifth as released; the same predictions, so what differs is the velocity's share."""
    logits, codes = forward(head)
    slow, fast = a_car(), a_car()
    fast[0, 7:] = torch.tensor([40.0, -40])

    def box_loss(box, **kwargs):
        other = build_head(**kwargs)
        return other.loss_by_feat(logits, codes, [instances(box, [3])])["loss_bbox"]

    released = box_loss(fast) - box_loss(slow)
    whole = [1.0] * 10
    full = box_loss(fast, code_weights=whole) - box_loss(slow, code_weights=whole)
    torch.testing.assert_close(full, 5 * released, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=r"code_weights.* 10 .*got 8"):
        build_head(code_weights=[1.0] * 8)


def test_a_batch_is_normalised_by_all_its_objects(head):
    torch.manual_seed(1)
    logits, codes = forward(head, batch=2)
    both = [instances(a_car(), [3]), instances(a_car(1.0).repeat(3, 1), [0, 3, 9])]
    together = head.loss_by_feat(logits, codes, both)
    alone = [
        head.loss_by_feat(logits[:, i : i + 1], codes[:, i : i + 1], both[i : i + 1])
        for i in range(2)
    ]
    for name, loss in together.items():
        expected = (1 * alone[0][name] + 3 * alone[1][name]) / 4
        torch.testing.assert_close(loss, expected)


def test_evaluation_asks_the_first_group_alone(head):
    """The other groups' embeddings change nothing."""
    head.eval()
    bevs, valid = torch.randn(1, 1, 16, 16), torch.ones(1, 1, dtype=torch.bool)
    logits, codes = head(bevs, valid, 0)
    assert codes.shape == (2, 1, 5, 10)
    with torch.no_grad():
        head.query_embedding.weight[5:] += 1
    torch.testing.assert_close(head(bevs, valid, 0)[0], logits)
    assert head.train()(bevs, valid, 0)[0].shape == (2, 1, 10, 10)


def test_prior_of_the_classifiers(head):
    assert head.cls_branches[0][-1].bias.sigmoid().tolist() == pytest.approx([0.01] * 10)


def test_start_of_the_embeddings(head):
    """Xavier's rule for the transformer's, also over the samplings' own start; else as torch's."""
    transformer = head.transformer
    for embeds in (transformer.level_embeds, transformer.cams_embeds):
        bound = math.sqrt(6 / sum(embeds.shape))
        assert 0.5 * bound < embeds.abs().max() <= bound
    offsets = transformer.encoder.layers[0].attentions[0].sampling_offsets
    assert (offsets.weight == 0).all()
    assert offsets.bias[:2].tolist() == [1, 0]
    for embedding in (head.bev_embedding, head.positional_encoding.row_embed):
        assert embedding.weight.std().item() == pytest.approx(1, abs=0.3)
