"""Every cell of the table of derivatives in docs/ops.md: what runs, in each way of calling.

That results are right is in test_transforms.py; here, which code computes them.
"""

import re
from functools import partial

import pytest
import torch
from helpers import ROOT
from ops.transforms import (
    CASES,
    assert_same,
    batched_gradients,
    ensemble,
    grad,
    gradient_penalty,
    jvp,
    per_sample_gradients,
)

from dcnv4_mm.ops.bev_cross_attn.registration import bev_cross_attn_raw
from dcnv4_mm.ops.dcnv4.registration import dcnv4_raw
from dcnv4_mm.ops.flash_deform_attn.registration import RAW_OPERATORS

OPERATORS = {
    "dcnv4": dcnv4_raw,
    "ms_deform_attn": RAW_OPERATORS["ms_deform_attn", "default"],
    "flash_deform_attn": RAW_OPERATORS["flash_deform_attn", "default"],
    "bev_cross_attn": bev_cross_attn_raw,
}
_DOCS = ROOT / "docs" / "ops.md"


def ordinary_gradients(function, case):
    tensors = [tensor.clone().requires_grad_() for tensor in case.tensors]
    return torch.autograd.grad(function(*tensors).pow(3).sum(), tensors)


# Prefix of a row of the table -> an example of it.
ROWS = {
    "`.backward()`": ordinary_gradients,
    "`is_grads_batched`": batched_gradients,
    "`torch.func.grad`": grad,
    "`vmap` of these": per_sample_gradients,
    "`vmap` of the forward": ensemble,
    "second and higher": gradient_penalty,
    "forward mode": jvp,
}


def documented(column):
    """Row -> "kernel", "formula", "works" or "error", of a column of the table."""
    lines = [line for line in _DOCS.read_text().splitlines() if line.startswith("| ")]
    header = next(index for index, line in enumerate(lines) if "inside `torch.compile`" in line)
    cells = {}
    for prefix in ROWS:
        row = next(line for line in lines[header + 1 :] if line.startswith(f"| {prefix}"))
        together, inside, around = (cell.strip() for cell in row.split("|")[2:5])
        # "kernel; exported or traced: formula"
        eager, _, recorded = together.partition("; exported or traced: ")
        cell = {
            "eager": eager,
            "recorded": recorded or eager,
            "inside": inside,
            "around": around,
        }[column]
        # The kernel computes the first of two derivatives.
        cell = cell.removeprefix("first derivative: kernel; those of it: ")
        if cell != "-":
            cells[prefix] = re.match("error|works|formula|kernel", cell)[0]
    return cells


@pytest.fixture
def formula_calls(monkeypatch):
    """The operators whose formula in plain PyTorch was called."""
    calls = []

    def count(name, reference, *arguments):
        calls.append(name)
        return reference(*arguments)

    for name, operator in OPERATORS.items():
        counted = partial(count, name, operator.reference)
        monkeypatch.setitem(vars(operator), "reference", counted)
    return calls


def kind(function, transform, case, calls):
    calls.clear()
    result = transform(function, case)
    found = "formula" if calls else "kernel"
    assert_same(result, transform(case.plain, case))
    return found


def record(case, how):
    """An exported or traced function; an exported one has the batch size of its example."""

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return case.ours(*tensors)

    recorded = {}
    for batch in (1, 2):
        tensors = tuple(tensor[:batch].clone().requires_grad_() for tensor in case.tensors)
        if how == "exported":
            recorded[batch] = torch.export.export(Module(), tensors).module()
        else:
            recorded[batch] = torch.jit.trace(Module(), tensors)
    return lambda *tensors: recorded[tensors[0].shape[0]](*tensors)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("how", ["eager", "exported", "traced"])
@pytest.mark.parametrize("name", CASES)
def test_eager_exported_and_traced(name, how, device, formula_calls):
    case = CASES[name](device, one_point=True)
    function = case.ours if how == "eager" else record(case, how)
    found = {row: kind(function, run, case, formula_calls) for row, run in ROWS.items()}
    assert found == documented("eager" if how == "eager" else "recorded")


def test_inside_of_compiled_code(formula_calls):
    case = CASES["dcnv4"]("cpu", one_point=True)
    expected = documented("inside")
    found = {}
    for row in expected:
        transform = ROWS[row]
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *tensors, transform=transform: transform(
                case.ours, case._replace(tensors=tensors)
            ),
            backend="eager",
            # Dynamo breaks the graph at torch.autograd.grad.
            fullgraph=transform in (grad, per_sample_gradients, jvp),
        )
        formula_calls.clear()
        results = compiled(*case.tensors)
        found[row] = "formula" if formula_calls else "kernel"
        assert_same(results, transform(case.plain, case))
    torch._dynamo.reset()
    assert found == expected


def test_around_a_compiled_function(formula_calls):
    case = CASES["dcnv4"]("cpu", one_point=True)
    found = {}
    for row, transform in ROWS.items():
        torch._dynamo.reset()
        function = torch.compile(case.ours, backend="aot_eager")
        # The graph is there already when it is called within a transform.
        function(*case.tensors)
        if transform is gradient_penalty:
            with pytest.raises(RuntimeError, match="does not currently support double backward"):
                transform(function, case)
            found[row] = "error"
        else:
            found[row] = kind(function, transform, case, formula_calls)
    torch._dynamo.reset()
    for row, cell in documented("around").items():
        assert found[row] in (("kernel", "formula") if cell == "works" else (cell,)), row


@pytest.mark.parametrize("name", CASES)
def test_another_device(name, formula_calls):
    """Which code runs does not depend on the device; the meta device is one without kernels."""
    case = CASES[name]("meta", one_point=True)
    found = {}
    for row, transform in ROWS.items():
        formula_calls.clear()
        results = torch.utils._pytree.tree_leaves(transform(case.ours, case))
        found[row] = "formula" if formula_calls else "kernel"
        expected = torch.utils._pytree.tree_leaves(transform(case.plain, case))
        for result, like in zip(results, expected, strict=True):
            assert result.is_meta
            assert (result.shape, result.dtype) == (like.shape, like.dtype)
    assert found == documented("eager")
