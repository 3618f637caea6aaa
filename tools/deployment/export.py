"""Exports a trained model to a file that runs without this package, and checks its outputs.

    python tools/deployment/export.py CONFIG CHECKPOINT MODEL.pt2  --format export
    python tools/deployment/export.py CONFIG CHECKPOINT MODEL.pt2  --format aotinductor
    python tools/deployment/export.py CONFIG CHECKPOINT MODEL.onnx --format onnx
    python tools/deployment/export.py CONFIG CHECKPOINT MODEL.onnx --format onnx-custom

Batch and image size of the file are dynamic. A separate process runs it on images of three sizes;
the file is kept only if all outputs match eager mode. docs/export.md lists what is supported.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dcnv4_mm.cli.checks import check_checkpoint
from dcnv4_mm.cli.configs import load_config, naming_missing, stop

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from dcnv4_mm.export.wrappers import ExportWrapper

SUFFIXES = {"export": ".pt2", "aotinductor": ".pt2", "onnx": ".onnx", "onnx-custom": ".onnx"}
# Keeps the file's folder off the import path: modules there are named after libraries.
RUN_FILE = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
# Ratio of labels that may differ: where the values of two classes are equal but for rounding.
LABELS = 0.005
# What a process without the package needs for each format.
LIBRARIES = {
    "export": ("schemas", "cpu"),
    "aotinductor": ("schemas", "cpu"),
    "onnx": (),
    "onnx-custom": ("onnxruntime",),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export a trained model, and check the result.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--format", choices=SUFFIXES, default="export", help="default: export")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(256, 320),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the example images for tracing, at least 64; default 256 320",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="maximum error, relative to the largest output value; default 1e-3",
    )
    parser.add_argument(
        "--online",
        action="store_true",
        help="BEVFormer v2 with future frames: treat them as missing",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as for train.py"
    )
    parser.set_defaults(launcher="none", local_rank=0, work_dir=None)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Stops if the arguments or the installation do not allow the export."""
    suffix = SUFFIXES[args.format]
    if args.target.suffix != suffix:
        stop(f"{args.format} needs a file name ending in {suffix}, got {args.target}")
    if not args.target.parent.is_dir():
        stop(f"the folder {args.target.parent} does not exist")
    if min(args.size) < 64:
        stop(f"--size must be at least 64 x 64, got {args.size[0]} x {args.size[1]}")
    if args.format.startswith("onnx"):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(name) is None:
                stop(
                    f"--format {args.format} needs {name}: pip install onnx onnxscript onnxruntime"
                )
    if missing := [path.name for path in libraries(args.format) if not path.exists()]:
        stop(f"{', '.join(missing)} is not part of this installation; see docs/export.md")
    check_checkpoint(args.checkpoint)


def libraries(kind: str) -> list[Path]:
    """The libraries of the package that a process needs to run a file of the format ``kind``."""
    folder = Path(find_spec("dcnv4_mm").origin).parent / "lib"
    return [folder / f"libdcnv4_mm_{name}.so" for name in LIBRARIES[kind]]


def build(args: argparse.Namespace) -> tuple["ExportWrapper", dict]:
    """The part of the model that is exported, with the checkpoint's weights, and its metadata."""
    from mmengine.registry import MODELS, init_default_scope

    from dcnv4_mm.checkpoints import load_released
    from dcnv4_mm.checkpoints.files import naming_file, read_file
    from dcnv4_mm.export.metadata import describe
    from dcnv4_mm.export.wrappers import wrap_for_export

    cfg = load_config(args)
    host = cfg.get("default_scope", "mmdet")
    init_default_scope(host)
    try:
        model = MODELS.build(cfg.model)
        checkpoint = read_file(args.checkpoint)
        with naming_file(args.checkpoint):
            load_released(model, checkpoint)
    except (ValueError, OSError) as error:
        stop(str(error))
    options = {}
    if host == "mmdet3d":
        options = dict(frames=cfg.test_dataloader.dataset.get("frames", (0,)), online=args.online)
    try:
        part = wrap_for_export(model, host, **options).eval()
    except ValueError as error:
        stop(str(error))
    meta = (checkpoint.get("meta") or {}).get("dataset_meta")
    name = Path(args.config).stem
    metadata = describe(cfg, task=part.task, meta=meta, name=name)
    if part.pads:
        metadata["size_divisor"] = 1
    return part, metadata


def trace(part: "ExportWrapper", size: Sequence[int]) -> "ExportedProgram":
    """The graph with dynamic batch and image size."""
    import torch

    from dcnv4_mm.export.tracing import SymbolicSizes

    inputs = part.examples(2, *size, torch.Generator().manual_seed(0))
    with SymbolicSizes():
        return torch.export.export(part, inputs, dynamic_shapes=part.dynamic_shapes())


def write(program: "ExportedProgram", kind: str, path: str, metadata: dict) -> None:
    """Writes the graph in the format ``kind``, with metadata in the file."""
    import torch

    from dcnv4_mm.export.metadata import KEY, embed
    from dcnv4_mm.export.onnx import onnx_decompositions
    from dcnv4_mm.export.portable import portable_decompositions
    from dcnv4_mm.export.tracing import pooling_decompositions

    if kind == "export":
        # Through memory: torch ends the process if the disk is full.
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        Path(path).write_bytes(buffer.getbuffer())
    elif kind == "aotinductor":
        program = program.run_decompositions(pooling_decompositions())
        torch._inductor.aoti_compile_and_package(program, package_path=path)
    else:
        table = portable_decompositions() if kind == "onnx" else onnx_decompositions()
        program = program.run_decompositions({**table, **pooling_decompositions()})
        names = [spec.arg.name for spec in program.graph_signature.output_specs]
        outputs = program.call_spec.out_spec.unflatten(names)
        model = torch.onnx.export(program, dynamo=True, verbose=False, output_names=list(outputs))
        model.model.metadata_props[KEY] = json.dumps(metadata)
        model.save(path)
    if kind in ("export", "aotinductor"):
        embed(path, metadata)


def run_apart(
    kind: str, path: str, batches: list[tuple["Tensor", ...]], folder: str
) -> list[list["Tensor"]]:
    """The outputs of the written file in a fresh process."""
    import torch

    inputs, outputs = (os.path.join(folder, name) for name in ("inputs.pt", "outputs.pt"))
    torch.save(batches, inputs)
    runner = Path(find_spec("dcnv4_mm.export").origin).with_name("runner.py")
    command = [
        sys.executable,
        "-c",
        RUN_FILE,
        runner,
        kind,
        path,
        inputs,
        outputs,
        *libraries(kind),
    ]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        stop(f"the exported model does not run: {result.stderr.strip().splitlines()[-1]}")
    return torch.load(outputs, weights_only=True)


def compare(part: "ExportWrapper", args: argparse.Namespace, path: str, folder: str) -> bool:
    """Prints the errors of the written file at three sizes; returns whether all are tolerable.

    Where rounding can change the order of outputs, a quarter of their values may differ by more.
    """
    import torch

    height, width = args.size
    sizes = [(1, height, width), (3, height + 13, width + 37), (2, width, height)]
    generator = torch.Generator().manual_seed(1)
    batches = [part.examples(*shape, generator) for shape in sizes]
    fits = True
    measured = "error of 75 %" if part.ranked else "largest error"
    header = f"{'image':<16} {'shape':<18} {'output':<16}"
    print(f"{header} {'largest value':>14} {measured:>14} {'ratio':>9}")
    for batch, outputs in zip(batches, run_apart(args.format, path, batches, folder), strict=True):
        expected = part(*batch)
        for output, (name, eager) in zip(outputs, expected.items(), strict=True):
            if output.shape != eager.shape:
                stop(f"{name} has the shape {tuple(output.shape)}, not {tuple(eager.shape)}")
            shapes = ["x".join(map(str, tensor.shape)) for tensor in (batch[0], output)]
            row = f"{shapes[0]:<16} {shapes[1]:<18} {name:<16}"
            if not eager.is_floating_point():
                unequal = (output != eager).double().mean().item()
                print(f"{row} {unequal:.2%} of the labels differ")
                fits &= part.ranked or unequal <= LABELS
                continue
            errors, scale = (output - eager).abs(), eager.abs().max().item()
            error = (errors.flatten().quantile(0.75) if part.ranked else errors.max()).item()
            ratio = error / scale if scale else error
            # A NaN must not pass.
            fits &= ratio <= args.tolerance
            print(f"{row} {scale:14.4g} {error:14.2e} {ratio:9.1e}")
    return fits


def main() -> None:
    args = parse_args()
    check(args)
    import torch

    from dcnv4_mm.atomic_files import replacing

    part, metadata = build(args)
    program = trace(part, args.size)
    try:
        with torch.no_grad(), replacing(args.target) as unfinished, _beside(args.target) as folder:
            path = os.path.join(folder, f"model{SUFFIXES[args.format]}")
            write(program, args.format, path, metadata)
            if not compare(part, args, path, folder):
                stop(f"the outputs differ from eager mode by more than {args.tolerance}: not kept")
            os.replace(path, unfinished)
    except OSError as error:
        stop(f"{args.target} cannot be written: {error}")
    print(args.target)


def _beside(target: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder on the file system of a file, which a rename does not leave."""
    prefix = f".{target.name}-"
    return tempfile.TemporaryDirectory(
        dir=target.parent.resolve(), prefix=prefix, ignore_cleanup_errors=True
    )


if __name__ == "__main__":
    with naming_missing():
        main()
