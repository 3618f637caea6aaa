"""Calls of mmcv.ops with seeded inputs, whose results compiled mmcv 2.1.0 has recorded.

``python tests/integrations/mmcv_ext_cases.py tests/data/mmcv_ext.npz`` records them, with compiled
mmcv.
"""

import itertools
import sys

import numpy as np
import torch


def uniform(seed, shape, low=0.0, high=1.0, dtype=torch.float32):
    array = np.random.RandomState(seed).uniform(low, high, shape)
    return torch.from_numpy(array).to(dtype)


def boxes(seed, count, size=100.0):
    corners = uniform(seed, (count, 2), 0, size)
    return torch.cat((corners, corners + uniform(seed + 1, (count, 2), 1, size / 2)), dim=1)


def grid_boxes(seed, count):
    """Boxes with integer corners, which overlap by exactly 0.5, 0.6 or 0.7 among others."""
    rng = np.random.RandomState(seed)
    corners = rng.randint(0, 4, (count, 2))
    box = np.concatenate((corners, corners + rng.randint(0, 7, (count, 2))), axis=1)
    return torch.from_numpy(box).float(), torch.from_numpy(rng.permutation(count) / count).float()


def nms_cases():
    from mmcv.ops import batched_nms, nms, soft_nms

    for offset, threshold in itertools.product((0, 1), (0.3, 0.5, 0.6, 0.7)):
        arguments = threshold, offset
        yield f"nms/real-{threshold}-{offset}", nms(boxes(1, 200), uniform(3, 200), *arguments)[1:]
        yield f"nms/grid-{threshold}-{offset}", nms(*grid_boxes(4, 300), *arguments)[1:]
    yield "nms/empty", nms(boxes(1, 0), uniform(1, 0), 0.5)
    scored = nms(boxes(5, 200), uniform(7, 200), 0.5, score_threshold=0.4, max_num=20)
    yield "nms/score_threshold", scored

    for offset, method in itertools.product((0, 1), ("naive", "linear", "gaussian")):
        result = soft_nms(boxes(8, 80), uniform(10, 80), 0.3, 0.5, 0.2, method, offset)
        yield f"soft_nms/{method}-{offset}", result
    for seed, method in itertools.product(range(8), ("naive", "linear", "gaussian")):
        # Equal scores: which one comes first depends on where discarded boxes were.
        box, score = grid_boxes(seed, 30)
        result = soft_nms(box, score.mul(4).ceil() / 4, 0.3, 0.5, 0.1, method, 1)
        yield f"soft_nms/equal-{method}-{seed}", result
    yield "soft_nms/empty", soft_nms(boxes(1, 0), uniform(1, 0))

    for count in (500, 10500):
        classes = torch.from_numpy(np.random.RandomState(12).randint(0, 5, count))
        inputs = boxes(13, count), uniform(15, count), classes
        for agnostic in (False, True):
            config = {"type": "nms", "iou_threshold": 0.2, "max_num": 40}
            result = batched_nms(*inputs, config, class_agnostic=agnostic)
            yield f"batched_nms/{count}-{agnostic}", result
    config = {"type": "soft_nms", "iou_threshold": 0.5, "min_score": 0.5}
    yield "batched_nms/soft", batched_nms(boxes(16, 90), uniform(18, 90), classes[:90], config)


def rotated_boxes(seed, count):
    center, size = uniform(seed, (count, 2), 0, 30), uniform(seed + 1, (count, 2), 1, 20)
    return torch.cat((center, size, uniform(seed + 2, (count, 1), -4, 4)), dim=1)


def rotated_cases():
    from mmcv.ops import batched_nms, box_iou_rotated, nms_rotated

    first, second = rotated_boxes(40, 20), rotated_boxes(43, 12)
    for mode, clockwise in itertools.product(("iou", "iof"), (False, True)):
        result = box_iou_rotated(first, second, mode, False, clockwise)
        yield f"box_iou_rotated/{mode}-{clockwise}", (result,)
        result = box_iou_rotated(first[:12], second, mode, True, clockwise)
        yield f"box_iou_rotated/{mode}-{clockwise}-aligned", (result,)
    many, scores = rotated_boxes(46, 150), uniform(49, 150)
    for threshold in (0.1, 0.3, 0.6):
        yield f"nms_rotated/{threshold}", nms_rotated(many, scores, threshold)[1:]
    classes = torch.arange(150) % 4
    config = {"type": "nms_rotated", "iou_threshold": 0.2}
    yield "batched_nms/rotated", batched_nms(many, scores, classes, config)[1:]


def rois():
    """Inside, over every border, far outside, a point, a line, narrower than a pixel."""
    values = [
        [0, 8.3, 4.1, 41.7, 30.2],
        [1, -9.0, -12.5, 20.0, 90.0],
        [1, 50.5, 20.0, 75.0, 44.4],
        [0, 300.0, 300.0, 340.0, 360.0],
        [1, 16.0, 16.0, 16.0, 16.0],
        [0, 10.0, 12.0, 10.0, 40.0],
        [0, 20.2, 20.2, 20.9, 20.9],
    ]
    return torch.tensor(values)


def with_gradients(function, *inputs):
    """The output, and the gradients of its product with a seeded tensor."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    output.backward(uniform(99, output.shape, -1, 1, output.dtype))
    return output.detach(), *(tensor.grad for tensor in inputs)


def roi_align_cases(layout=torch.contiguous_format):
    from mmcv.ops import roi_align

    image = uniform(20, (2, 3, 11, 14), -1, 1).contiguous(memory_format=layout)
    for aligned, ratio in itertools.product((False, True), (0, 2)):
        for size in (7, (3, 5)):

            def pool(x, size=size, ratio=ratio, aligned=aligned):
                return roi_align(x, rois().to(x.dtype), size, 0.25, ratio, "avg", aligned)

            yield f"roi_align/{size}-{ratio}-{aligned}", with_gradients(pool, image)
    yield "roi_align/empty", with_gradients(lambda x: roi_align(x, rois()[:0], 14), image)
    yield "roi_align/float64", with_gradients(pool, image.double())


def deform_conv_cases(layout=torch.contiguous_format):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    # Name: stride, padding, dilation, groups, groups of offsets.
    settings = {
        "plain": (1, 1, 1, 1, 1),
        "groups": (1, 1, 1, 2, 1),
        "deform_groups": (1, 1, 1, 1, 2),
        "stride": ((2, 1), (1, 0), 1, 2, 2),
        "dilation": (1, (2, 3), (2, 3), 1, 4),
    }
    for name, setting in settings.items():
        stride, padding, dilation, groups, deform_groups = setting
        image = uniform(30, (2, 4, 5, 6), -1, 1, torch.float64)
        weight = uniform(31, (4, 4 // groups, 3, 3), -1, 1, torch.float64)
        sides = torch.nn.functional.conv2d(
            image[:, :1], weight[:1, :1], None, stride, padding, dilation
        ).shape[2:]
        points = 9 * deform_groups
        offset = uniform(32, (2, 2 * points, *sides), -4, 4, torch.float64)
        # Whole numbers too, where a sample is a pixel or lies on a border.
        offset[:, ::3] = offset[:, ::3].round()
        mask = uniform(33, (2, points, *sides), 0, 1, torch.float64)
        bias = uniform(34, (4,), -1, 1, torch.float64)
        image, weight, offset, mask = (
            tensor.contiguous(memory_format=layout) for tensor in (image, weight, offset, mask)
        )

        def v1(x, offset, weight, setting=setting):
            return deform_conv2d(x, offset, weight, *setting, False, 1)

        def v2(x, offset, mask, weight, bias=None, setting=setting):
            return modulated_deform_conv2d(x, offset, mask, weight, bias, *setting)

        yield f"deform_conv/{name}", with_gradients(v1, image, offset, weight)
        yield f"modulated/{name}", with_gradients(v2, image, offset, mask, weight, bias)
    yield "modulated/no-bias", with_gradients(v2, image, offset, mask, weight)
    # As DyHead calls it: offsets and mask of a larger map than the output.
    offset, mask = (
        torch.cat((tensor, -tensor), dim=2).contiguous(memory_format=layout)
        for tensor in (offset, mask)
    )
    yield "modulated/larger", with_gradients(v2, image, offset, mask, weight, bias)


def all_cases():
    yield from nms_cases()
    yield from rotated_cases()
    yield from roi_align_cases()
    yield from deform_conv_cases()


if __name__ == "__main__":
    arrays = {}
    for case, results in all_cases():
        for index, tensor in enumerate(results):
            arrays[f"{case}:{index}"] = tensor.numpy().astype(
                np.int16 if tensor.dtype == torch.int64 else np.float32
            )
    np.savez_compressed(sys.argv[1], **arrays)
