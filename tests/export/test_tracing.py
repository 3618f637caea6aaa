"""Sizes of maps stay free where a host makes tensors of them and reads these back."""

import pytest
import torch

from dcnv4_mm.export.tracing import SymbolicSizes, pooling_decompositions


class Host(torch.nn.Module):
    """What mmdet's transformers do with the sizes of their maps, step by step."""

    def forward(self, images):
        maps = [images, images[:, :, ::2, ::2]]
        sizes = [torch._shape_as_tensor(each)[2:].to(each.device) for each in maps]
        lengths = [size[0] * size[1] for size in sizes]
        pixels = torch.cat([each.flatten(2) for each in maps], -1)
        parts = torch.split(pixels, lengths, dim=-1)
        shapes = torch.cat(sizes).view(-1, 2)
        starts = torch.cat((shapes.new_zeros((1,)), shapes.prod(1).cumsum(0)[:-1]))
        second = parts[1].reshape(images.shape[0], -1, shapes[1][0], shapes[1][1])
        # [2]: width, height
        extent = sizes[0].unsqueeze(0).flip(dims=[0, 1]) * 4
        grids = []
        for size in shapes:
            height, width = size
            rows, columns = torch.linspace(0, height - 1, height), torch.linspace(1, 9, width)
            if not isinstance(size, torch.Tensor):
                size = images.new_tensor(size)
            rows, columns = torch.meshgrid(rows, columns)
            grids.append((rows + columns).flatten() / size.prod())
        ones = images.new_ones(1, 2)
        # Starts are for kernels that want them; here they only must not stop the recording.
        assert len(starts) == 2
        return second, ones / extent, torch.cat(grids)


def images(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def export(model=Host):
    free = torch.export.Dim.DYNAMIC
    return torch.export.export(
        model(), (images(8, 12),), dynamic_shapes=({0: free, 2: free, 3: free},)
    )


def test_recorded_graph_takes_every_size():
    with SymbolicSizes():
        program = export().run_decompositions().module()
    for size in [(8, 12), (6, 4), (30, 22)]:
        for output, expected in zip(program(images(*size)), Host()(images(*size)), strict=True):
            assert output.dtype == expected.dtype
            torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)


def test_it_would_not_without():
    with pytest.raises(Exception, match="data is not allocated yet"):
        export()


def test_other_models_stay_as_they_are():
    with SymbolicSizes():
        assert images(3, 4).new_tensor([1, 2]).tolist() == [1, 2]
        assert torch.cat([torch.ones(1), torch.zeros(1)]).tolist() == [1, 0]


class Pyramid(torch.nn.Module):
    """What UPerNet does with its coarsest map."""

    def forward(self, images):
        return [torch.nn.functional.adaptive_avg_pool2d(images, size) for size in (2, (3, 5), 6)]


def test_pooled_maps_may_have_any_size():
    program = export(Pyramid).run_decompositions(pooling_decompositions())
    assert "pool" not in str(program.graph)
    for size in [(8, 12), (9, 13), (5, 4), (6, 30)]:
        outputs = program.module()(images(*size))
        for output, expected in zip(outputs, Pyramid()(images(*size)), strict=True):
            torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)
