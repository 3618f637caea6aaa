"""The ONNX nodes: onnxruntime with our kernels computes the same as the operators, bit for bit."""

import pytest
import torch
from ops.dcnv4 import problems as dcnv4_problems
from ops.flash_deform_attn import problems as flash_deform_attn_problems

from dcnv4_mm.export.onnx import custom_ops_library, onnx_decompositions
from dcnv4_mm.ops.functional import backend_info, dcnv4, flash_deform_attn, ms_deform_attn

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
needs_library = pytest.mark.skipif(
    not custom_ops_library().exists(), reason="built without onnxruntime's headers"
)

DCNV4_PROBLEMS = {
    "usual": {},
    "without_center": {"remove_center": True},
    "rows_and_columns_differ": dict(
        kernel_size=(4, 3), stride=(2, 1), padding=(3, 1), dilation=(1, 2), offset_scale=0.5
    ),
    "far_outside": {"sigma": 20.0},
    "one_pixel": {"size": (1, 1)},
    "no_image": {"batch": 0},
    "many_parts": {"size": (60, 70), "batch": 3},
}
ATTENTION_PROBLEMS = {
    "usual": {},
    "one_level": {"shapes": ((5, 3),)},
    "far_outside": {"reach": 3.0},
    "no_query": {"queries": 0},
    "many_parts": {"queries": 5000},
}


def session(model):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(custom_ops_library()))
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_node(name, inputs, **attributes):
    """Runs a graph of one node."""
    names = [f"input{index}" for index in range(len(inputs))]
    types = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
    infos = [
        onnx.helper.make_tensor_value_info(key, types[tensor.dtype], [None] * tensor.dim())
        for key, tensor in zip(names, inputs, strict=True)
    ]
    node = onnx.helper.make_node(name, names, ["output"], domain="dcnv4_mm", **attributes)
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, None)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("dcnv4_mm", 1)]
    graph = onnx.helper.make_graph([node], "graph", infos, [output])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    arrays = {key: tensor.numpy() for key, tensor in zip(names, inputs, strict=True)}
    return torch.from_numpy(session(model).run(None, arrays)[0])


def run_dcnv4(problem, **changed):
    attributes = dict(
        kernel_size=problem.kernel_size,
        stride=problem.stride,
        padding=problem.padding,
        dilation=problem.dilation,
        groups=problem.groups,
        offset_scale=problem.offset_scale,
        remove_center=int(problem.remove_center),
    )
    return run_node("DCNv4", (problem.value, problem.offset_mask), **{**attributes, **changed})


@needs_library
@pytest.mark.parametrize("settings", DCNV4_PROBLEMS.values(), ids=DCNV4_PROBLEMS)
def test_dcnv4(settings):
    problem = dcnv4_problems.make_problem(**settings, dtype=torch.float32)
    assert backend_info()["dcnv4"]["cpu"].startswith("compiled")
    assert torch.equal(run_dcnv4(problem), torch.ops.dcnv4_mm.dcnv4_forward(*problem[1:]))


@needs_library
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", ATTENTION_PROBLEMS.values(), ids=ATTENTION_PROBLEMS)
def test_attention(settings, packed):
    dtypes = (torch.float32, torch.float32)
    problem = flash_deform_attn_problems.make_problem(packed=packed, **settings, dtypes=dtypes)
    sizes = torch.tensor(problem.level_sizes)
    if packed:
        value, points, _, num_points = problem.inputs()
        output = run_node("FlashDeformAttn", (value, points, sizes), num_points=num_points)
    else:
        output = run_node("MSDeformAttn", (*problem.inputs()[:3], sizes))
    operator = getattr(torch.ops.dcnv4_mm, f"{problem.name}_forward")
    assert torch.equal(output, operator(*problem.inputs()))


@needs_library
def test_wrong_shapes_are_refused():
    problem = dcnv4_problems.make_problem(dtype=torch.float32)
    with pytest.raises(Exception, match="fewer than 3 \\* groups"):
        run_dcnv4(problem._replace(offset_mask=problem.offset_mask[..., :-10].contiguous()))
    with pytest.raises(Exception, match="must be a positive multiple of groups"):
        run_dcnv4(problem, groups=3)
    inputs = flash_deform_attn_problems.make_problem(dtypes=(torch.float32,) * 2).inputs()
    with pytest.raises(Exception, match="the levels have 42 pixels together"):
        run_node("MSDeformAttn", (*inputs[:3], torch.tensor([6, 7])))
    with pytest.raises(Exception, match="weights must have the shape"):
        run_node("MSDeformAttn", (*inputs[:2], inputs[2][:1], torch.tensor(inputs[3])))


class Operators(torch.nn.Module):
    """All three, with sizes that follow from the input's."""

    def forward(self, value, offset_mask, points):
        output = dcnv4(value, offset_mask, groups=2)
        shapes = [(value.shape[1], value.shape[2])]
        pixels = output.flatten(1, 2).unflatten(-1, (2, -1))
        flash = flash_deform_attn(pixels, shapes, points, num_points=4)
        locations = points[..., :8].unflatten(-1, (1, 4, 2))
        return flash + ms_deform_attn(pixels, shapes, locations, points[..., None, 8:])


def inputs(batch, height, width, queries):
    generator = torch.Generator().manual_seed(batch)
    shapes = (batch, height, width, 16), (batch, height, width, 56), (batch, queries, 2, 12)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


@needs_library
def test_exported_nodes_take_every_size():
    free = torch.export.Dim.DYNAMIC
    image = {0: free, 1: free, 2: free}
    program = torch.export.export(
        Operators(), inputs(2, 5, 7, 6), dynamic_shapes=(image, image, {0: free, 1: free})
    )
    program = program.run_decompositions(onnx_decompositions())
    model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    nodes = [node.op_type for node in model.graph.node if node.domain == "dcnv4_mm"]
    assert sorted(nodes) == ["DCNv4", "FlashDeformAttn", "MSDeformAttn"]
    runner = session(model)
    names = [node.name for node in runner.get_inputs()]
    for case in [inputs(1, 4, 4, 3), inputs(3, 8, 5, 50), inputs(2, 21, 34, 9)]:
        arrays = {key: tensor.numpy() for key, tensor in zip(names, case, strict=True)}
        output = torch.from_numpy(runner.run(None, arrays)[0])
        assert torch.equal(output, Operators()(*case))
