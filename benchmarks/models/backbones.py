"""Backbones: images per second, scaling, and how much the operator matters."""

import copy
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from compare import Implementation, Settings, compare
from measure import Table
from models.networks import (
    FAMILIES,
    OURS,
    SIZES,
    forward_of_network,
    make_backbone,
    spread_offsets,
    without_gradients,
)
from operators.dcnv4 import grid_sample_dcnv4
from torch import Tensor, nn

# Rows and columns, images.
SCALES = {
    "cpu": [(s, 1) for s in (160, 224, 320, 448)] + [(160, n) for n in (2, 4, 8)],
    "cuda": [(s, 1) for s in (224, 384, 512, 768, 1024)] + [(224, n) for n in (4, 16, 64, 256)],
}
# How much faster FlashInternImage-T shall be than with grid_sample, by threads.
SHARE_TARGETS = {("grid_sample", 1): ">= 1.4", ("grid_sample", 2): ">= 1.6"}

layer_module = importlib.import_module("dcnv4_mm.layers.dcnv4")


def run(table: Table, settings: Settings) -> None:
    """Images per second at 224 and 384 pixels."""
    options = settings.options
    batch = options.batch or (16 if settings.on_gpu else 1)
    images = [options.image] if options.image else [224, 384]
    for size, image, dtype in product(options.sizes or SIZES, images, settings.dtypes):
        _compare_backbones(table, settings, size, image, batch, dtype)


def run_scaling(table: Table, settings: Settings) -> None:
    """Time by the image size and by the batch size, of the smallest networks."""
    options = settings.options
    scales = SCALES[settings.device.type]
    if options.image:
        scales = [(options.image, options.batch or 1)]
    for (image, batch), dtype in product(scales, settings.dtypes):
        _compare_backbones(table, settings, (options.sizes or SIZES)[0], image, batch, dtype)


def _compare_backbones(
    table: Table, settings: Settings, size: str, image: int, batch: int, dtype: str
) -> None:
    def build(family: str) -> Implementation:
        torch.manual_seed(0)
        backbone = make_backbone(family, size)
        return forward_of_network(backbone, image, batch, dtype, settings)

    compare(
        table,
        settings,
        case=f"{size.upper()} {batch}x{image}x{image}",
        measured="forward",
        dtype=dtype,
        builders={family: partial(build, family) for family in FAMILIES},
    )


@contextmanager
def operator(function: Callable[..., Tensor]) -> Iterator[None]:
    """Replaces dcnv4 in the layers."""
    original = layer_module.dcnv4
    layer_module.dcnv4 = function
    try:
        yield
    finally:
        layer_module.dcnv4 = original


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


def operator_share(forward: Callable[[], object]) -> float:
    """The ratio of the forward's time that is spent in dcnv4."""
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


def run_operator_share(table: Table, settings: Settings) -> None:
    """FlashInternImage-T with the operator and with ``grid_sample``; the operator's time ratio."""
    size = settings.options.image or 224
    torch.manual_seed(0)
    backbone = make_backbone(OURS, "t").eval()
    image = torch.randn(1, 3, size, size)
    # Offsets are zero in a new network; here they move by pixels as after training.
    spread_offsets(backbone, image)
    check(backbone, image)
    forward = without_gradients(backbone, image)

    def with_grid_sample() -> object:
        with operator(grid_sample_dcnv4):
            return forward()

    row = dict(case=f"T 1x3x{size}x{size}", dtype="float32")
    compare(
        table,
        settings,
        **row,
        measured="forward",
        builders={
            "dcnv4": lambda: Implementation(calls=[forward]),
            "grid_sample": lambda: Implementation(calls=[with_grid_sample]),
        },
        targets=SHARE_TARGETS,
    )
    for count in settings.threads:
        keys = dict(**row, measured="operator's share", threads=count, implementation="dcnv4")
        if not table.has(**keys):
            torch.set_num_threads(count)
            table.add(**keys, ratio=operator_share(forward), target="<= 0.15")
