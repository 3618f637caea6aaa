"""The hook that stops at a loss that is not finite, before it reaches the weights."""

import json

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import nn

HOOK = {"type": "dcnv4_mm.NonFiniteHook"}


class Exploding(nn.Module):
    """Passes its input on, except in the third training step."""

    times = 0

    def forward(self, x):
        self.times += self.training
        return x / 0 if self.times == 3 else x


@pytest.fixture
def make_exploding(make_runner, make_model):
    """Makes a run that fails in its third step, behind the backbone's second stage."""

    def name_images(samples):
        names = [BaseDataElement(metainfo={"img_path": f"{s['index']}.jpg"}) for s in samples]
        return {"inputs": torch.stack([s["inputs"] for s in samples]), "data_samples": names}

    def make(**arguments):
        model = make_model()
        model.backbone.levels[1].norm = nn.Sequential(model.backbone.levels[1].norm, Exploding())
        runner = make_runner(model, **arguments)
        runner.train_loop.dataloader.collate_fn = name_images
        return runner

    return make


def test_it_stops_and_says_where(make_exploding, tmp_path):
    runner = make_exploding(custom_hooks=[HOOK])
    with pytest.raises(FloatingPointError, match=r"nan in iteration 3; .*levels\.1\.norm\.1;") as e:
        runner.train()
    (path,) = (tmp_path / "run").glob("*/non_finite_iter_3_rank_0.json")
    assert str(path) in str(e.value)
    assert json.loads(path.read_text()) == {
        "iteration": 3,
        "epoch": 2,
        "rank": 0,
        "first_module": "backbone.levels.1.norm.1",
        "losses": {"loss": "nan"},
        "images": ["0.jpg", "1.jpg"],
    }
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())


def test_a_loss_outside_of_modules_is_the_models(make_runner, make_model, monkeypatch):
    model = make_model()
    forward = type(model).forward
    infinite = {"loss": torch.tensor(float("inf"))}
    monkeypatch.setattr(
        type(model), "forward", lambda *a, mode, **k: infinite if mode == "loss" else forward(*a)
    )
    with pytest.raises(FloatingPointError, match=r"inf in iteration 1; .*: Model; images: unnamed"):
        make_runner(model, custom_hooks=[HOOK]).train()


def test_without_the_hook_nothing_is_looked_at(make_exploding):
    runner = make_exploding()
    runner.train()
    assert not any(module._forward_hooks for module in runner.model.modules())
    assert not all(parameter.isfinite().all() for parameter in runner.model.parameters())


def test_afterwards_the_model_is_as_before(make_runner):
    runner = make_runner(custom_hooks=[HOOK])
    runner.train()
    assert not any(module._forward_hooks for module in runner.model.modules())
