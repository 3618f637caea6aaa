"""mmcv's operators beside mmcv-lite: compiled mmcv's results, and models that train on them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("mmcv", reason="mmcv is not installed")

from integrations import mmcv_ext_cases
from integrations.mmcv_ext_cases import all_cases, boxes, uniform, with_gradients

from dcnv4_mm.integrations import mmcv_ext

pytestmark = [
    pytest.mark.mmcv,
    pytest.mark.skipif(not mmcv_ext.install(), reason="mmcv is compiled"),
]

RECORDED = np.load(Path(__file__).parents[1] / "data" / "mmcv_ext.npz")


def check_against_recorded(cases):
    count = 0
    for case, results in cases:
        for index, result in enumerate(results):
            recorded = torch.from_numpy(RECORDED[f"{case}:{index}"])
            if result.dtype == torch.int64:
                assert result.tolist() == recorded.tolist(), case
            else:
                close = dict(rtol=0, atol=2e-6, msg=lambda text, case=case: f"{case}: {text}")
                torch.testing.assert_close(result.float(), recorded, **close)
            count += 1
    return count


def test_results_and_gradients_are_those_of_compiled_mmcv():
    assert check_against_recorded(all_cases()) == len(RECORDED.files)


@pytest.mark.parametrize("cases", ["roi_align_cases", "deform_conv_cases"])
def test_channels_last_inputs_give_the_same(cases):
    """Compiled mmcv reads them as if they were contiguous."""
    check_against_recorded(getattr(mmcv_ext_cases, cases)(torch.channels_last))


def test_nms_takes_columns_of_a_larger_tensor():
    from mmcv.ops import nms

    table = torch.cat((boxes(1, 200), uniform(3, (200, 2))), dim=1)
    kept = nms(table[:, :4], table[:, 4], 0.5)[1]
    assert (
        kept.tolist() == nms(table[:, :4].contiguous(), table[:, 4].contiguous(), 0.5)[1].tolist()
    )


def test_an_overlap_of_exactly_the_threshold_is_kept():
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.6)[1].tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.59)[1].tolist() == [0]


def test_the_first_of_equal_boxes_and_scores_is_kept():
    from mmcv.ops import nms

    assert nms(torch.tensor([[0.0, 0, 10, 10]] * 40), torch.ones(40), 0.5)[1].tolist() == [0]


@pytest.mark.parametrize("turn", [0.0, math.pi / 4, -1.234])
@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 4, 2], 1.0),
        ([0, 0, 2, 2], 0.5),
        ([1, 0, 2, 2], 0.5),
        ([2, 0, 4, 2], 1 / 3),
        ([0, 0, 2, 4], 1 / 3),
        ([4, 0, 4, 2], 0.0),
        ([9, 9, 1, 1], 0.0),
        ([0, 0, 0, 2], 0.0),
    ],
)
def test_overlaps_of_rotated_boxes_with_edges_on_one_line(box, expected, turn):
    """Compiled mmcv loses corners to rounding here."""
    from mmcv.ops import box_iou_rotated

    cos, sin = math.cos(turn), math.sin(turn)

    def turned(x, y, width, height):
        return torch.tensor([[x * cos - y * sin, x * sin + y * cos, width, height, turn]])

    iou = box_iou_rotated(turned(0, 0, 4, 2), turned(*box))
    torch.testing.assert_close(iou, torch.tensor([[expected]]), rtol=0, atol=1e-6)


def test_rotated_boxes_of_different_labels_do_not_suppress_each_other():
    from mmcv.ops import nms_rotated

    boxes, scores = torch.tensor([[5.0, 5, 4, 2, 0.3]] * 3), torch.tensor([0.7, 0.9, 0.8])
    assert nms_rotated(boxes, scores, 0.5)[1].tolist() == [1]
    assert nms_rotated(boxes, scores, 0.5, torch.tensor([0.0, 1, 1]))[1].tolist() == [1, 0]


def test_backward_of_deformable_convolution_runs_once():
    """mmcv requests its gradients in two calls."""
    from mmcv.ops import deform_conv2d

    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.name())
            return func(*args, **(kwargs or {}))

    with Calls():
        with_gradients(
            lambda *inputs: deform_conv2d(*inputs, 1, 1),
            torch.rand(1, 2, 4, 4),
            torch.rand(1, 18, 4, 4),
            torch.rand(2, 2, 3, 3),
        )
    assert calls.count("torchvision::_deform_conv2d_backward") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32_and_rounded(dtype):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d, roi_align

    def both(function, *inputs):
        inputs = [tensor.to(dtype) for tensor in inputs]
        outputs = with_gradients(function, *inputs)
        exact = with_gradients(function, *(tensor.float() for tensor in inputs))
        for output, expected in zip(outputs, exact, strict=True):
            assert output.dtype == dtype
            spacing = torch.finfo(dtype).eps * expected.abs().max().item()
            torch.testing.assert_close(output.float(), expected, rtol=0, atol=2 * spacing)

    image = uniform(1, (1, 2, 6, 6), -1, 1)
    weight = uniform(2, (2, 2, 3, 3), -1, 1)
    offset = uniform(3, (1, 18, 6, 6), -1, 1)
    mask = uniform(4, (1, 9, 6, 6))
    rois = torch.tensor([[0, 1.0, 1, 5, 4]])
    with torch.autocast("cpu", dtype=dtype):
        both(lambda x: roi_align(x, rois.to(x.dtype), 2), image)
        both(lambda *tensors: deform_conv2d(*tensors, 1, 1), image, offset, weight)
        both(lambda *x: modulated_deform_conv2d(*x, None, 1, 1), image, offset, mask, weight)


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        ([[0.0, 5, 5, 1, 1]], "x2 >= x1"),
        ([[0.0, math.nan, 5, 9, 9]], "x2 >= x1"),
        ([[2.0, 1, 1, 5, 5]], "indices from 0 to 1"),
        ([[-1.0, 1, 1, 5, 5]], "indices from 0 to 1"),
    ],
)
def test_impossible_boxes_are_refused(rois, message):
    from mmcv.ops import roi_align

    with pytest.raises(ValueError, match=message):
        roi_align(torch.zeros(2, 1, 4, 4), torch.tensor(rois), 7)


def test_max_pooling_is_refused_by_name():
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match="roi_align: expected pool_mode='avg'"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 7, 1.0, 0, "max")


def test_offsets_of_a_map_smaller_than_the_output_are_refused():
    from mmcv.ops import modulated_deform_conv2d

    x, weight = torch.zeros(1, 2, 6, 6), torch.zeros(2, 2, 3, 3)
    offset, mask = torch.zeros(1, 18, 5, 6), torch.zeros(1, 9, 5, 6)
    with pytest.raises(ValueError, match=r"output's size \(6, 6\), got \(5, 6\)"):
        modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)


def attention_inputs(seed=50):
    shapes = torch.tensor([[5, 7], [3, 2], [1, 1]])
    starts = torch.tensor([0, 35, 41])
    value = uniform(seed, (4, 42, 2, 3), -1, 1, torch.float64)
    # A third of the locations is outside the image.
    locations = uniform(seed + 1, (4, 6, 2, 3, 2, 2), -0.3, 1.3, torch.float64)
    weights = uniform(seed + 2, (4, 6, 2, 3, 2), 0, 1, torch.float64)
    return shapes, starts, (value, locations, weights)


@pytest.mark.parametrize("im2col_step", [1, 64])
def test_attention_is_mmcvs_own_formula(im2col_step):
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    shapes, starts, inputs = attention_inputs()

    def kernel(value, locations, weights):
        return MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, locations, weights, im2col_step
        )

    def formula(value, locations, weights):
        return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)

    results = with_gradients(kernel, *inputs)
    expected = with_gradients(formula, *inputs)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=0, atol=1e-12)


def test_attention_refuses_levels_that_do_not_follow_each_other():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes, starts, (value, *points) = attention_inputs()
    with pytest.raises(ValueError, match=r"level_start_index: .* got \[1, 36, 42\]"):
        MultiScaleDeformableAttnFunction.apply(value, shapes, starts + 1, *points, 64)


def test_attention_keeps_its_dtype_under_autocast():
    """mmcv casts explicitly; autocast does not reach into a compiled function."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes, starts, inputs = attention_inputs()
    inputs = [tensor.float() for tensor in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = MultiScaleDeformableAttnFunction.apply(inputs[0], shapes, starts, *inputs[1:], 64)
    assert output.dtype == torch.float32


def focal_loss_formula(logits, target, gamma, alpha, weight=None):
    """The loss in terms of torch's cross entropy."""
    one_hot = F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    factor = torch.where(one_hot > 0, alpha, 1 - alpha)
    loss = factor * (1 - torch.exp(-entropy)) ** gamma * entropy
    return loss if weight is None else loss * weight[target][:, None]


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_is_its_formula(weighted):
    from mmcv.ops import sigmoid_focal_loss

    logits = uniform(60, (30, 5), -8, 8, torch.float64)
    target = torch.arange(30) % (5 if weighted else 6)
    weight = torch.arange(1.0, 6.0, dtype=torch.float64) if weighted else None
    results = with_gradients(
        lambda x: sigmoid_focal_loss(x, target, 2.5, 0.25, weight, "none"), logits
    )
    expected = with_gradients(lambda x: focal_loss_formula(x, target, 2.5, 0.25, weight), logits)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-9)


def test_focal_loss_of_certain_errors_is_finite():
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, "none")
    # Logarithms stop at that of the smallest normal float32.
    least = -math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(loss, torch.tensor([[0.25 * least, 0.75 * least], [0.0, 0.0]]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.75], [0.0, 0.0]]))


def test_focal_loss_of_nothing_is_nothing():
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.zeros(0, 5, requires_grad=True)
    sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, "sum").backward()
    assert logits.grad.shape == (0, 5)


def test_focal_loss_refuses_targets_beyond_the_background():
    from mmcv.ops import sigmoid_focal_loss

    with pytest.raises(ValueError, match="targets up to 5, got 6"):
        sigmoid_focal_loss(torch.zeros(1, 5), torch.tensor([6]))
    with pytest.raises(ValueError, match="targets up to 4, got 5"):
        sigmoid_focal_loss(torch.zeros(1, 5), torch.tensor([5]), 2.0, 0.25, torch.ones(5))


def test_another_operator_raises_when_called_and_says_what_helps():
    from mmcv.ops import carafe_naive

    with pytest.raises(
        NotImplementedError, match=r"_ext\.carafe_naive_forward .*install .*mmcv==2"
    ):
        carafe_naive(torch.zeros(1, 4, 2, 2), torch.zeros(1, 9, 4, 4), 3, 1, 2)


@pytest.mark.mmdet
def test_a_detector_of_mmdet_without_our_classes_trains_and_predicts():
    mmdet = pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    path = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / path).model
    config.backbone.update(depth=18, init_cfg=None, frozen_stages=-1)
    config.neck.in_channels = [64, 128, 256, 512]
    config.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    model = MODELS.build(config)
    data = demo_mm_inputs(2, (3, 96, 128), num_items=[2, 3], num_classes=80)

    losses = model(**model.data_preprocessor(data, True), mode="loss")
    total, log = model.parse_losses(losses)
    total.backward()
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"} <= set(log)
    assert all(value.isfinite() for value in log.values())
    assert model.backbone.conv1.weight.grad.abs().max() > 0

    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(data), mode="predict")
    for result in results:
        scores = result.pred_instances.scores
        assert len(scores) == config.test_cfg.rcnn.max_per_img
        assert scores.isfinite().all()
