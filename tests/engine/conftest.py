"""A tiny training run with mmengine."""

import numpy as np
import pytest
from engine.small_model import Images, Model
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner


class Score(BaseMetric):
    """A metric whose values are numpy's, as those of most metrics are."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {"ap": np.float64(0.5), "count": np.int64(3), "loss": np.float32(0.25)}


@pytest.fixture
def make_model():
    return Model


@pytest.fixture
def make_runner(tmp_path):
    """Makes runners that train two epochs of two steps."""

    def make(model=None, *, work_dir="run", epochs=2, checkpoint=(), **arguments):
        loader = {
            "batch_size": 2,
            "dataset": Images(),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        }
        hooks = {
            "checkpoint": {
                "type": "CheckpointHook",
                "interval": 1,
                "save_best": "ap",
                "rule": "greater",
                **dict(checkpoint),
            },
            "logger": {"type": "LoggerHook", "interval": 1},
        }
        return Runner(
            model=model or Model(),
            work_dir=str(tmp_path / work_dir),
            train_dataloader=loader,
            val_dataloader=loader,
            train_cfg={"by_epoch": True, "max_epochs": epochs},
            val_cfg={},
            val_evaluator={"type": Score},
            optim_wrapper={
                "optimizer": {"type": "AdamW", "lr": 0.01},
                **arguments.pop("optim_wrapper", {}),
            },
            param_scheduler=[
                {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 3},
                {"type": "MultiStepLR", "milestones": [1]},
            ],
            default_hooks=hooks,
            custom_hooks=arguments.pop("custom_hooks", None),
            randomness=arguments.pop("randomness", {"seed": 0}),
            experiment_name=f"{tmp_path.name}_{work_dir}_{next(_COUNTER)}",
            **arguments,
        )

    return make


_COUNTER = iter(range(10**6))
