"""A runner that has built everything, and trained nothing."""

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from dcnv4_mm.engine import install


def small_runner(folder):
    """A runner that has built everything, and trained nothing."""
    install()
    hook = {"interval": 1, "max_keep_ckpts": 2, "save_best": "ap", "rule": "greater"}
    loader = {
        "batch_size": 1,
        "dataset": Images(),
        "sampler": {"type": "DefaultSampler", "shuffle": False},
    }
    runner = Runner(
        model=Linear(),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": 0},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        default_hooks={"checkpoint": {"type": "dcnv4_mm.SafeCheckpointHook", **hook}},
        log_level="ERROR",
        experiment_name="crashes",
    )
    runner.train()
    return runner


class Linear(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, inputs, mode):
        return {"loss": self.layer(inputs).sum()}


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.metainfo = {"classes": ("a",)}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"inputs": torch.ones(2)}
