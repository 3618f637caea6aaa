"""A stand-in for a GPU: tensors in CPU memory that report ``cuda:0`` as their device.

They hold real values, unlike FakeTensorMode's, so a model whose shapes depend on values runs to its
predictions. An operator that combines one of them with a CPU tensor raises, as on a GPU.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
aten = torch.ops.aten
# A GPU copies from the CPU, and takes its indices.
MIXED = {aten.copy_.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class FakeGpuTensor(torch.Tensor):
    """Reports the GPU as its device; ``memory`` is a CPU tensor."""

    @staticmethod
    def __new__(cls, memory):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            memory.size(),
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=DEVICE,
        )

    def __init__(self, memory):
        self.memory = memory

    def __repr__(self):
        return f"FakeGpuTensor({self.memory})"

    def tolist(self):
        return self.memory.tolist()  # which torch refuses for subclasses

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _FakeGpu(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    if function is aten._fused_sdp_choice.default:
        return 0  # the plain one: the fused operators are not the same on both devices
    if function is aten.is_pinned.default:
        return False
    if function is aten._pin_memory.default:
        return args[0].clone()
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, FakeGpuTensor)]
    # Tensors without axes count as numbers.
    others = [t for t in tensors if t.dim() > 0 and not isinstance(t, FakeGpuTensor)]
    if on_gpu and others and function not in MIXED:
        shapes = [tuple(tensor.shape) for tensor in others]
        raise RuntimeError(f"{function}: expected all tensors on {DEVICE}, on the CPU: {shapes}")
    device = kwargs.get("device")
    lands_on_gpu = bool(on_gpu) if device is None else torch.device(device).type == "cuda"
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    args, kwargs = tree_map_only(FakeGpuTensor, lambda tensor: tensor.memory, (args, kwargs))
    results = function(*args, **kwargs)
    if not lands_on_gpu:
        return results
    # What an operator changes in place stays the same tensor.
    same = {id(tensor.memory): tensor for tensor in on_gpu}

    def to_gpu(memory):
        return same[id(memory)] if id(memory) in same else FakeGpuTensor(memory)

    return tree_map_only(torch.Tensor, to_gpu, results)


@contextmanager
def fake_gpu():
    """Where ``cuda`` is the stand-in, without gradients; needs a CUDA build of torch, no driver."""
    # As in FakeTensorMode: guards of the current device do nothing, and torch.tensor() makes a
    # tensor on the CPU first.
    torch._C._ensureCUDADeviceGuardSet()
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        no_cudnn = torch.backends.cudnn.flags(enabled=False)
        with mock.patch("torch.cuda._lazy_init"), no_cudnn, torch.no_grad(), _FakeGpu():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


def on_fake_gpu(model):
    """The model in evaluation mode, its parameters and buffers on the stand-in."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = FakeGpuTensor(tensor.detach())
    return model.eval()
