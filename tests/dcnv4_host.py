"""The bodies of the CUDA kernels of DCNv4, compiled for the host and called through ctypes."""

import ctypes
import os
import random
import subprocess
from ctypes import POINTER, Structure, byref, c_bool, c_double, c_int32, c_int64, c_uint32, c_void_p

import torch
from helpers import ROOT

from dcnv4_mm.ops.dcnv4.layout import num_points

SOURCE = ROOT / "tests/ops/dcnv4/host_run.cpp"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_host(folder, *, source=SOURCE, sanitize=False):
    """Compiles the library into ``folder`` and returns its path."""
    target = folder / "host_run.so"
    compiler = os.environ.get("CXX", "g++")
    flags = [*FLAGS, "-Wall", "-Wextra", "-Werror", *(SANITIZERS if sanitize else [])]
    command = [compiler, *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


class Pitches(Structure):
    _fields_ = [(name, c_int64) for name in ("image", "row", "pixel")]


class Params(Structure):
    """As in csrc/dcnv4/params.h."""

    _fields_ = [
        ("dtype", c_int32),
        *[(name, c_int64) for name in ("batch", "height", "width", "out_height", "out_width")],
        *[(name, c_int64) for name in ("groups", "group_channels", "points")],
        *[(name, c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")],
        ("offset_scale", c_double),
        ("remove_center", c_bool),
        ("value", c_void_p),
        ("value_pitches", Pitches),
        ("offset_mask", c_void_p),
        ("offset_mask_pitches", Pitches),
        ("output", c_void_p),
        ("grad_output", c_void_p),
        ("grad_output_pitches", Pitches),
        ("grad_value", c_void_p),
        ("grad_offset_mask", c_void_p),
        ("offset_mask_channels", c_int64),
    ]


class DeviceLimits(Structure):
    """As in csrc/common/launch.h."""

    _fields_ = [
        ("multiprocessors", c_int32),
        ("shared_per_multiprocessor", c_int32),
        ("shared_per_block", c_int32),
        ("capability", c_int32),
    ]


class Divisor(Structure):
    _fields_ = [(name, c_uint32) for name in ("value", "multiplier", "shift")]


class Tiling(Structure):
    """As in csrc/dcnv4/launch.h; so are the following."""

    _fields_ = [
        *[(name, c_int32) for name in ("threads", "points", "shared_bytes")],
        ("blocks", c_int64),
        *[(name, c_int32) for name in ("vectors", "out_height", "out_width")],
        *[(name, c_int32) for name in ("groups", "group_channels")],
        *[(f"tile_{name}", Divisor) for name in ("height", "width", "groups", "vectors")],
        *[(name, Divisor) for name in ("tiles_down", "tiles_across")],
        *[(name, Divisor) for name in ("group_slices", "vector_slices")],
        *[(name, Divisor) for name in ("tile_points", "kernel_points", "kernel_rows")],
        ("window", c_uint32 * 14),
    ]


class Ownership(Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("threads", "shared_bytes")],
        ("blocks", c_int64),
        *[(name, c_int32) for name in ("pixels", "owners", "owner_pixels")],
        *[(name, c_int32) for name in ("points", "points_pixels")],
        *[(name, Divisor) for name in ("ranges", "groups", "channels", "width")],
        *[(name, Divisor) for name in ("group_slices", "channel_slices")],
        *[(name, Divisor) for name in ("points_divisor", "kernel_points", "kernel_rows")],
        ("out_width", Divisor),
    ]


class ValueLaunch(Structure):
    OWNED, ATOMIC = 0, 1
    _fields_ = [("mode", c_int32), ("ownership", Ownership)]


# Multiprocessors and KiB of shared memory per multiprocessor and per block.
DEVICES = {
    f"sm_{name}": DeviceLimits(multiprocessors, shared << 10, block << 10, int(name))
    for name, multiprocessors, shared, block in (
        ("75", 40, 64, 64),
        ("80", 108, 164, 163),
        ("86", 84, 100, 99),
        ("89", 128, 100, 99),
        ("90", 132, 228, 227),
        ("100", 148, 228, 227),
        ("120", 170, 100, 99),
    )
}

# No real device: where even small images are cut into parts or summed with atomic additions.
TINY_DEVICE = DeviceLimits(2, 24 << 10, 24 << 10)

_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def _pitches(tensor):
    return Pitches(*tensor.stride()[:3])


def _readable(tensor):
    adjacent = tensor.stride(3) == 1 or tensor.shape[3] == 1
    return tensor if adjacent else tensor.contiguous()


def _readable_value(value):
    """Value as the kernels can read it, and its pitches: rows are whole pixels apart."""
    value = _readable(value)
    pitches = _pitches(value)
    if value.shape[2] == 1:
        pitches.pixel = value.shape[3] if value.shape[1] == 1 else pitches.row
    if value.shape[1] == 1:
        pitches.row = pitches.pixel * value.shape[2]
    if pitches.pixel <= 0 or pitches.row % pitches.pixel:
        return _readable_value(value.clone(memory_format=torch.contiguous_format))
    return value, pitches


def params_of(problem):
    """The kernels' struct, and the tensors that it points into."""
    value, value_pitches = _readable_value(problem.value)
    offset_mask = _readable(problem.offset_mask)
    params = Params(
        dtype=_DTYPES.index(value.dtype),
        batch=value.shape[0],
        height=value.shape[1],
        width=value.shape[2],
        out_height=offset_mask.shape[1],
        out_width=offset_mask.shape[2],
        groups=problem.groups,
        group_channels=value.shape[3] // problem.groups,
        points=num_points(tuple(problem.kernel_size), problem.remove_center),
        kernel=(c_int64 * 2)(*problem.kernel_size),
        stride=(c_int64 * 2)(*problem.stride),
        padding=(c_int64 * 2)(*problem.padding),
        dilation=(c_int64 * 2)(*problem.dilation),
        offset_scale=problem.offset_scale,
        remove_center=problem.remove_center,
        value=value.data_ptr(),
        value_pitches=value_pitches,
        offset_mask=offset_mask.data_ptr(),
        offset_mask_pitches=_pitches(offset_mask),
        offset_mask_channels=offset_mask.shape[3],
    )
    return params, (value, offset_mask)


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

    def _call(self, function, params, flag):
        seed = c_uint32(self.seeds.getrandbits(32))
        error = function(byref(params), byref(self.limits), c_bool(flag), seed)
        if error is not None:
            raise RuntimeError(error.decode())

    def forward(self, problem):
        params, tensors = params_of(problem)
        output = _poisoned(tensors[0], problem.grad_output.shape)
        params.output = output.data_ptr()
        self._call(self.library.forward_on_host, params, problem.fast)
        return output

    def backward(self, problem, deterministic=False, need_value=True, need_offset_mask=True):
        params, tensors = params_of(problem)
        grad_output = _readable(problem.grad_output)
        params.grad_output = grad_output.data_ptr()
        params.grad_output_pitches = _pitches(grad_output)
        grad_value = _poisoned(tensors[0], problem.value.shape)
        grad_offset_mask = _poisoned(tensors[0], problem.offset_mask.shape)
        params.grad_value = grad_value.data_ptr() if need_value else None
        params.grad_offset_mask = grad_offset_mask.data_ptr() if need_offset_mask else None
        self._call(self.library.backward_on_host, params, deterministic)
        return grad_value, grad_offset_mask

    def run(self, problem):
        """Output, gradient of value, gradient of offset_mask."""
        return self.forward(problem), *self.backward(problem)

    def run_deterministic(self, problem):
        return self.forward(problem), *self.backward(problem, deterministic=True)

    def too_large(self, params):
        return self.library.too_large(byref(params))

    def vector(self, params):
        return self.library.vector_of(byref(params))

    def tiling(self, params, vector=None):
        tiling = Tiling()
        vector = self.vector(params) if vector is None else vector
        self.library.tiling_of(byref(params), c_int32(vector), byref(self.limits), byref(tiling))
        return tiling

    def value_launch(self, params, deterministic):
        launch = ValueLaunch()
        self.library.value_launch_of(
            byref(params), c_bool(deterministic), byref(self.limits), byref(launch)
        )
        return launch

    def count(self, function, params, launch, size):
        """How often each element is covered."""
        counts = torch.zeros(size, dtype=torch.int32)
        pointer = ctypes.cast(counts.data_ptr(), POINTER(c_int32))
        getattr(self.library, function)(byref(params), byref(launch), pointer)
        return counts
