"""Whole models leave eager mode: compiled and exported for every batch and image size."""

import pytest
import torch
from helpers import images

from dcnv4_mm.backbones import FlashInternImage

DYNAMIC = torch.export.Dim.DYNAMIC
# One image, odd sizes, and more images than the example had.
SIZES = [(1, 64, 64), (2, 61, 77), (5, 96, 128)]
# Has all that is peculiar: strided convolutions between maps of either layout, and the head.
TINY = {"channels": 16, "depths": (1, 1), "groups": (1, 2)}


def model(num_classes=None, fused=False):
    """A model whose offsets and masks depend on its input, unlike a new one's."""
    torch.manual_seed(0)
    model = FlashInternImage(TINY, num_classes=num_classes, out_indices=(0, 1)).eval()
    for name, parameter in model.named_parameters():
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.fuse() if fused else model


def batches():
    return [images(height, width, batch=batch) for batch, height, width in SIZES]


def export(model):
    with torch.no_grad():
        return torch.export.export(
            model,
            (images(64, 96, batch=2),),
            dynamic_shapes=({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},),
        )


KINDS = [dict(num_classes=None), dict(num_classes=10), dict(fused=True)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compiles_to_one_graph_for_every_size(kind):
    eager = model(**kind)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend=keep)
    for batch in batches()[1:]:
        with torch.no_grad():
            torch.testing.assert_close(compiled(batch), eager(batch), rtol=0, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_exports_with_dynamic_batch_and_size(kind):
    eager = model(**kind)
    exported = export(eager).module()
    for batch in batches():
        with torch.no_grad():
            # One convolution takes a contiguous copy where eager mode takes a view.
            torch.testing.assert_close(exported(batch), eager(batch), rtol=0, atol=1e-5)
