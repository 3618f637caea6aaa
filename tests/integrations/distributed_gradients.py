"""Run by torchrun: saves the gradients that each process of a data-parallel model ends with."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv4


def make_model() -> nn.Module:
    """A small float64 backbone whose offsets and masks are not zero."""
    torch.manual_seed(0)
    arch = {"channels": 8, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}
    model = FlashInternImage(arch).double()
    for module in model.modules():
        if isinstance(module, DCNv4):
            nn.init.normal_(module.offset_mask.weight, std=0.3)
    return model


def make_images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 48, 40, generator=generator, dtype=torch.float64)


def gradients(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    sum(maps.square().mean() for maps in model(images)).backward()
    return [parameter.grad for parameter in model.parameters()]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shard = make_images().chunk(dist.get_world_size())[rank]
    result = gradients(DistributedDataParallel(make_model()), shard)
    torch.save(result, f"{sys.argv[1]}/{rank}.pt")
    dist.destroy_process_group()
