"""A tiny training run with mmengine."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn


class Model(BaseModel):
    """A backbone of this package under a detector's name for it, and a head."""

    def __init__(self, num_classes=3, **arguments):
        super().__init__()
        arch = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 1, 1, 1)}
        backbone = {"type": "dcnv4_mm.FlashInternImage", "arch": arch, **arguments}
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(64, num_classes)

    def forward(self, inputs, data_samples=None, mode="tensor", index=None):
        scores = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return {"loss": scores.square().mean()} if mode == "loss" else [scores]


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.metainfo = {"classes": ("a", "b"), "palette": [(1, 2, 3)], "weights": np.arange(3.0)}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"inputs": torch.randn(3, 32, 32, generator=generator), "index": index}


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
