"""The bodies of the CUDA kernels of deformable attention, compiled for the host."""

import ctypes
import random
from ctypes import POINTER, Structure, byref, c_bool, c_int32, c_int64, c_uint32, c_void_p

import torch
from dcnv4_host import DEVICES, DeviceLimits, Divisor
from helpers import ROOT

SOURCE = ROOT / "tests/ops/flash_deform_attn/host_run.cpp"


class Pitches(Structure):
    _fields_ = [(name, c_int64) for name in ("image", "row", "head")]


class Level(Structure):
    _fields_ = [(name, c_int64) for name in ("height", "width", "start")]


class Params(Structure):
    """As in csrc/flash_deform_attn/params.h."""

    _fields_ = [
        ("dtype", c_int32),
        *[(name, c_bool) for name in ("float32_points", "softmax")],
        *[(name, c_int64) for name in ("batch", "pixels", "queries", "heads", "channels")],
        *[(name, c_int64) for name in ("num_levels", "num_points")],
        ("levels", POINTER(Level)),
        ("value", c_void_p),
        ("value_pitches", Pitches),
        ("locations", c_void_p),
        ("location_pitches", Pitches),
        ("weights", c_void_p),
        ("weight_pitches", Pitches),
        ("output", c_void_p),
        ("grad_output", c_void_p),
        ("grad_output_pitches", Pitches),
        *[(name, c_void_p) for name in ("grad_value", "grad_locations", "grad_weights")],
        *[(name, c_int64) for name in ("grad_location_pitch", "grad_weight_pitch")],
    ]


class Tiling(Structure):
    """As in csrc/flash_deform_attn/launch.h; so is the following."""

    _fields_ = [
        *[(name, c_int32) for name in ("threads", "pairs", "points", "shared_bytes")],
        ("blocks", c_int64),
        ("vectors", c_int32),
        *[(name, Divisor) for name in ("tiles", "vector_slices", "tile_vectors", "tile_points")],
        *[(name, Divisor) for name in ("queries", "level_points")],
    ]


class Ownership(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("threads", "shared_bytes")],
        ("blocks", c_int64),
        *[(name, c_int32) for name in ("pixels", "owners", "owner_pixels", "pairs", "points")],
        *[(name, Divisor) for name in ("ranges", "width", "channel_slices", "heads")],
        *[(name, Divisor) for name in ("tile_points", "queries", "level_points")],
    ]


# No real device: few multiprocessors, and levels are cut into many parts.
TINY_DEVICE = DeviceLimits(2, 24 << 10, 24 << 10)

_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def _pitches(tensor):
    return Pitches(*tensor.stride()[:3])


def _readable(tensor, axes):
    """The tensor, or a copy, with the numbers of its last axes adjacent."""
    numbers = tensor.flatten(-axes) if axes > 1 else tensor
    adjacent = numbers.stride(-1) == 1 or numbers.shape[-1] == 1
    return numbers if adjacent else numbers.clone(memory_format=torch.contiguous_format)


def params_of(problem):
    """The kernels' struct, and the tensors that it points into."""
    value = _readable(problem.value, 1)
    sizes = problem.level_sizes
    levels, start = (Level * (len(sizes) // 2))(), 0
    for level, height, width in zip(levels, sizes[::2], sizes[1::2], strict=True):
        level.height, level.width, level.start = height, width, start
        start += height * width
    params = Params(
        dtype=_DTYPES.index(value.dtype),
        float32_points=problem.weights.dtype != value.dtype,
        softmax=problem.packed,
        batch=value.shape[0],
        pixels=value.shape[1],
        queries=problem.weights.shape[1],
        heads=value.shape[2],
        channels=value.shape[3],
        num_levels=len(levels),
        num_points=problem.weights.shape[4],
        levels=levels,
        value=value.data_ptr(),
        value_pitches=_pitches(value),
    )
    if problem.packed:
        locations = problem.inputs()[1]
        weights = locations[..., locations.shape[-1] // 3 * 2 :]
    else:
        locations, weights = _readable(problem.locations, 3), _readable(problem.weights, 2)
    params.locations, params.location_pitches = locations.data_ptr(), _pitches(locations)
    params.weights, params.weight_pitches = weights.data_ptr(), _pitches(weights)
    return params, (value, locations, weights, levels)


def _poisoned(tensor, shape):
    return torch.full(shape, torch.nan, dtype=tensor.dtype)


class HostKernels:
    """Runs problems on the host as one device would."""

    def __init__(self, path, limits=DEVICES["sm_90"]):
        self.library = ctypes.CDLL(str(path))
        self.path = path
        self.limits = limits
        self.seeds = random.Random(0)
        for name in ("forward_on_host", "backward_on_host", "too_large"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.vector_of.restype = c_int32

    def on(self, limits):
        return HostKernels(self.path, limits)

    def _call(self, function, params, *flags):
        seed = c_uint32(self.seeds.getrandbits(32))
        error = function(byref(params), byref(self.limits), *map(c_bool, flags), seed)
        if error is not None:
            raise RuntimeError(error.decode())

    def forward(self, problem):
        params, tensors = params_of(problem)
        output = _poisoned(tensors[0], problem.grad_output.shape)
        params.output = output.data_ptr()
        self._call(self.library.forward_on_host, params)
        return output

    def backward(self, problem, deterministic=False, need_value=True, need_points=True):
        """Gradients in the layout of the raw operators."""
        params, tensors = params_of(problem)
        grad_output = _readable(problem.grad_output.unflatten(-1, problem.value.shape[2:]), 1)
        params.grad_output = grad_output.data_ptr()
        params.grad_output_pitches = _pitches(grad_output)
        grad_value = _poisoned(tensors[0], problem.value.shape)
        params.grad_value = grad_value.data_ptr() if need_value else None
        points = params.num_levels * params.num_points
        if problem.packed:
            grads = (_poisoned(tensors[1], problem.inputs()[1].shape),)
            grad_weights = grads[0][..., 2 * points :]
            params.grad_location_pitch = params.grad_weight_pitch = 3 * points
        else:
            grads = tuple(
                _poisoned(tensor, tensor.shape) for tensor in (problem.locations, problem.weights)
            )
            grad_weights = grads[1]
            params.grad_location_pitch, params.grad_weight_pitch = 2 * points, points
        if need_points:
            params.grad_locations = grads[0].data_ptr()
            params.grad_weights = grad_weights.data_ptr()
        self._call(self.library.backward_on_host, params, deterministic)
        return grad_value, *grads

    def run(self, problem):
        """Output, then the gradients of value and points."""
        return self.forward(problem), *self.backward(problem)

    def run_deterministic(self, problem):
        return self.forward(problem), *self.backward(problem, deterministic=True)

    def too_large(self, params):
        return self.library.too_large(byref(params))

    def vector(self, params):
        return self.library.vector_of(byref(params))

    def tiling(self, params, vector=None, of="tiling_of"):
        tiling = Tiling()
        vector = self.vector(params) if vector is None else vector
        function = getattr(self.library, of)
        function(byref(params), c_int32(vector), byref(self.limits), byref(tiling))
        return tiling

    def point_tiling(self, params):
        return self.tiling(params, of="point_tiling_of")

    def ownership(self, params):
        ownership = Ownership()
        self.library.ownership_of(byref(params), byref(self.limits), byref(ownership))
        return ownership

    def count(self, function, params, launch, size):
        """How often each element is covered."""
        counts = torch.zeros(size, dtype=torch.int32)
        pointer = ctypes.cast(counts.data_ptr(), POINTER(c_int32))
        getattr(self.library, function)(byref(params), byref(launch), pointer)
        return counts
