"""FlashInternImage-T on one picture: with the operator, and with ``grid_sample`` in its place."""

import copy
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from dcnv4 import grid_sample_dcnv4
from layers import spread_offsets
from measure import Record, interleaved, ratio
from torch import Tensor, nn

from dcnv4_mm.backbones import FlashInternImage

# How much faster the forward is to be than with grid_sample, by threads.
TARGETS = {1: 1.4, 2: 1.6}
SHARE_TARGET = 0.15

layer_module = importlib.import_module("dcnv4_mm.layers.dcnv4")


@contextmanager
def operator(function: Callable[..., Tensor]) -> Iterator[None]:
    """Puts another function in the place of dcnv4 in the layers."""
    original = layer_module.dcnv4
    layer_module.dcnv4 = function
    try:
        yield
    finally:
        layer_module.dcnv4 = original


def make_backbone() -> nn.Module:
    """A backbone whose offsets, zero in a fresh one, move by pixels as after training."""
    torch.manual_seed(0)
    backbone = FlashInternImage("t").eval()
    spread_offsets(backbone, torch.randn(1, 3, 224, 224))
    return backbone


def check(backbone: nn.Module, image: Tensor) -> None:
    """Raises unless both operators give the same maps, in float64.

    With random weights this deep network amplifies a rounding of float32 to the size of the maps.
    """
    exact = copy.deepcopy(backbone).double()
    with torch.inference_mode():
        expected = exact(image.double())
        with operator(grid_sample_dcnv4):
            actual = exact(image.double())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def share_of_operator(forward: Callable[[], object]) -> float:
    """The part of the forward's time that is spent in dcnv4."""
    spent = 0.0
    dcnv4 = layer_module.dcnv4

    def timed(*arguments, **settings):
        nonlocal spent
        start = time.perf_counter()
        output = dcnv4(*arguments, **settings)
        spent += time.perf_counter() - start
        return output

    with operator(timed):
        forward()
        spent, start = 0.0, time.perf_counter()
        for _ in range(10):
            forward()
        return spent / (time.perf_counter() - start)


def run(record: Record, threads: list[int], seconds: float) -> None:
    """Measures the forward in float32."""
    backbone = make_backbone()
    image = torch.randn(1, 3, 224, 224)

    def forward():
        with torch.inference_mode():
            return backbone(image)

    def with_grid_sample():
        with operator(grid_sample_dcnv4):
            return forward()

    check(backbone, image)

    row = dict(benchmark="backbone", case="T 1x3x224x224", dtype="float32")
    for count in threads:
        times = interleaved(
            {"ours": forward, "peer": with_grid_sample},
            seconds=seconds,
            threads={"ours": count, "peer": count},
        )
        record.add(**row, measured="forward", threads=count, contender="dcnv4", times=times["ours"])
        record.add(
            **row,
            measured="forward",
            threads=count,
            contender="grid_sample",
            times=times["peer"],
            ratio=ratio(times["peer"], times["ours"]),
            target=TARGETS.get(count),
        )
        torch.set_num_threads(count)
        record.add(
            **row,
            measured="operator's share",
            threads=count,
            contender="dcnv4",
            ratio=share_of_operator(forward),
            target=SHARE_TARGET,
            at_most=True,
        )
