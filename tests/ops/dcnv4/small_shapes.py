"""Every small shape of DCNv4 through its CUDA code on the host, against plain NumPy in float64.

A shape is an image of up to 5 x 5 pixels with a kernel of 1 to 9 points, every stride, padding and
dilation, 1 to 3 groups of 1 to 16 channels. Positions include the borders, whole pixels and values
that are not finite. All inputs are small multiples of powers of two, so that every sum is exact
in float32 (and in float16 where the kernels sum in it): results must be equal bit for bit to the
float64 ones, rounded once. Run with the address sanitizer by ``tests/ops/test_sanitizers.py``.
"""

import itertools
import sys
from collections import Counter

import numpy as np
import torch
from ops.backends import DEVICES, SANITIZERS, host_cuda
from ops.dcnv4.problems import DTYPES, Problem

EDGES = range(1, 6)
KERNELS = ((1, False), (2, False), (3, False), (3, True))
CHANNELS = (1, 2, 3, 4, 8, 16)
# Of each shape, with other values, dtypes, layouts and devices.
VARIANTS = 2
OUTSIDE = (np.inf, -np.inf, np.nan, 6e4, -6e4)


def out_edge(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def shapes():
    """Yields ((H, stride, padding, dilation), the same of W, kernel, remove_center, G, D)."""
    axes = tuple(itertools.product(EDGES, (1, 2), (0, 1, 2), (1, 2)))
    for rows, columns, (kernel, remove_center) in itertools.product(axes, axes, KERNELS):
        if min(out_edge(axis[0], kernel, *axis[1:]) for axis in (rows, columns)) < 1:
            continue
        for groups, channels in itertools.product((1, 2, 3), CHANNELS):
            yield rows, columns, kernel, remove_center, groups, channels


def hats(positions, size):
    """Bilinear weights [..., size] of the pixels of an axis, and their derivatives to the right."""
    distance = positions[..., None] - np.arange(size)
    slope = ((distance >= -1) & (distance < 0)) * 1.0 - ((distance >= 0) & (distance < 1))
    # A position that is not a number has no weight.
    return np.fmax(0, 1 - np.abs(distance)), slope


def expected(grad, value, offsets, masks, shape, scale):
    """Output and gradients in float64, as products of matrices of weights.

    Args:
        grad: [N, Ho, Wo, G, D]; the other arrays: value [N, H, W, G, D], offsets
            [N, Ho, Wo, G, K, 2] as (x, y) and masks [N, Ho, Wo, G, K].
    """
    rows, columns, kernel, remove_center, *_ = shape
    batch, height, width, groups, channels = value.shape
    points = [(y, x) for x in range(kernel) for y in range(kernel)]
    if remove_center:
        points.remove((kernel // 2, kernel // 2))

    def located(axis, out, offset):
        _, stride, padding, dilation = rows if axis == 0 else columns
        center = dilation * (kernel - 1) // 2
        grid = np.array([point[axis] for point in points]) * dilation - center
        base = np.arange(out) * stride + center - padding
        base = base.reshape((-1, 1, 1, 1) if axis == 0 else (-1, 1, 1))
        return base + (grid + offset) * scale

    y = located(0, grad.shape[1], offsets[..., 1])
    x = located(1, grad.shape[2], offsets[..., 0])
    inside = (y > -1) & (x > -1) & (y < height) & (x < width)
    (wy, dy), (wx, dx) = hats(y, height), hats(x, width)  # [N, Ho, Wo, G, K, H or W]
    # [N, G, Ho * Wo, H * W]: the weight of each pixel in each output.
    weights = np.einsum("nabgki,nabgkj,nabgk->ngabij", wy, wx, masks)
    weights = weights.reshape(batch, groups, -1, height * width)
    pixels = value.transpose(0, 3, 1, 2, 4).reshape(batch, groups, -1, channels)
    grads = grad.transpose(0, 3, 1, 2, 4).reshape(batch, groups, -1, channels)
    output = (weights @ pixels).reshape(batch, groups, *grad.shape[1:3], channels)
    grad_value = (weights.swapaxes(2, 3) @ grads).reshape(batch, groups, height, width, channels)
    dots = (grads @ pixels.swapaxes(2, 3)).reshape(batch, groups, *grad.shape[1:3], height, width)
    dots = dots.transpose(0, 2, 3, 1, 4, 5)  # [N, Ho, Wo, G, H, W]
    by_rows = (dots[:, :, :, :, None] * wx[..., None, :]).sum(-1)
    by_columns = (dots[:, :, :, :, None] * wy[..., :, None]).sum(-2)
    factor = masks * scale * inside
    grad_offsets = np.stack(
        [(by_columns * dx).sum(-1) * factor, (by_rows * dy).sum(-1) * factor], axis=-1
    )
    grad_masks = (by_rows * wy).sum(-1)
    gradients = np.concatenate([grad_offsets.reshape(*masks.shape[:4], -1), grad_masks], axis=-1)
    return (
        output.transpose(0, 2, 3, 1, 4),
        grad_value.transpose(0, 2, 3, 1, 4),
        gradients,
    )


def placed(array, dtype, rng):
    """A tensor of the array's values, packed or in a larger one that is full of NaN.

    Where it starts may not be aligned for wide loads.
    """
    tensor = torch.from_numpy(array).flatten(3).to(dtype)
    if rng.random() < 0.5:
        return tensor
    batch, height, width, channels = tensor.shape
    start, more = ((8, 8), (8, 0), (0, 16), (1, 2), (4, 4))[rng.integers(5)]
    below, right = rng.integers(2, size=2).tolist()
    size = batch, height + below, width + right, start + channels + more
    around = torch.full(size, torch.nan, dtype=dtype)
    return around[:, :height, :width, start : start + channels].copy_(tensor)


def make_case(index, shape):
    """Problem, its exact results, the device and whether the backward is deterministic."""
    rows, columns, kernel, remove_center, groups, channels = shape
    rng = np.random.default_rng(index)
    batch, points = int(rng.integers(1, 3)), kernel * kernel - remove_center
    out = [out_edge(axis[0], kernel, *axis[1:]) for axis in (rows, columns)]
    scale = (1.0, 0.5, 2.0)[rng.integers(3)]
    dtype = DTYPES[rng.integers(4)]

    def whole(most, *size):
        return rng.integers(-most, most + 1, size=size).astype(np.float64)

    value = whole(3, batch, rows[0], columns[0], groups, channels)
    grad = whole(3, batch, *out, groups, channels)
    masks = whole(8, batch, *out, groups, points) / 4
    offsets = whole(24, batch, *out, groups, points, 2) / 8
    kind = rng.integers(4)
    if kind == 0:
        offsets = np.round(offsets)
    elif kind == 1:
        far = rng.random(offsets.shape) < 0.1
        offsets[far] = rng.choice(OUTSIDE, size=int(far.sum()))
    packed = np.concatenate([offsets.reshape(*masks.shape[:4], -1), masks], axis=-1)
    offset_mask = placed(packed, dtype, rng)
    spare = int(rng.integers(3)) * 3
    if spare and offset_mask.is_contiguous():
        offset_mask = torch.nn.functional.pad(offset_mask, (0, spare), value=torch.nan)
    lists = ([kernel] * 2, *([r, c] for r, c in zip(rows[1:], columns[1:], strict=True)))
    problem = Problem(
        placed(grad, dtype, rng),
        placed(value, dtype, rng),
        offset_mask,
        *lists,
        groups,
        scale,
        remove_center,
        fast=bool(rng.random() < 0.5),
    )
    device = (*DEVICES, "tiny", "tiny")[rng.integers(len(DEVICES) + 2)]
    exact = expected(grad, value, offsets, masks, shape, scale)
    return problem, exact, device, bool(rng.random() < 0.5)


def check(index, shape, host):
    problem, exact, device, deterministic = make_case(index, shape)
    host.use(device)
    operators = torch.ops.dcnv4_mm_host
    output = operators.dcnv4_forward(*problem.inputs())
    gradients = operators.dcnv4_backward(*problem, deterministic, True, True)
    dtype = problem.value.dtype
    for name, result, array in zip(
        ("output", "grad_value", "grad_offset_mask"), (output, *gradients), exact, strict=True
    ):
        right = torch.from_numpy(array).flatten(3)
        used = right.shape[-1]
        same = torch.equal(result[..., :used], right.to(dtype)) and not result[..., used:].any()
        if not same:
            raise AssertionError(
                f"case {index}, {shape}, {dtype}, {device}, deterministic {deterministic}: {name}"
            )


def main(first, step):
    """Checks every ``step``-th case from ``first`` on; prints the number and the kernels run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    host = host_cuda("dcnv4", *SANITIZERS)
    host.launches()
    cases = itertools.product(shapes(), range(VARIANTS))
    count, launched = 0, Counter()
    for index, (shape, _) in itertools.islice(enumerate(cases), first, None, step):
        check(index, shape, host)
        count += 1
        if count % 500 == 0:
            launched.update(launch.kernel for launch in host.launches())
    launched.update(launch.kernel for launch in host.launches())
    print(count, *(f"{kernel}:{number}" for kernel, number in sorted(launched.items())))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
