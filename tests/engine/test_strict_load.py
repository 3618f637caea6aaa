"""The hook that loads a checkpoint completely or not at all."""

import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS

from dcnv4_mm.checkpoints import to_released
from dcnv4_mm.engine import StrictLoadHook, find_complete_checkpoint


@pytest.fixture
def released(make_model, tmp_path):
    """A model and a file of it in the released spelling."""
    model = make_model()
    for tensor in model.state_dict().values():
        tensor.normal_()
    path = tmp_path / "released.pth"
    torch.save({"meta": {}, "state_dict": to_released(model)}, path)
    return model, str(path)


def runner_with_hook(make_runner, model=None, load_from=None, *, hooks=(), **arguments):
    hook = {"type": "dcnv4_mm.StrictLoadHook", **arguments}
    return make_runner(model, load_from=load_from, custom_hooks=[*hooks, hook])


def same_weights(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


def test_released_file_is_converted_and_reported(make_runner, released, tmp_path):
    source, path = released
    runner = runner_with_hook(make_runner, load_from=path)
    runner.load_or_resume()
    assert same_weights(runner.model, source)
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert "tensors loaded, from the entry 'state_dict'" in log
    assert "patch_embed.norm1.1.weight -> backbone.patch_embed.norm1.weight" in log
    assert "do not match exactly" not in log


def test_other_model_is_refused_unchanged(make_runner, make_model, released):
    _, path = released
    model = make_model(num_classes=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runner = runner_with_hook(make_runner, model, path)
    message = r"head\.weight \(\(3, 64\) float32 in the file, \(5, 64\)"
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_allowed_misfits_stay(make_runner, make_model, released):
    source, path = released
    model = make_model(num_classes=5)
    before = model.head.weight.clone()
    runner_with_hook(make_runner, model, path, allow=["head."]).load_or_resume()
    assert torch.equal(model.head.weight, before)
    assert same_weights(model.backbone, source.backbone)


def test_own_checkpoints_resume(make_runner, tmp_path):
    runner_with_hook(make_runner).train()
    runner = runner_with_hook(make_runner, load_from=str(tmp_path / "run" / "epoch_1.pth"))
    runner._resume = True
    runner.train()
    assert runner.epoch == 2


def test_averaged_copy_starts_from_converted_weights(make_runner, released):
    source, path = released
    runner = runner_with_hook(make_runner, load_from=path, hooks=[{"type": "EMAHook"}])
    runner.call_hook("before_run")
    runner.load_or_resume()
    averaged = next(hook.ema_model for hook in runner.hooks if hasattr(hook, "ema_model"))
    assert same_weights(averaged.module, source)


def test_model_for_test_time_augmentation(make_runner, released):
    source, path = released

    class Augmented(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    runner = runner_with_hook(make_runner)
    runner.model = Augmented(runner.model)
    runner.load_checkpoint(path)
    assert same_weights(runner.model.module, source)


def test_hook_comes_before_those_that_read_the_weights(make_runner):
    runner = runner_with_hook(make_runner, hooks=[{"type": "EMAHook"}])
    kinds = [type(hook).__name__ for hook in runner.hooks]
    assert kinds.index(StrictLoadHook.__name__) < kinds.index("EMAHook")


def test_a_refusal_names_file_and_config(make_runner, make_model, released):
    _, path = released
    runner = runner_with_hook(make_runner, make_model(num_classes=5), path)
    with pytest.raises(ValueError, match=rf"^{path} into the model: the checkpoint does not fit"):
        runner.load_or_resume()
    object.__setattr__(runner.cfg, "_filename", "some/config.py")
    with pytest.raises(ValueError, match=rf"^{path} into some/config\.py: the checkpoint"):
        runner.load_or_resume()


@pytest.mark.parametrize(
    "content", [[[1], 2], {"epoch": 3}, "text", {"state_dict": {1: torch.ones(1)}}]
)
def test_other_content_is_named_with_its_file(make_runner, tmp_path, content):
    path = str(tmp_path / "other.pth")
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"^{path}"):
        runner_with_hook(make_runner, load_from=path).load_or_resume()
    backbone = {"type": "dcnv4_mm.FlashInternImage", "arch": "nano"}
    backbone["init_cfg"] = {"type": "Pretrained", "checkpoint": path}
    with pytest.raises(ValueError, match=rf"^{path}"):
        MODELS.build(backbone).init_weights()


@pytest.mark.parametrize("content", [[[1], 2], "text"])
def test_other_content_is_not_resumed_from(tmp_path, content):
    torch.save(content, tmp_path / "epoch_1.pth")
    with pytest.raises(ValueError, match=r"epoch_1\.pth"):
        find_complete_checkpoint(tmp_path)
