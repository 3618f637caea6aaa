"""mmcv's deformable attention on this package's operator: same parameters, same results."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmcv.ops", reason="mmcv is not installed")

from mmcv.ops import MultiScaleDeformableAttention, multi_scale_deform_attn
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from dcnv4_mm.integrations import _mmcv, is_swapped, swap_deformable_attention
from dcnv4_mm.registry import HOOKS

SHAPES = [(5, 7), (3, 4)]
CHANNELS, LEVELS, QUERIES, PIXELS = 16, 2, 6, 47


def make_module(dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(
        CHANNELS, num_heads=2, num_levels=LEVELS, num_points=3, **arguments
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.to(dtype).eval()


def make_inputs(batch_first, *, reference_numbers=2, dtype=torch.float64, batch=2):
    """Arguments by name; the tensors need gradients, except for the mask and the shapes."""
    generator = torch.Generator().manual_seed(1)

    def normal(length):
        tensor = torch.randn(batch, length, CHANNELS, generator=generator).to(dtype)
        return (tensor if batch_first else tensor.transpose(0, 1)).contiguous().requires_grad_()

    points = torch.rand(batch, QUERIES, LEVELS, reference_numbers, generator=generator).to(dtype)
    shapes = torch.tensor(SHAPES)
    return {
        "query": normal(QUERIES),
        "value": normal(PIXELS),
        "identity": normal(QUERIES),
        "query_pos": normal(QUERIES),
        "key_padding_mask": (torch.arange(PIXELS) % 3 == 0).expand(batch, PIXELS),
        "reference_points": points.requires_grad_(),
        "spatial_shapes": shapes,
        "level_start_index": torch.tensor([0, 35]),
    }


def run(module, inputs):
    """Output, and the gradients of parameters and inputs."""
    torch.manual_seed(2)  # for dropout
    output = module(**inputs)
    leaves = [*module.parameters()]
    leaves += [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype)
    return output, *torch.autograd.grad(output, leaves, grad, allow_unused=True)


def assert_same(module, inputs, tolerance=1e-12):
    swapped = copy.deepcopy(module)
    assert swap_deformable_attention(swapped) == 1
    for actual, expected in zip(run(swapped, inputs), run(module, inputs), strict=True):
        if expected is None:
            assert actual is None
        else:
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("left_out", [(), ("identity",), ("query_pos",), ("key_padding_mask",)])
@pytest.mark.parametrize("reference_numbers", [2, 4])
@pytest.mark.parametrize("batch_first", [False, True])
def test_same_results(batch_first, reference_numbers, left_out):
    inputs = make_inputs(batch_first, reference_numbers=reference_numbers)
    for name in left_out:
        del inputs[name]
    assert_same(make_module(batch_first=batch_first), inputs)


@pytest.mark.parametrize("training", [False, True])
def test_same_dropout(training):
    module = make_module(batch_first=True, dropout=0.5).train(training)
    assert_same(module, make_inputs(True))


def test_value_is_the_query_if_there_is_none():
    inputs = make_inputs(True)
    inputs["query"] = inputs.pop("value").detach().requires_grad_()
    inputs["reference_points"] = torch.rand(2, PIXELS, LEVELS, 2, dtype=torch.float64)
    del inputs["identity"], inputs["query_pos"]
    assert_same(make_module(batch_first=True), inputs)


def test_narrow_values():
    assert_same(make_module(batch_first=True, value_proj_ratio=0.5), make_inputs(True))


def test_float32():
    module = make_module(torch.float32)
    # Gradients are up to about 30, sums of hundreds of products.
    assert_same(module, make_inputs(False, dtype=torch.float32), tolerance=2e-5)


def test_autocast():
    module = make_module(torch.float32, batch_first=True)
    swapped = copy.deepcopy(module)
    swap_deformable_attention(swapped)
    inputs = make_inputs(True, dtype=torch.float32)
    exact = module(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = swapped(**inputs)
    assert output.dtype == torch.float32  # the identity's
    # Three linear layers in bfloat16, on numbers up to about 5.
    torch.testing.assert_close(output, exact, rtol=0.02, atol=0.1)
    output.sum().backward()
    assert swapped.sampling_offsets.weight.grad.isfinite().all()


def test_old_name_of_identity():
    inputs = make_inputs(True)
    inputs["residual"] = inputs.pop("identity")
    with pytest.warns(DeprecationWarning, match="residual"):
        assert_same(make_module(batch_first=True), inputs)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"reference_points": torch.zeros(2, QUERIES, LEVELS, 3).double()}, ValueError),
        ({"value": torch.zeros(2, PIXELS - 1, CHANNELS).double()}, (ValueError, AssertionError)),
    ],
)
def test_errors(changes, error):
    module = make_module(batch_first=True)
    inputs = {**make_inputs(True), **changes}
    del inputs["key_padding_mask"]
    with pytest.raises(error):
        module(**inputs)
    swap_deformable_attention(module)
    with pytest.raises(error):
        module(**inputs)


def test_parameters_and_state_dict_stay():
    model = nn.ModuleDict({"a": make_module(), "b": nn.Sequential(make_module(), nn.ReLU())})
    parameters = list(model.parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []
    model["a"].register_forward_hook(lambda *_: calls.append(1))
    assert swap_deformable_attention(model) == 2
    assert swap_deformable_attention(model) == 0
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    model["a"](**make_inputs(False))
    assert calls == [1]


def test_it_stays_swapped_in_copies():
    module = make_module()
    swap_deformable_attention(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert torch.equal(other(**make_inputs(False)), module(**make_inputs(False)))


def test_the_hosts_function_is_not_called(monkeypatch):
    def fail(*_):
        raise AssertionError("mmcv's own function was called")

    module = make_module()
    monkeypatch.setattr(multi_scale_deform_attn, "multi_scale_deformable_attn_pytorch", fail)
    with pytest.raises(AssertionError, match="own function"):
        module(**make_inputs(False))
    swap_deformable_attention(module)
    module(**make_inputs(False))


class Derived(MultiScaleDeformableAttention):
    def forward(self, query, **_):
        return query


def test_derived_classes_and_other_models_are_left_alone():
    model = nn.Sequential(Derived(CHANNELS, num_heads=2), nn.Linear(2, 2))
    assert swap_deformable_attention(model) == 0
    assert type(model[0]) is Derived
    assert not is_swapped(model)


def test_compile_takes_one_graph_but_for_the_sizes():
    module = make_module(batch_first=True)
    swap_deformable_attention(module)
    inputs = make_inputs(True)
    inputs["spatial_shapes"] = SHAPES  # as a tensor they would have to be read
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs), module(**inputs), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_script_is_refused():
    module = make_module(batch_first=True)
    swap_deformable_attention(module)
    with pytest.raises(NotImplementedError, match=r"DeformableAttention.*torch\.export"):
        torch.jit.script(torch.nn.Sequential(module))


def test_models_of_other_libraries_need_no_mmcv():
    code = (
        "import sys, torch; sys.modules['mmcv'] = None\n"
        "from dcnv4_mm.integrations import is_swapped, swap_deformable_attention\n"
        "model = torch.nn.Linear(2, 2)\n"
        "assert swap_deformable_attention(model) == 0 and not is_swapped(model)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


class _Runner:
    def __init__(self, model):
        self.model = model


def test_hook_swaps_before_training_and_before_testing():
    runner = _Runner(nn.Sequential(make_module()))
    hook = HOOKS.build({"type": "dcnv4_mm.SwapDeformableAttentionHook"})
    hook.before_run(runner)
    assert type(runner.model[0]) is _mmcv.DeformableAttention
    hook.before_run(runner)
    HOOKS.build({"type": "dcnv4_mm.SwapDeformableAttentionHook"}).before_run(runner)
    assert is_swapped(runner.model)


def test_hook_refuses_a_model_without_the_module():
    hook = HOOKS.build({"type": "dcnv4_mm.SwapDeformableAttentionHook"})
    with pytest.raises(ValueError, match="Linear has no MultiScaleDeformableAttention"):
        hook.before_run(_Runner(nn.Linear(2, 2)))


class _Detector(BaseModel):
    def __init__(self):
        super().__init__()
        self.attention = make_module(torch.float32)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return [self.attention(**make_inputs(False, dtype=torch.float32)).mean()]


class _Metric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {}


def test_one_line_of_a_config_holds_for_testing(tmp_path):
    runner = Runner(
        model=_Detector(),
        work_dir=str(tmp_path),
        test_dataloader={
            "batch_size": 1,
            "dataset": [{"inputs": torch.zeros(1)}],
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        test_cfg={},
        test_evaluator=Evaluator([_Metric()]),
        custom_hooks=[{"type": "dcnv4_mm.SwapDeformableAttentionHook"}],
        experiment_name=tmp_path.name,
    )
    assert not is_swapped(runner.model)
    runner.test()
    assert is_swapped(runner.model)


CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quickstart"


@pytest.mark.parametrize(
    ("host", "config", "key"),
    [
        ("mmdet", "dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco.py", "model"),
        ("mmseg", "mask2former_flash-internimage-nano_1xb4-300it_mini-ade20k.py", "decode_head"),
    ],
)
def test_our_models_use_our_operator_unless_one_key_says_otherwise(host, config, key):
    pytest.importorskip(host, reason=f"{host} is not installed")
    config = Config.fromfile(CONFIGS / config)
    init_default_scope(host)
    # mmdet changes what it is given.
    ours = MODELS.build(copy.deepcopy(config.model))
    part = config.model if key == "model" else config.model[key]
    part.swap_attention = False
    theirs = MODELS.build(config.model)
    kinds = [type(m) for m in theirs.modules() if isinstance(m, MultiScaleDeformableAttention)]
    assert set(kinds) == {MultiScaleDeformableAttention}
    assert sum(isinstance(m, _mmcv.DeformableAttention) for m in ours.modules()) == len(kinds)
    assert not is_swapped(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
