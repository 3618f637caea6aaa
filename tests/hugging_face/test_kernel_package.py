"""The folder that `make kernel-package` writes, loaded as the Hub's kernel loader does."""

import importlib.util
import re
import shutil

import pytest
import torch
from helpers import ROOT
from torch import nn

kernels = pytest.importorskip("kernels", reason="kernels is not installed")

from dcnv4_mm.ops import functional

pytestmark = pytest.mark.skipif(
    not functional.backend_info()["dcnv4"]["cpu"].startswith("compiled"), reason="needs g++"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = importlib.util.spec_from_file_location(
        "kernel_package", ROOT / "dev" / "kernel_package.py"
    )
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    target = tmp_path_factory.mktemp("kernel") / "folder"
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    with pytest.raises(SystemExit, match="other"):
        program.write(other)
    assert (other / "file").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCNV4_MM_NO_CUDA", "1")
        assert len(program.write(target)) == 2
    return target


def make_inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 9, 11, 32), (2, 9, 11, 56))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("backend", ["cpu", "universal"])
def test_same_results_beside_the_installed_package(folder, tmp_path, backend):
    """Compiled, and in plain PyTorch where there is no other variant."""
    if backend == "universal":
        shutil.copytree(folder / "build" / "torch-universal", tmp_path / "build/torch-universal")
        folder = tmp_path
    kernel = kernels.get_local_kernel(folder, backend="cpu")
    compiled = kernel.backend_info()["dcnv4"]["cpu"].startswith("compiled")
    assert compiled == (backend == "cpu")
    assert kernel.dcnv4 is not functional.dcnv4
    inputs = make_inputs()
    results = []
    for function in (kernel.dcnv4, functional.dcnv4):
        output = function(*inputs, groups=2)
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    tolerance = 0 if compiled else 1e-4
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@kernels.use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class Attention(nn.Module):
    """With the arguments of transformers' layer of this name."""

    def forward(
        self,
        value,
        value_spatial_shapes,
        value_spatial_shapes_list,
        level_start_index,
        sampling_locations,
        attention_weights,
        im2col_step,
    ):
        raise AssertionError("the kernel's forward is not used")


def test_layer_for_kernelize(folder):
    # A torch with CUDA takes the variant of its CUDA version: here the one folder.
    (path,) = (folder / "build").glob("*-cpu-*")
    repository = kernels.LocalLayerRepository(path, layer_name="MultiScaleDeformableAttention")
    model = nn.Sequential(Attention())
    mapping = {"MultiScaleDeformableAttention": {"cpu": repository}}
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
        kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    value, shapes = torch.randn(1, 18, 2, 8), [(3, 4), (2, 3)]
    locations, weights = torch.rand(1, 5, 2, 2, 3, 2), torch.rand(1, 5, 2, 2, 3)
    output = model[0](value, torch.tensor(shapes), shapes, None, locations, weights, 64)
    expected = functional.ms_deform_attn(value, shapes, locations, weights)
    assert torch.equal(output, expected)


def test_program_of_the_page(folder, capsys):
    page = (ROOT / "docs" / "transformers.md").read_text()
    (code,) = re.findall(r"^```python\n([^`]*get_local_kernel[^`]*)^```", page, re.MULTILINE)
    exec(code.replace('"dist/dcnv4-mm-kernel"', repr(str(folder))), {})
    assert capsys.readouterr().out.startswith("compiled")
