"""The library that defines the operators where the package, or even Python, is not there."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from dcnv4_mm.ops.functional import dcnv4, flash_deform_attn

LIBRARIES = Path(find_spec("dcnv4_mm").origin).parent / "lib"

# A process without the package: what the libraries define, and what a saved program outputs.
STRANGER = """
import sys
from pathlib import Path
import torch

folder = Path(sys.argv[1])
for name in ("schemas", "cpu"):
    torch.ops.load_library(folder / f"libdcnv4_mm_{name}.so")
for schema in torch._C._jit_get_all_schemas():
    if schema.name.startswith("dcnv4_mm::"):
        print(schema)
if len(sys.argv) > 2:
    data = Path(sys.argv[2])
    program = torch.export.load(data / "program.pt2").module()
    inputs = torch.load(data / "inputs.pt")
    torch.save([program(*tensors) for tensors in inputs], data / "outputs.pt")
assert "dcnv4_mm" not in sys.modules
"""


def run_stranger(*arguments):
    """Runs the process outside the sources; returns the schemas that it knows."""
    command = [sys.executable, "-c", STRANGER, str(LIBRARIES), *map(str, arguments)]
    result = subprocess.run(command, cwd="/", text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines())


def test_schemas_are_those_of_the_package():
    known = {
        str(schema)
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("dcnv4_mm::")
        and schema.name != "dcnv4_mm::cpu_isa"
        # What reads the sizes from a tensor is Python.
        and not schema.overload_name
    }
    assert len(known) >= 6
    assert run_stranger() == known


class _Operators(torch.nn.Module):
    """Both operators, with sizes that follow from the input's."""

    def forward(self, value, offset_mask, points):
        output = dcnv4(value, offset_mask, groups=2)
        shapes = [tuple(value.shape[1:3])]
        pixels = output.flatten(1, 2).unflatten(-1, (2, -1))
        return flash_deform_attn(pixels, shapes, points, num_points=4)


def inputs(batch, height, width, queries):
    generator = torch.Generator().manual_seed(batch)
    shapes = (batch, height, width, 16), (batch, height, width, 56), (batch, queries, 2, 12)
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


def test_saved_program_runs_without_the_package(tmp_path):
    dynamic = torch.export.Dim.DYNAMIC
    image = {0: dynamic, 1: dynamic, 2: dynamic}
    program = torch.export.export(
        _Operators(), inputs(2, 5, 7, 6), dynamic_shapes=(image, image, {0: dynamic, 1: dynamic})
    )
    torch.export.save(program, tmp_path / "program.pt2")
    cases = [inputs(1, 4, 4, 3), inputs(3, 8, 5, 50), inputs(2, 21, 34, 9)]
    torch.save(cases, tmp_path / "inputs.pt")
    run_stranger(tmp_path)
    outputs = torch.load(tmp_path / "outputs.pt")
    for output, case in zip(outputs, cases, strict=True):
        assert torch.equal(output, _Operators()(*case))
