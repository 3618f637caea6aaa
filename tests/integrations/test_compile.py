"""Complete models of the hosts compile; graph breaks are outside the code of this package."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine", reason="mmengine is not installed")

from integrations.host_models import small_config
from mmengine.registry import MODELS, init_default_scope

import dcnv4_mm
from dcnv4_mm.export.wrappers import Maps, wrap_for_export

# By model, whether its host lets it be one graph: mmdet's transformers make tensors of sizes.
ONE_GRAPH = [
    pytest.param("classifier", True, marks=pytest.mark.mmpretrain),
    pytest.param("mask_rcnn", True, marks=pytest.mark.mmdet),
    pytest.param("upernet", True, marks=pytest.mark.mmseg),
    pytest.param("bevformerv2", True, marks=pytest.mark.mmdet3d),
    pytest.param("dino", False, marks=pytest.mark.mmdet),
    pytest.param("mask2former", False, marks=pytest.mark.mmseg),
]


@pytest.mark.export
@pytest.mark.parametrize(("name", "one_graph"), ONE_GRAPH)
def test_no_graph_ends_in_this_package(name, one_graph):
    config = small_config(name)
    init_default_scope(config.default_scope)
    model, frames = MODELS.build(config.model), config.get("frames", (0,))
    part = wrap_for_export(model, config.default_scope, frames)
    # The boxes of the other heads depend on the data.
    part = (Maps(model) if name == "mask_rcnn" else part).eval()
    inputs = part.examples(2, 64, 96, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch._dynamo.explain(part)(*inputs)
    places = [Path(reason.user_stack[-1].filename) for reason in found.break_reasons]
    ours = Path(dcnv4_mm.__file__).parent
    assert not [place for place in places if place.is_relative_to(ours)]
    assert (found.graph_break_count == 0) == one_graph
    assert any("dcnv4_mm" in str(graph.graph) for graph in found.graphs)
