"""Run by torchrun: saves the gradients that each process of a data-parallel detector ends with."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcnv4_mm.integrations import install

install()
sys.path.insert(0, str(Path(__file__).parents[1]))

from bev.small_detector import build, images, sample


class Losses(nn.Module):
    """The sum of a detector's losses as its forward."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, imgs, samples):
        return sum(self.detector.loss(dict(imgs=imgs), samples).values())


def make_detector():
    """With norms that do not depend on the batch."""
    detector = build(frames=3)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return Losses(detector)


def make_batch():
    return images(batch=2), [sample(valid=(False, True, True)), sample(mono=0, turn=0.3)]


def gradients(model, imgs, samples):
    model(imgs, samples).backward()
    named = model.module if isinstance(model, DistributedDataParallel) else model
    return {n: p.grad for n, p in named.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    imgs, samples = make_batch()
    shard = imgs[rank : rank + 1], samples[rank : rank + 1]
    # Without the search for unused parameters: each gets a gradient in each process.
    result = gradients(DistributedDataParallel(make_detector()), *shard)
    torch.save(result, f"{sys.argv[1]}/{rank}.pt")
    dist.destroy_process_group()
