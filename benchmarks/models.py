"""Measures layers and whole networks beside what users would take instead, on a CPU or a GPU.

    python benchmarks/models.py layers      # the paper's operators with their projections
    python benchmarks/models.py ablation    # what the paper left out of DCNv3, put in again
    python benchmarks/models.py backbones   # images per second
    python benchmarks/models.py detectors   # the same of detectors and segmentors
    python benchmarks/models.py training    # a step's time and memory
    python benchmarks/models.py scaling     # time by the picture's size and by the batch

All contenders of a row run by turns in one process; nothing runs if the operator is wrong. What is
measured is written at once: a run that was cut short goes on where it stopped (delete its file to
begin anew). Without a GPU the cases are smaller. Stop other work first.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from cases import PAPER_CASES, Case, case_argument
from contest import FIGURES, Call, Entry, Settings, contest
from gate import check_operator
from layers import ABLATIONS, LAYERS, OURS, PAPER_TABLE, make_dcnv4, make_input, spread_offsets
from measure import RESULTS, commit
from model_figures import plot
from networks import (
    FAMILIES,
    METHODS,
    SIZES,
    Method,
    forward_of,
    losses_of,
    make_backbone,
    make_batch,
    make_model,
    missing_host,
)
from table import Table
from torch import Tensor, nn

from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.functional import backend_info

# One image each of the paper's shapes that a processor does in less than seconds.
CPU_CASES = tuple(
    replace(case, batch=1) for case in PAPER_CASES if case.height * case.width <= 4000
)
# Rows and columns, images.
SCALES = {
    "cpu": [(s, 1) for s in (160, 224, 320, 448)] + [(160, n) for n in (2, 4, 8)],
    "cuda": [(s, 1) for s in (224, 384, 512, 768, 1024)] + [(224, n) for n in (4, 16, 64, 256)],
}


def without_gradients(function: Callable[..., object], *inputs: object) -> Call:
    def call() -> object:
        with torch.inference_mode():
            return function(*inputs)

    return call


def with_gradients(layer: nn.Module, x: Tensor) -> Call:
    """The forward, and the backward to the input and all parameters."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    gradient = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(leaves[0]), leaves, gradient)


def paper_figure(name: str, case: Case, dtype: str) -> float | str:
    """The paper's time of a layer; a single image is compared with the paper's batch of 64."""
    figures = PAPER_TABLE.get(name, {})
    found = figures.get(str(case)) or figures.get(str(replace(case, batch=64))) or {}
    return found.get(dtype, "")


def layers(table: Table, settings: Settings) -> None:
    """Layers with their projections."""

    def build(name: str, case: Case, dtype: str, backward: bool) -> Entry:
        kind = getattr(torch, dtype)
        torch.manual_seed(0)
        layer = LAYERS[name](case, kind, settings.device).to(settings.device, kind)
        x = make_input(name, case, kind, settings.device)
        call = with_gradients(layer, x) if backward else without_gradients(layer, x)
        paper = "" if backward else paper_figure(name, case, dtype)
        return Entry(call=call, images=case.batch, module=layer, paper=paper)

    _layer_contests(table, settings, LAYERS, build)


def ablation(table: Table, settings: Settings) -> None:
    """A DCNv4 layer, and FlashInternImage, with what the paper left out."""

    def build(name: str, case: Case, dtype: str, backward: bool) -> Entry:
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        layer = make_dcnv4(case, ABLATIONS[name]).to(settings.device, kind)
        x = make_input(OURS, case, kind, settings.device)
        call = with_gradients(layer, x) if backward else without_gradients(layer, x)
        return Entry(call=call, images=case.batch, module=layer)

    _layer_contests(table, settings, ABLATIONS, build)

    def build_backbone(name: str, size: str, image: int, batch: int, dtype: str) -> Entry:
        torch.manual_seed(0)
        backbone = make_backbone("FlashInternImage", size)
        spread_offsets(backbone, torch.randn(1, 3, image, image))
        for layer in list(backbone.modules()):
            if isinstance(layer, DCNv4):
                ABLATIONS[name](layer)
        return network_entry(backbone, image, batch, dtype, settings)

    image, batch = settings.image or 224, settings.batch or (64 if settings.on_gpu else 1)
    for size, dtype in itertools.product(settings.sizes, settings.dtypes):
        contest(
            table,
            settings,
            case=f"FlashInternImage-{size.upper()} {batch}x{image}x{image}",
            measured="forward",
            dtype=dtype,
            builders={
                name: partial(build_backbone, name, size, image, batch, dtype) for name in ABLATIONS
            },
        )


def _layer_contests(
    table: Table,
    settings: Settings,
    names: dict,
    build: Callable[[str, Case, str, bool], Entry],
) -> None:
    for case, dtype, backward in itertools.product(settings.cases, settings.dtypes, (False, True)):
        contest(
            table,
            settings,
            case=case,
            measured="forward+backward" if backward else "forward",
            dtype=dtype,
            builders={name: partial(build, name, case, dtype, backward) for name in names},
            in_graphs=True,
        )


def autocast(settings: Settings, dtype: str) -> torch.autocast:
    return torch.autocast(settings.device.type, getattr(torch, dtype), enabled=dtype != "float32")


def network_entry(
    network: nn.Module, image: int, batch: int, dtype: str, settings: Settings
) -> Entry:
    """The forward of a network on random pictures."""
    network.to(settings.device).train(False)
    pictures = torch.randn(batch, 3, image, image, device=settings.device)
    spread_offsets(network, pictures[:1])

    def forward() -> object:
        with autocast(settings, dtype):
            return network(pictures)

    return Entry(call=without_gradients(forward), images=batch, module=network)


def backbones(table: Table, settings: Settings) -> None:
    """Images per second at 224 and 384 pixels."""
    images = [settings.image] if settings.image else [224, 384]
    batch = settings.batch or (16 if settings.on_gpu else 1)
    for size, image, dtype in itertools.product(settings.sizes, images, settings.dtypes):
        _contest_of_backbones(table, settings, size, image, batch, dtype)


def scaling(table: Table, settings: Settings) -> None:
    """Time by the size of the picture and by the batch, of the smallest networks."""
    scales = SCALES[settings.device.type]
    if settings.image:
        scales = [(settings.image, settings.batch or 1)]
    for (image, batch), dtype in itertools.product(scales, settings.dtypes):
        _contest_of_backbones(table, settings, settings.sizes[0], image, batch, dtype)


def _contest_of_backbones(
    table: Table, settings: Settings, size: str, image: int, batch: int, dtype: str
) -> None:
    def build(family: str) -> Entry:
        torch.manual_seed(0)
        return network_entry(make_backbone(family, size), image, batch, dtype, settings)

    contest(
        table,
        settings,
        case=f"{size.upper()} {batch}x{image}x{image}",
        measured="forward",
        dtype=dtype,
        builders={family: partial(build, family) for family in FAMILIES},
    )


def _scale(method: Method, settings: Settings, size: str) -> tuple[int, int]:
    if settings.image:
        return settings.image, settings.image
    return method.size[size] if settings.on_gpu else method.small


def _methods_at_hand(settings: Settings) -> list[str]:
    """Those whose host is installed; the others are a printed line."""
    missing = {name: missing_host(METHODS[name]) for name in settings.methods}
    for name, package in missing.items():
        if package is not None:
            print(f"{name}: n/a: {package} is not installed", flush=True)
    return [name for name, package in missing.items() if package is None]


def prepare(method: Method, family: str, size: str, settings: Settings) -> nn.Module:
    """A detector or segmentor on the device, with offsets as after training."""
    torch.manual_seed(0)
    model = make_model(method, family, size).to(settings.device)
    picture = torch.randn(1, 3, *_scale(method, settings, size), device=settings.device)
    spread_offsets(model.backbone, picture)
    return model


def detectors(table: Table, settings: Settings) -> None:
    """Detectors and segmentors, one picture at a time."""

    def build(method: Method, family: str, size: str, dtype: str) -> Entry:
        model = prepare(method, family, size, settings)
        model.eval()
        batch = settings.batch or 1
        data = make_batch(method, model, _scale(method, settings, size), batch)
        forward = forward_of(method, model, data)

        def call() -> object:
            with autocast(settings, dtype):
                return forward()

        paper = method.fps.get(f"{family}-{size}", ())
        column = {"float32": 0, "float16": 1}.get(dtype)
        return Entry(
            call=without_gradients(call),
            images=batch,
            module=model,
            paper=paper[column] if paper and column is not None else "",
        )

    for name, size, dtype in itertools.product(
        _methods_at_hand(settings), settings.sizes, settings.dtypes
    ):
        method = METHODS[name]
        if method.path(size) is None:
            continue
        rows, columns = _scale(method, settings, size)
        contest(
            table,
            settings,
            case=f"{name} {size.upper()} {settings.batch or 1}x{rows}x{columns}",
            measured="forward",
            dtype=dtype,
            builders={f: partial(build, method, f, size, dtype) for f in FAMILIES},
        )


def training(table: Table, settings: Settings) -> None:
    """A training step: losses, gradients, AdamW; and the memory that it takes."""

    def step_of(model: nn.Module, loss: Callable[[], Tensor], dtype: str) -> Call:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step() -> None:
            with autocast(settings, dtype):
                value = loss()
            value.backward()
            optimizer.step()
            # Gradients are part of what a step needs.
            optimizer.zero_grad()

        return step

    def build_backbone(*, family: str, size: str, image: int, batch: int, dtype: str) -> Entry:
        torch.manual_seed(0)
        model = make_backbone(family, size).to(settings.device)
        pictures = torch.randn(batch, 3, image, image, device=settings.device)
        spread_offsets(model, pictures[:1])

        def loss() -> Tensor:
            return sum(maps.float().square().mean() for maps in model(pictures))

        return Entry(call=step_of(model, loss, dtype), images=batch, module=model)

    def build(method: Method, *, family: str, size: str, batch: int, dtype: str) -> Entry:
        model = prepare(method, family, size, settings)
        data = make_batch(method, model, _scale(method, settings, size), batch)
        call = step_of(model, partial(losses_of, model, data), dtype)
        return Entry(call=call, images=batch, module=model)

    size, batch = settings.sizes[0], settings.batch or 2
    image, pictures = settings.image or 224, settings.batch or (64 if settings.on_gpu else 4)
    builders = {
        f"backbone {size.upper()} {pictures}x{image}x{image}": partial(
            build_backbone, size=size, image=image, batch=pictures
        )
    }
    for name in _methods_at_hand(settings):
        method = METHODS[name]
        if method.path(size) is not None:
            rows, columns = _scale(method, settings, size)
            builders[f"{name} {size.upper()} {batch}x{rows}x{columns}"] = partial(
                build, method, size=size, batch=batch
            )
    for memory, dtype, case in itertools.product((False, True), settings.dtypes, builders):
        contest(
            table,
            settings,
            case=case,
            measured="memory of a step" if memory else "training step",
            dtype=dtype,
            builders={f: partial(builders[case], family=f, dtype=dtype) for f in FAMILIES},
            memory=memory,
        )


STAGES: dict[str, Callable[[Table, Settings], None]] = {
    "layers": layers,
    "ablation": ablation,
    "backbones": backbones,
    "detectors": detectors,
    "training": training,
    "scaling": scaling,
}


def sizes_of(stage: str, device: torch.device) -> list[str]:
    """The networks that a stage measures unless it is told."""
    all_sizes = stage == "backbones" or (stage == "detectors" and device.type == "cuda")
    return list(SIZES if all_sizes else SIZES[:1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row of contenders")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="of networks")
    parser.add_argument("--image", type=int, help="rows and columns of the pictures")
    parser.add_argument("--batch", type=int, help="number of pictures")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cases", nargs="+", type=case_argument, metavar="NxHxWxGxD")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for CSV and plot")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git is not")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not on_gpu:
        parser.error("no CUDA device is visible; --device cpu measures the processor")
    serving = backend_info()["dcnv4"][device.type]
    if not serving.startswith("compiled"):
        parser.error(f"the kernels of dcnv4 are not in use ({serving})")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    check_operator(device)
    table = Table(
        arguments.stage,
        stage=arguments.stage,
        figures=FIGURES,
        folder=arguments.out,
        device=device,
        commit=arguments.commit,
    )
    types = ["float16", "bfloat16", "float32"] if device.type == "cuda" else ["float32"]
    settings = Settings(
        device=device,
        dtypes=arguments.dtypes or types,
        seconds=arguments.seconds,
        sizes=arguments.sizes or sizes_of(arguments.stage, device),
        image=arguments.image,
        batch=arguments.batch,
        cases=arguments.cases or list(PAPER_CASES if device.type == "cuda" else CPU_CASES),
        methods=arguments.methods,
    )
    STAGES[arguments.stage](table, settings)
    if table.rows:
        picture = plot(table.rows, table.path.with_suffix(".png"))
        print(f"saved {table.path} and {picture}")


if __name__ == "__main__":
    main()
