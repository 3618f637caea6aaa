"""The attention layer of every model of transformers, before and after it is swapped."""

import copy
import importlib
import inspect
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from dcnv4_mm.integrations import is_swapped, swap_deformable_attention

SHAPES = [(5, 7), (3, 4)]
CHANNELS, HEADS, LEVELS, QUERIES, PIXELS = 16, 2, 2, 6, 47
# By the attributes that the layers read.
CONFIG = SimpleNamespace(
    d_model=CHANNELS,
    num_feature_levels=LEVELS,
    decoder_n_levels=LEVELS,
    decoder_attention_heads=HEADS,
    decoder_n_points=3,
    decoder_offset_scale=0.5,
    decoder_method="default",
    disable_custom_kernels=False,
)
ARGUMENTS = {"config": CONFIG, "embed_dim": CHANNELS, "num_heads": HEADS}
ARGUMENTS |= {"n_levels": LEVELS, "n_points": 3}
# Models whose masks are True at the pixels that are left out; those whose masks do not work; those
# whose reference points are boxes alone.
PADDING_IS_TRUE = ("mask2former", "oneformer")
NO_MASK = ("d_fine", "deimv2")
BOXES = ("d_fine", "deimv2", "rt_detr_v2")


def models_with_the_attention():
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        if "self.sampling_offsets = nn.Linear" in path.read_text():
            yield path.parent.name


NAMES = list(models_with_the_attention())


def layer_class(name):
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    (found,) = (
        value
        for key, value in vars(module).items()
        if re.fullmatch(r"\w+MultiscaleDeformableAttention", key)
    )
    return found


def make_layer(name, **settings):
    torch.manual_seed(0)
    cls = layer_class(name)
    arguments = ARGUMENTS | {"config": SimpleNamespace(**{**vars(CONFIG), **settings})}
    layer = cls(**{key: arguments[key] for key in inspect.signature(cls).parameters})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.double().eval()


def make_inputs(name, coordinates):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()

    shown = torch.arange(PIXELS) % 3 > 0
    inputs = {
        "hidden_states": random(2, QUERIES, CHANNELS),
        "encoder_hidden_states": random(2, PIXELS, CHANNELS),
        "attention_mask": (~shown if name in PADDING_IS_TRUE else shown).expand(2, PIXELS),
        "position_embeddings": random(2, QUERIES, CHANNELS),
        "reference_points": random(2, QUERIES, 1 if name in BOXES else LEVELS, coordinates),
        "spatial_shapes": torch.tensor(SHAPES),
        "spatial_shapes_list": SHAPES,
    }
    taken = inspect.signature(layer_class(name).forward).parameters
    if name in NO_MASK:
        del inputs["attention_mask"]
    return {key: value for key, value in inputs.items() if key in taken}


def run(layer, inputs):
    """Outputs, and the gradients of parameters and inputs."""
    outputs = layer(**inputs)
    leaves = [*layer.parameters()]
    leaves += [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(2)).double()
    return *outputs, *torch.autograd.grad(outputs[0], leaves, weights)


def assert_same(layer, other, inputs):
    for actual, expected in zip(run(other, inputs), run(layer, inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_there_are_models():
    assert {"deformable_detr", "rt_detr", "mask2former", *BOXES} <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "coordinates"),
    [(name, numbers) for name in NAMES for numbers in (2, 4) if numbers == 4 or name not in BOXES],
)
def test_same_results(name, coordinates):
    layer = make_layer(name)
    swapped = copy.deepcopy(layer)
    assert not is_swapped(swapped)
    assert swap_deformable_attention(swapped) == 1
    assert swap_deformable_attention(swapped) == 0
    assert is_swapped(swapped)
    assert isinstance(swapped, layer_class(name))
    assert list(swapped.state_dict()) == list(layer.state_dict())
    assert_same(layer, swapped, make_inputs(name, coordinates))


@pytest.mark.parametrize("name", ["d_fine", "deimv2"])
def test_other_numbers_of_points_on_other_levels(name):
    layer = make_layer(name, decoder_n_points=[4, 1])
    swapped = copy.deepcopy(layer)
    swap_deformable_attention(swapped)
    assert_same(layer, swapped, make_inputs(name, 4))


@pytest.mark.parametrize("name", ["deformable_detr", "d_fine", "mask2former", "rt_detr_v2"])
def test_it_stays_swapped_in_copies(name):
    layer = make_layer(name)
    swap_deformable_attention(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert is_swapped(other)
        assert type(other) is type(layer)
        assert_same(layer, other, make_inputs(name, 4))


@pytest.mark.parametrize("name", BOXES)
def test_discrete_sampling_is_refused(name):
    layer = make_layer(name, decoder_method="discrete")
    model = nn.Sequential(make_layer("deformable_detr"), layer)
    with pytest.raises(ValueError, match=rf"{type(layer).__name__}.*'discrete'"):
        swap_deformable_attention(model)
    assert not is_swapped(model)


def test_linear_layers_may_be_wrapped():
    """As adapters do; other attributes of the layer may be anything."""
    layer = make_layer("d_fine")
    layer.sampling_offsets = nn.Sequential(layer.sampling_offsets)
    layer.table = torch.zeros(3).numpy()
    swapped = copy.deepcopy(layer)
    assert swap_deformable_attention(swapped) == 1
    assert_same(layer, swapped, make_inputs("d_fine", 4))


class OtherSampling(nn.Module):
    """The same arguments, other results."""

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
        return torch.zeros(1, 5, 6)


def test_an_attention_that_computes_something_else_is_refused():
    layer = make_layer("rt_detr")
    layer.attn = OtherSampling()
    with pytest.raises(ValueError, match=r"OtherSampling.*something else"):
        swap_deformable_attention(layer)


def test_an_unknown_attention_is_refused():
    layer = make_layer("rt_detr")
    del layer.attn
    with pytest.raises(ValueError, match="RTDetrMultiscaleDeformableAttention"):
        swap_deformable_attention(layer)


@pytest.mark.parametrize("name", ["rt_detr", "mask2former"])
def test_a_replaced_forward_is_refused(name):
    layer = make_layer(name)
    module = layer.attn if name == "rt_detr" else layer
    module.forward = module.forward
    with pytest.raises(ValueError, match="kernels or accelerate"):
        swap_deformable_attention(layer)


@pytest.mark.parametrize("name", ["rt_detr", "oneformer"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_script_is_refused(name):
    layer = make_layer(name)
    swap_deformable_attention(layer)
    with pytest.raises(NotImplementedError, match=r"Attention: .*torch\.export"):
        torch.jit.script(nn.Sequential(layer))


@pytest.mark.parametrize("name", ["deformable_detr", "d_fine", "oneformer"])
def test_compile_takes_one_graph(name):
    layer = make_layer(name)
    swap_deformable_attention(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = make_inputs(name, 4)
    torch.testing.assert_close(compiled(**inputs), layer(**inputs), rtol=0, atol=1e-12)
