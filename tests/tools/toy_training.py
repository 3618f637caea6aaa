"""A toy model, its data and a fault, for trainings in processes of their own."""

import json
import os
import signal
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS


@DATASETS.register_module()
class ToySet(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"inputs": index + torch.rand(4)}


@MODELS.register_module()
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, inputs, mode):
        return {"loss": self.layer(torch.stack(inputs)).square().mean()}


@HOOKS.register_module()
class KillOnce(Hook):
    """Writes the losses of the second process, and kills it once."""

    priority = "LOWEST"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 1:
            with open("losses.jsonl", "a") as file:
                print(json.dumps([runner.iter, outputs["loss"].item()]), file=file)
            # In the middle of the second epoch.
            if runner.iter == 4 and not Path("killed").exists():
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
