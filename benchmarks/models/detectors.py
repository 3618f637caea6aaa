"""Detectors and segmentors: images per second; and training steps of them and of backbones."""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from compare import Implementation, Settings, compare
from measure import Table
from models.networks import (
    FAMILIES,
    METHODS,
    SIZES,
    Method,
    autocast,
    forward_of,
    losses_of,
    make_backbone,
    make_batch,
    make_model,
    missing_host,
    parameters_millions,
    spread_offsets,
    without_gradients,
)
from torch import Tensor, nn


def _scale(method: Method, settings: Settings, size: str) -> tuple[int, int]:
    side = settings.options.image
    if side:
        return side, side
    return method.size[size] if settings.on_gpu else method.small


def _available_methods(settings: Settings) -> dict[str, Method]:
    """Those whose host is installed; the others are a printed line."""
    wanted = settings.options.methods
    found = {name: METHODS[name] for name in (METHODS if wanted is None else wanted)}
    for name, method in list(found.items()):
        package = missing_host(method)
        if package is not None:
            print(f"{name}: n/a: {package} is not installed", flush=True)
            del found[name]
    return found


def prepare(method: Method, family: str, size: str, settings: Settings) -> nn.Module:
    """A detector or segmentor on the device, with offsets as after training."""
    torch.manual_seed(0)
    model = make_model(method, family, size).to(settings.device)
    image = torch.randn(1, 3, *_scale(method, settings, size), device=settings.device)
    spread_offsets(model.backbone, image)
    return model


def run(table: Table, settings: Settings) -> None:
    """The forward of detectors and segmentors, one image at a time."""
    batch = settings.options.batch or 1

    def build(method: Method, family: str, size: str, dtype: str) -> Implementation:
        model = prepare(method, family, size, settings)
        model.eval()
        data = make_batch(method, model, _scale(method, settings, size), batch)
        forward = forward_of(method, model, data)

        def call() -> object:
            with autocast(settings, dtype):
                return forward()

        speeds = method.fps.get(f"{family}-{size}", (None, None))
        paper = dict(zip(("float32", "float16"), speeds, strict=True))
        figures = dict(parameters_millions=parameters_millions(model), paper=paper.get(dtype))
        return Implementation(calls=[without_gradients(call)], images=batch, figures=figures)

    methods = _available_methods(settings)
    sizes = settings.options.sizes or (SIZES if settings.on_gpu else SIZES[:1])
    for (name, method), size, dtype in product(methods.items(), sizes, settings.dtypes):
        if method.path(size) is None:
            continue
        height, width = _scale(method, settings, size)
        compare(
            table,
            settings,
            case=f"{name} {size.upper()} {batch}x{height}x{width}",
            measured="forward",
            dtype=dtype,
            builders={f: partial(build, method, f, size, dtype) for f in FAMILIES},
        )


def _training_step(
    model: nn.Module, loss: Callable[[], Tensor], images: int, dtype: str, settings: Settings
) -> Implementation:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(settings, dtype):
            value = loss()
        value.backward()
        optimizer.step()
        # Gradients are part of what a step needs.
        optimizer.zero_grad()

    figures = dict(parameters_millions=parameters_millions(model))
    return Implementation(calls=[step], images=images, figures=figures)


def run_training(table: Table, settings: Settings) -> None:
    """A training step of backbones, detectors and segmentors, and the memory that it takes."""
    options = settings.options
    size, batch = (options.sizes or SIZES)[0], options.batch or 2
    image, images = options.image or 224, options.batch or (64 if settings.on_gpu else 4)

    def build_backbone(family: str, dtype: str) -> Implementation:
        torch.manual_seed(0)
        model = make_backbone(family, size).to(settings.device)
        inputs = torch.randn(images, 3, image, image, device=settings.device)
        spread_offsets(model, inputs[:1])

        def loss() -> Tensor:
            return sum(maps.float().square().mean() for maps in model(inputs))

        return _training_step(model, loss, images, dtype, settings)

    def build(method: Method, family: str, dtype: str) -> Implementation:
        model = prepare(method, family, size, settings)
        data = make_batch(method, model, _scale(method, settings, size), batch)
        return _training_step(model, partial(losses_of, model, data), batch, dtype, settings)

    builders: dict[str, Callable[[str, str], Implementation]] = {
        f"backbone {size.upper()} {images}x{image}x{image}": build_backbone
    }
    for name, method in _available_methods(settings).items():
        if method.path(size) is not None:
            height, width = _scale(method, settings, size)
            builders[f"{name} {size.upper()} {batch}x{height}x{width}"] = partial(build, method)
    # Memory comes last: measuring it changes how the process allocates.
    for memory, dtype, case in product((False, True), settings.dtypes, builders):
        compare(
            table,
            settings,
            case=case,
            measured="memory of a step" if memory else "training step",
            dtype=dtype,
            builders={f: partial(builders[case], f, dtype) for f in FAMILIES},
            memory=memory,
        )
