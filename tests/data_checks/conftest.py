"""Tiny data sets, and runners that train one step on them behind the check."""

import itertools

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

_COUNTER = itertools.count()


class Model(BaseModel):
    """A model whose heads say how many classes they know, by name."""

    def __init__(self, **heads):
        super().__init__()
        for name, attributes in heads.items():
            head = nn.Linear(1, 1)
            vars(head).update(attributes)
            self.add_module(name, head)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return {"loss": sum(p.sum() for p in self.parameters())}


@pytest.fixture
def make_runner(tmp_path):
    """Function that makes a runner with `CheckDataHook` of a host's data sets and heads."""

    def make(host, train, val=None, evaluator=None, *, hook=(), **heads):
        def loader(dataset):
            return {
                "batch_size": 1,
                "dataset": dataset,
                "sampler": {"type": "DefaultSampler", "shuffle": False},
                "collate_fn": {"type": "pseudo_collate"},
            }

        evaluated = val is not None
        return Runner(
            model=Model(**heads),
            work_dir=str(tmp_path / "run"),
            train_dataloader=loader(train),
            train_cfg={"by_epoch": True, "max_epochs": 1, "val_begin": 9},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
            val_dataloader=loader(val) if evaluated else None,
            val_cfg={} if evaluated else None,
            val_evaluator=evaluator if evaluated else None,
            custom_hooks=[{"type": "dcnv4_mm.CheckDataHook", **dict(hook)}],
            default_scope=host,
            experiment_name=f"{tmp_path.name}_{next(_COUNTER)}",
        )

    torch.manual_seed(0)
    return make
