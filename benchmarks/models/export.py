"""One image through FlashInternImage on the CPU: eager mode, compiled, and exported.

onnxruntime runs the operators as standard ones, and as our nodes where it was built with them.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from compare import Implementation, Settings, compare
from measure import Call, Table, relative_error
from models.networks import POINTS
from operators.cases import OFFSET_DEVIATION
from torch import Tensor, nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.export.onnx import custom_ops_library, onnx_decompositions
from dcnv4_mm.export.portable import portable_decompositions
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import offset_rows


def make_classifier(arch: str) -> nn.Module:
    """A classifier with offsets that spread by two pixels, as after training.

    They depend only weakly on the image: otherwise a deep network with random weights would turn
    rounding into errors of a percent.
    """
    torch.manual_seed(0)
    model = FlashInternImage(arch, num_classes=1000).eval()
    for layer in model.modules():
        if isinstance(layer, DCNv4):
            nn.init.normal_(layer.offset_mask.weight, std=0.01)
            nn.init.normal_(layer.offset_mask.bias, std=0.3)
            with torch.no_grad():
                layer.offset_mask.bias[offset_rows(layer.groups, POINTS)] *= OFFSET_DEVIATION / 0.3
    return model


def exported(model: nn.Module, image: Tensor, folder: str, threads: int) -> dict[str, Callable]:
    """Calls of the model in each format that runs here, for images of one size."""
    program = torch.export.export(model, (image,))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(Path(folder, "model.pt2"))
    )
    compiled = torch._inductor.aoti_load_package(package)
    tables = {"onnxruntime": portable_decompositions()}
    if custom_ops_library().exists():
        tables["onnxruntime, our nodes"] = onnx_decompositions()
    functions = {"AOTInductor": lambda: compiled(image)}
    for name, table in tables.items():
        path = str(Path(folder, f"{name}.onnx"))
        torch.onnx.export(program.run_decompositions(table), dynamo=True, verbose=False).save(path)
        functions[name] = onnx_session(path, image, threads)
    return functions


def onnx_session(path: str, image: Tensor, threads: int) -> Callable[[], Tensor]:
    """A function that runs the written model on the image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if custom_ops_library().exists():
        options.register_custom_ops_library(str(custom_ops_library()))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def run(table: Table, settings: Settings) -> None:
    """The forward in float32 of every format, with one or more threads."""
    options = settings.options
    size = options.image or 224
    for arch, threads in product(options.sizes or ["nano", "t"], settings.threads):
        # Inductor writes the number of threads into its code.
        torch.set_num_threads(threads)
        model, image = make_classifier(arch), torch.randn(1, 3, size, size)
        compiled = torch.compile(model, fullgraph=True)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            calls = {
                "eager": lambda model=model, image=image: model(image),
                "torch.compile": lambda model=compiled, image=image: model(image),
                **exported(model, image, folder, threads),
            }
            compare_forwards(table, settings, calls, size=size, arch=arch, threads=threads)


def compare_forwards(
    table: Table,
    settings: Settings,
    calls: Mapping[str, Call],
    *,
    arch: str,
    size: int,
    threads: int,
    dtype: str = "float32",
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Times forwards of one image; their errors are relative to the first one's output."""
    expected = next(iter(calls.values()))().double()

    def build(call: Call) -> Implementation:
        figures = dict(relative_error=relative_error(call(), expected))
        return Implementation(calls=[call], images=1, figures=figures)

    compare(
        table,
        replace(settings, threads=[threads]),
        case=f"{arch} 1x3x{size}x{size}",
        measured="forward",
        dtype=dtype,
        builders={name: partial(build, call) for name, call in calls.items()},
        clock=clock,
    )
