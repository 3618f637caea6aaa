"""The compiled CUDA code, run without a GPU by an interpreter of PTX (``ptx/``).

The specifications of the kernels run there too, with ``make ptx``; here, every kernel runs once.
"""

import csv
import ctypes
import re
from itertools import product

import pytest
import torch
from ops.backends import Backend
from ops.bev_cross_attn import problems as bev
from ops.dcnv4 import problems as dcnv4
from ops.flash_deform_attn import problems as attention
from ops.ptx.compiled import ARCHS, FOLDER, Interpreter, build, ptx_of, readable
from ops.ptx.count import ATTENTION_TABLE, TABLE, count, count_attention, nvcc_release

pytestmark = pytest.mark.slow

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WIDTHS = (1, 2, 4, 8, 16, 32, 64)


def dcnv4_problems():
    kernels = {
        ((1, 3), False): WIDTHS,
        ((3, 3), False): (4, 8, 16, 32),
        ((3, 3), True): (4, 8, 16, 32),
    }
    for (kernel_size, remove_center), widths in kernels.items():
        for dtype, width in product(DTYPES, widths):
            yield dcnv4.make_problem(
                batch=1,
                size=(2, 3),
                groups=1,
                width=width,
                kernel_size=kernel_size,
                remove_center=remove_center,
                dtype=dtype,
            )._replace(fast=dtype == torch.float16)


def attention_problems():
    for dtypes, width in product([(dtype, dtype) for dtype in DTYPES], WIDTHS):
        yield attention.make_problem(
            batch=1, shapes=[(2, 3)], queries=3, heads=1, points=2, width=width, dtypes=dtypes
        )


def bev_problems():
    for dtypes, width in product([(dtype, dtype) for dtype in DTYPES], WIDTHS):
        yield bev.make_problem(
            batch=1,
            cameras=2,
            shapes=[(2, 3)],
            queries=3,
            heads=1,
            points=2,
            width=width,
            dtypes=dtypes,
        )


PROBLEMS = {
    "dcnv4": (dcnv4, dcnv4_problems),
    "flash_deform_attn": (attention, attention_problems),
    "bev_cross_attn": (bev, bev_problems),
}


def unaligned(tensor):
    """The same, where nothing but single elements can be loaded."""
    return torch.cat([tensor, tensor], dim=-1)[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("operator", PROBLEMS)
def test_every_kernel(operator, arch):
    module, problems = PROBLEMS[operator]
    default, deterministic = (
        Backend(f"ptx_{arch}{kind}", operator) for kind in ("", "_deterministic")
    )
    interpreter = ptx_of(operator)
    interpreter.counters()
    for problem in problems():
        module.check_against_reference(problem, default.run)
        if isinstance(problem, dcnv4.Problem) and problem.fast:
            default.forward(problem._replace(fast=False))
        width = problem.grad_output.shape[-1]
        if width in (1, 16, 32):  # one, four and eight sums per thread
            module.check_against_reference(problem, deterministic.run)
        if width >= 16 and arch >= 90:
            # Other ways to add up gradients.
            default.backward(problem._replace(value=unaligned(problem.value)), True, False)
    names = readable(interpreter.kernels(arch))
    launched = {*interpreter.counters()}
    missing = {names[name] for name in names if name not in launched}
    # Only devices from compute capability 9.0 on add four floats at once.
    wide = {
        name
        for name in names.values()
        if re.match(r"backward_value_atomic_kernel .*, 4, [12]\b", name)
    }
    assert wide
    assert missing == (wide if arch < 90 else set())


def test_dynamic_counts():
    """Of one shape, against the committed table."""
    ptx_of("dcnv4")  # skips where there is no nvcc
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows[0]["nvcc"] != nvcc_release():
        pytest.skip(f"the table is of nvcc {rows[0]['nvcc']}")
    calls = {("forward", "float16"), ("forward", "float32"), ("backward", "float16")}
    calls.add(("backward deterministic", "float16"))
    found = 0
    for row in rows:
        shape = tuple(int(row[name]) for name in ("batch", "edge", "groups", "width"))
        if shape != (2, 14, 8, 64) or (row["call"], row["dtype"]) not in calls:
            continue
        dtype, deterministic = getattr(torch, row["dtype"]), "deterministic" in row["call"]
        counts = count(int(row["arch"]), shape, row["call"], dtype, deterministic)
        for name, value in counts.items():
            assert value <= 1.03 * int(row[name]), (row, name)
        found += 1
    assert found == len(calls) * len(ARCHS)


def test_dynamic_counts_of_attention():
    """Of 32 channels per head, against the committed table."""
    ptx_of("flash_deform_attn")  # skips where there is no nvcc
    with ATTENTION_TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["width"] == "32"]
    if rows[0]["nvcc"] != nvcc_release():
        pytest.skip(f"the table is of nvcc {rows[0]['nvcc']}")
    for row in rows:
        dtype = getattr(torch, row["dtype"])
        instructions = count_attention(int(row["arch"]), row["operator"], 32, dtype)
        assert instructions <= 1.03 * int(row["instructions"]), row
    assert len(rows) == 6


FAULTS = {
    "none": None,
    "launch_bounds": "64 threads; the launch bounds are 32",
    "shared_race": r"race in shared memory: .* threads \d+ and \d+",
    "shared_size": "outside of shared memory: thread 63",
    "shared_unset": "reads word .* nobody has written",
    "misaligned": "misaligned access to 8 bytes",
    "outside": "write outside of the tensors .* at 256 of 256 bytes",
    "const_input": "write outside of the tensors",
    "global_race": r"race in global memory: thread \d+ and thread \d+",
    "barrier": "a barrier that not all threads of a warp reach",
    "too_much": "may have 49152 bytes of shared memory, not 50176",
}


@pytest.fixture(scope="module")
def run_fault():
    interpreter = Interpreter(*build("faults", [(FOLDER / "faults.cu", "float")]))
    run = interpreter.library.run_fault
    run.restype = ctypes.c_char_p

    def run_on(name, device):
        interpreter.use(device)
        data, untouched = torch.arange(64.0), torch.zeros(64)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (data, untouched)]
        return run(name.encode(), *pointers, 64), data

    return run_on


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name, run_fault):
    found, data = run_fault(name, "sm_90")
    if FAULTS[name]:
        assert re.search(FAULTS[name], found.decode())
    else:
        assert found is None
        assert torch.equal(data, torch.arange(64.0).flip(0) + 1)
