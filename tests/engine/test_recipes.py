"""The recipes of docs/training.md on a tiny model; mmengine's AMP as if there were a GPU."""

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.optim.optimizer import amp_optimizer_wrapper

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("ours", [False, True])
def test_bfloat16(make_runner, make_model, monkeypatch, ours):
    """mmengine's wrapper requires a GPU, although its autocast works without one."""
    recipe = {"type": "AmpOptimWrapper", "dtype": "bfloat16"}
    if ours:
        recipe = {"type": "dcnv4_mm.BFloat16OptimWrapper", "accumulative_counts": 2}
    else:
        monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    model, seen = make_model(), set()
    model.head.register_forward_hook(lambda head, _, s: seen.add((head.training, s.dtype)))
    before = model.head.weight.clone()
    runner = make_runner(model, optim_wrapper=recipe)
    runner._val_loop = dict(fp16=ours)
    runner.train()
    evaluated = torch.bfloat16 if ours else torch.float32
    assert seen == {(True, torch.bfloat16), (False, evaluated)}
    assert model.head.weight.dtype == torch.float32
    assert not torch.equal(model.head.weight, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_one_step_of_four_batches(make_runner):
    runner = make_runner(optim_wrapper={"accumulative_counts": 4})
    steps = []
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper = wrapper
    wrapper.optimizer.register_step_post_hook(lambda *_: steps.append(runner.iter))
    runner.train()
    # Two epochs of two batches.
    assert steps == [3]


@pytest.mark.mmseg
def test_batch_norms_of_the_heads_are_synchronized():
    """As mmengine does with `sync_bn=torch` and several processes; the backbone has none."""
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    (path,) = CONFIGS.glob("quickstart/upernet*nano_1xb8*.py")
    model = MODELS.build(Config.fromfile(path).model)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    model = convert_sync_batchnorm(model, "torch")
    found = [n for n, m in model.named_modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert len(found) == norms > 0
    assert not any(name.startswith("backbone.") for name in found)
