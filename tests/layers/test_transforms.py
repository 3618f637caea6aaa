"""Layers and networks under the transforms of torch.func."""

import pytest
import torch
from ops.transforms import assert_same
from torch import func

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv3, DCNv4, DCNv4Conv2d, FlashDeformAttn


def layers_and_inputs():
    torch.manual_seed(0)
    image = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    query, value = (torch.randn(2, length, 8, dtype=torch.float64) for length in (3, 20))
    points = torch.rand(2, 3, 1, 2, dtype=torch.float64)
    attention = FlashDeformAttn(8, num_levels=1, num_heads=2, num_points=2)
    for layer, inputs in (
        (DCNv4(8, groups=2, center_feature_scale=True, dw_kernel_size=3), (image,)),
        (DCNv3(8, groups=2), (image,)),
        (DCNv4Conv2d(8, 8, 3, padding=1, groups=2), (image.permute(0, 3, 1, 2),)),
        (attention, (query, points, value, [(4, 5)])),
    ):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        yield pytest.param(layer.double(), inputs, id=type(layer).__name__)


@pytest.mark.parametrize(("layer", "inputs"), layers_and_inputs())
def test_layers(layer, inputs):
    parameters = dict(layer.named_parameters())

    def loss(parameters, *inputs):
        return func.functional_call(layer, parameters, inputs).pow(3).mean()

    def ordinary(parameters, *inputs):
        gradients = torch.autograd.grad(loss(parameters, *inputs), list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))

    count = sum(isinstance(tensor, torch.Tensor) for tensor in inputs)
    one = func.vmap(
        lambda *tensors: func.grad(loss)(
            parameters, *(tensor[None] for tensor in tensors), *inputs[count:]
        )
    )(*inputs[:count])
    for i in range(2):
        alone = (tensor[i : i + 1] for tensor in inputs[:count])
        gradients = ordinary(parameters, *alone, *inputs[count:])
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())
        assert_same({name: gradient[i] for name, gradient in one.items()}, gradients)

    tangents = {name: parameter.detach().sin() for name, parameter in parameters.items()}
    _, slope = func.jvp(lambda p: loss(p, *inputs), (parameters,), (tangents,))
    gradients = ordinary(parameters, *inputs)
    assert_same(slope, sum((gradients[name] * tangents[name]).sum() for name in tangents))


def test_ensemble_of_networks():
    torch.manual_seed(0)
    networks = [FlashInternImage("nano", num_classes=4).eval() for _ in range(2)]
    images = torch.randn(2, 3, 32, 32)
    for network in networks:
        network(images).pow(2).sum().backward()
    parameters, buffers = func.stack_module_state(networks)

    def run(parameters, buffers):
        return func.functional_call(networks[0], (parameters, buffers), (images,))

    func.vmap(run)(parameters, buffers).pow(2).sum().backward()
    for name, parameter in parameters.items():
        expected = torch.stack([network.get_parameter(name).grad for network in networks])
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=atol)
