"""The bodies of the CUDA kernels of BEV cross-attention, compiled for the host."""

from ctypes import Structure, c_int64, c_void_p

import flash_deform_attn_host
import torch
from flash_deform_attn_host import Level, Pitches
from helpers import ROOT

SOURCE = ROOT / "tests/ops/bev_cross_attn/host_run.cpp"
_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class CameraPitches(Structure):
    """As in csrc/bev_cross_attn/params.h; so is the following."""

    _fields_ = [(name, c_int64) for name in ("sample", "camera", "query")]


class Params(flash_deform_attn_host.Params):
    _fields_ = (
        *[(name, c_int64) for name in ("cameras", "pillar")],
        ("references", c_void_p),
        ("reference_pitches", CameraPitches),
        ("hits", c_void_p),
        ("hit_pitches", CameraPitches),
    )


def params_of(problem):
    """The kernels' struct, and the tensors that it points into."""
    value, points, references = (
        tensor.contiguous()
        for tensor in (problem.value, problem.offsets_logits, problem.references)
    )
    sizes = problem.level_sizes
    levels, start = (Level * (len(sizes) // 2))(), 0
    for level, height, width in zip(levels, sizes[::2], sizes[1::2], strict=True):
        level.height, level.width, level.start = height, width, start
        start += height * width
    offsets = points.shape[-1] // 3 * 2
    params = Params(
        dtype=_DTYPES.index(value.dtype),
        float32_points=points.dtype != value.dtype,
        softmax=True,
        batch=value.shape[0],
        cameras=value.shape[1],
        pixels=value.shape[2],
        heads=value.shape[3],
        channels=value.shape[4],
        queries=points.shape[1],
        num_levels=len(levels),
        num_points=problem.num_points,
        pillar=references.shape[3],
        levels=levels,
        value=value.data_ptr(),
        value_pitches=Pitches(*value.stride()[1:4]),
        locations=points.data_ptr(),
        location_pitches=Pitches(*points.stride()[:3]),
        weights=points[..., offsets:].data_ptr(),
        weight_pitches=Pitches(*points.stride()[:3]),
        references=references.data_ptr(),
        reference_pitches=CameraPitches(*references.stride()[:3]),
        hits=problem.hits.data_ptr(),
        hit_pitches=CameraPitches(*problem.hits.stride()),
    )
    return params, (value, points, references, problem.hits, levels)


def _poisoned(tensor):
    return torch.full(tensor.shape, torch.nan, dtype=tensor.dtype)


class HostKernels(flash_deform_attn_host.HostKernels):
    """Runs problems on the host as one device would."""

    def on(self, limits):
        return HostKernels(self.path, limits)

    def forward(self, problem):
        params, _tensors = params_of(problem)
        output = _poisoned(problem.grad_output)
        params.output = output.data_ptr()
        self._call(self.library.forward_on_host, params)
        return output

    def backward(self, problem, deterministic=False, need_value=True, need_points=True):
        """Gradients of value and points."""
        params, (value, points, *_tensors) = params_of(problem)
        grad_output = problem.grad_output.contiguous()
        params.grad_output = grad_output.data_ptr()
        params.grad_output_pitches = Pitches(*grad_output.stride()[:2], value.shape[4])
        grad_value, grad_points = _poisoned(value), _poisoned(points)
        params.grad_value = grad_value.data_ptr() if need_value else None
        params.grad_location_pitch = params.grad_weight_pitch = points.shape[-1]
        if need_points:
            params.grad_locations = grad_points.data_ptr()
            params.grad_weights = grad_points[..., points.shape[-1] // 3 * 2 :].data_ptr()
        self._call(self.library.backward_on_host, params, deterministic)
        return grad_value, grad_points
