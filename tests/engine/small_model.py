"""A small model and its images, for training runs with mmengine."""

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn


class Model(BaseModel):
    """A backbone of this package, named as in detectors, and a head."""

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
    def __init__(self, count=4):
        self.count = count
        self.metainfo = {"classes": ("a", "b"), "palette": [(1, 2, 3)], "weights": np.arange(3.0)}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"inputs": torch.randn(3, 32, 32, generator=generator), "index": index}
