"""Layers in torch.fx, torch.jit.trace and torch.export, alone and inside of other models."""

import warnings

import pytest
import torch
from layers.vision_transformers import images, swapped
from torch import fx, nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv3, DCNv4, FlashDeformAttn, swap_convolutions


def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 7, padding=3, groups=32))
    swap_convolutions(model)
    nn.init.normal_(model[1].offset_mask.weight, std=0.1)
    return model.eval()


def backbone():
    torch.manual_seed(0)
    return FlashInternImage("nano").eval()


# Model, and images of two sizes; the embedding of patches in between has none.
CASES = {
    "convolutions": (convolutional, [(3, 5), (4, 4)]),
    "attention": (swapped, [(4, 6), (6, 4)]),
    "backbone": (backbone, [(4, 8), (8, 8)]),
}


@pytest.fixture(params=CASES)
def case(request):
    make, sizes = CASES[request.param]
    return make(), [images(*size) for size in sizes]


def test_fx(case):
    model, inputs = case
    graph = fx.symbolic_trace(model)
    for x in inputs:
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert any(isinstance(model.get_submodule(name), DCNv4) for name in calls)


def test_fx_of_the_other_layers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dcn = DCNv3(16, groups=2)
            self.attention = FlashDeformAttn(16, num_levels=1, num_heads=2)

        def forward(self, x, points):
            x = self.dcn(x).flatten(1, 2)
            return self.attention(x, points, value=x, spatial_shapes=[(4, 4)])

    model = Model()
    inputs = torch.randn(1, 4, 4, 16), torch.rand(1, 16, 1, 2)
    assert torch.equal(fx.symbolic_trace(model)(*inputs), model(*inputs))
    # There is no graph whose one node is the model itself.
    with pytest.raises(fx.proxy.TraceError):
        fx.symbolic_trace(model.dcn)


def test_jit_trace_with_gradients(case):
    model, inputs = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (inputs[0],))
    for x in inputs:
        gradients = []
        for network in (traced, model):
            maps = network(x)
            maps = maps if isinstance(maps, torch.Tensor) else maps[-1]
            gradients.append(
                torch.autograd.grad(maps.square().sum(), model.parameters(), allow_unused=True)
            )
        for actual, expected in zip(*gradients, strict=True):
            if expected is not None:
                torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("case", ["convolutions", "attention"], indirect=True)
def test_export_and_compile(case):
    model, inputs = case
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        program = torch.export.export(model, (inputs[0],)).module()
        torch.testing.assert_close(program(inputs[0]), model(inputs[0]))
        for x in inputs:
            torch.testing.assert_close(compiled(x), model(x))


def test_fake_tensors():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert convolutional()(torch.randn(1, 3, 6, 7)).shape == (1, 32, 4, 5)
