"""Other packages' implementations of the operators, where they are installed.

torch-ms-deform-attn (an extension that pip compiles), deformops (Python 3.12 or 3.13), onnxruntime.
One that is missing is a line of the table.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from operators.comparison import Operator
from torch import Tensor

from dcnv4_mm.ops.dcnv4.layout import unpack


def torch_ms_deform_attn(value: Tensor, levels: tuple[Tensor, Tensor], *points: Tensor) -> Operator:
    """Attention with the compiled kernels of torch-ms-deform-attn.

    Args:
        value: (N, S, G, D).
        levels: Sizes of the levels, and the index at which each starts.
        points: Locations (N, Q, G, L, P, 2) and weights (N, Q, G, L, P).
    """
    from torch_ms_deform_attn import ms_deform_attn

    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return ms_deform_attn(v, *levels, x, w)

    return Operator(function=function, inputs=(value, *points))


def deformops_msda(value: Tensor, levels: tuple[Tensor, Tensor], *points: Tensor) -> Operator:
    """Attention with deformops, on a CPU in eager PyTorch."""
    from deformops.registry import msda

    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return msda(v, *levels, x, w.flatten(-2))

    return Operator(function=function, inputs=(value, *points))


def deformops_dcnv4(value: Tensor, offset_mask: Tensor, groups: int) -> Operator:
    """A 3x3 DCNv4 with deformops, on a CPU in eager PyTorch."""
    from deformops.registry import attn

    offsets, masks = unpack(offset_mask, groups, 9)
    # Offsets and mask of a point are neighbours.
    packed = torch.cat([offsets, masks.unsqueeze(-1)], -1).flatten(3).contiguous()
    width = value.shape[-1] // groups

    def function(v: Tensor, o: Tensor) -> Tensor:
        return attn(v, o, groups=groups, group_dims=width)

    return Operator(function=function, inputs=(value, packed))


def onnxruntime_deform_conv(image: Tensor, offsets: Tensor, masks: Tensor, groups: int) -> Operator:
    """A depthwise 3x3 DeformConv of onnxruntime with weights of 1; it has no backward pass.

    Args:
        image: (N, C, H, W).
        offsets: (N, 2 G K, H, W), in order of rows, (y, x).
        masks: (N, G K, H, W).
        groups: Number of groups G.
    """
    if image.is_cuda:
        raise NotImplementedError("measured on a CPU alone")
    run = cache(lambda threads: _deform_conv_session(image.shape[1], groups, threads))

    def function(*inputs: Tensor) -> Tensor:
        if any(tensor.requires_grad for tensor in inputs):
            raise NotImplementedError("has no backward pass")
        return run(torch.get_num_threads())(*inputs).permute(0, 2, 3, 1)

    return Operator(function=function, inputs=(image, offsets, masks))


def _deform_conv_session(channels: int, groups: int, threads: int) -> Callable[..., Tensor]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    weight = numpy_helper.from_array(torch.ones(channels, 1, 3, 3).numpy(), "weight")
    bias = numpy_helper.from_array(torch.zeros(channels).numpy(), "bias")
    node = helper.make_node(
        "DeformConv",
        ["image", "weight", "offsets", "bias", "masks"],
        ["output"],
        group=channels,
        offset_group=groups,
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )
    names = ("image", "offsets", "masks")
    graph = helper.make_graph(
        [node], "dcnv4", [tensor(name) for name in names], [tensor("output")], [weight, bias]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(*inputs: Tensor) -> Tensor:
        given = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    return run
