"""Writes a trained model as a file that runs without this package, and checks what it puts out.

    python tools/export.py CONFIG CHECKPOINT MODEL.pt2  --format export
    python tools/export.py CONFIG CHECKPOINT MODEL.pt2  --format aotinductor
    python tools/export.py CONFIG CHECKPOINT MODEL.onnx --format onnx

Batch and image size of the file are free. A process of its own runs it on images of three sizes;
the file is kept only if every output equals eager mode's. docs/export.md says what works.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from _running import check_checkpoint, load_config, stop

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = {"export": ".pt2", "aotinductor": ".pt2", "onnx": ".onnx"}
RUNNER = Path(__file__).with_name("_exported.py")


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
        help="images that the graph is recorded with, at least 64; default 256 320",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest error allowed, relative to the output's largest number; default 1e-3",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as for train.py"
    )
    parser.set_defaults(launcher="none", local_rank=0, work_dir=None)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Stops if what was asked for cannot end well."""
    suffix = SUFFIXES[args.format]
    if args.target.suffix != suffix:
        stop(f"a file of the format {args.format} ends in {suffix}, got {args.target}")
    if not args.target.parent.is_dir():
        stop(f"the folder {args.target.parent} does not exist")
    if min(args.size) < 64:
        stop(f"--size must be at least 64 x 64, got {args.size[0]} x {args.size[1]}")
    if args.format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(name) is None:
                stop(f"--format onnx needs {name}: pip install onnx onnxscript onnxruntime")
    elif missing := [path.name for path in libraries() if not path.exists()]:
        stop(f"{', '.join(missing)} is not part of this installation; docs/install.md builds it")
    check_checkpoint(args.checkpoint)


def libraries() -> list[Path]:
    """What a process without the package needs: the operators' schemas, and CPU kernels."""
    folder = Path(find_spec("dcnv4_mm").origin).parent / "lib"
    return [folder / f"libdcnv4_mm_{name}.so" for name in ("schemas", "cpu")]


def parts() -> dict[str, Callable]:
    """What is exported of a model, by its host: a function of the model and of images."""

    def classify(model: "nn.Module", images: "Tensor"):
        return model(images, mode="tensor")

    def detect(model: "nn.Module", images: "Tensor"):
        return model.extract_feat(images)

    def segment(model: "nn.Module", images: "Tensor"):
        maps = model.extract_feat(images)
        # Mask2Former's head reads sizes from tensors, which no graph can hold.
        return maps if hasattr(model.decode_head, "pixel_decoder") else model.decode_head(maps)

    return {"mmpretrain": classify, "mmdet": detect, "mmseg": segment}


def build(args: argparse.Namespace) -> "nn.Module":
    """The part of the model that is exported, with the checkpoint's weights."""
    import torch
    from mmengine.registry import MODELS, init_default_scope

    from dcnv4_mm.checkpoints import load_released
    from dcnv4_mm.checkpoints.files import read_file

    cfg = load_config(args)
    host = cfg.get("default_scope", "mmdet")
    if host not in parts():
        stop(f"no export of models of {host}; there is one for {', '.join(parts())}")
    init_default_scope(host)

    class Part(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: "Tensor"):
            return parts()[host](self.model, images)

    try:
        model = MODELS.build(cfg.model)
        load_released(model, read_file(args.checkpoint))
    except (ValueError, OSError) as error:
        stop(f"{args.checkpoint}: {error}")
    return Part(model).eval()


def write(model: "nn.Module", size: Sequence[int], kind: str, path: str) -> None:
    """Records the graph with free batch and image size, and writes it in the format ``kind``."""
    import torch

    from dcnv4_mm.ops.portable import portable_decompositions

    free = torch.export.Dim.DYNAMIC
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(model, (images,), dynamic_shapes=({0: free, 2: free, 3: free},))
    if kind == "export":
        torch.export.save(program, path)
    elif kind == "aotinductor":
        torch._inductor.aoti_compile_and_package(program, package_path=path)
    else:
        program = program.run_decompositions(portable_decompositions())
        torch.onnx.export(program, dynamo=True, verbose=False).save(path)


def run_apart(kind: str, path: str, batches: list["Tensor"], folder: str) -> list[list["Tensor"]]:
    """What the written file puts out, in a fresh process."""
    import torch

    images, outputs = (os.path.join(folder, name) for name in ("images.pt", "outputs.pt"))
    torch.save(batches, images)
    command = [sys.executable, "-P", RUNNER, kind, path, images, outputs]
    result = subprocess.run([*command, *libraries()], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        stop(f"the exported model does not run: {result.stderr.strip().splitlines()[-1]}")
    return torch.load(outputs, weights_only=True)


def compare(model: "nn.Module", args: argparse.Namespace, path: str, folder: str) -> bool:
    """Prints the errors of the written file at three sizes; whether all are within tolerance."""
    import torch

    height, width = args.size
    sizes = [(1, height, width), (3, height + 13, width + 37), (2, width, height)]
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(n, 3, h, w, generator=generator) for n, h, w in sizes]
    worst = 0.0
    print(
        f"{'images':<16} {'output':<22} {'largest number':>14} {'largest error':>14} {'ratio':>9}"
    )
    for batch, outputs in zip(batches, run_apart(args.format, path, batches, folder), strict=True):
        expected = model(batch)
        expected = [expected] if isinstance(expected, torch.Tensor) else expected
        for output, eager in zip(outputs, expected, strict=True):
            scale, error = eager.abs().max().item(), (output - eager).abs().max().item()
            ratio = error / scale if scale else error
            # A NaN must not pass.
            worst = ratio if not ratio <= worst else worst
            shapes = ["x".join(map(str, tensor.shape)) for tensor in (batch, output)]
            print(f"{shapes[0]:<16} {shapes[1]:<22} {scale:14.4g} {error:14.2e} {ratio:9.1e}")
    return worst <= args.tolerance


def main() -> None:
    args = parse_args()
    check(args)
    import torch

    model = build(args)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=args.target.parent.resolve()) as folder:
        path = os.path.join(folder, f"model{SUFFIXES[args.format]}")
        write(model, args.size, args.format, path)
        if not compare(model, args, path, folder):
            stop(f"an output is further from eager mode's than {args.tolerance}: nothing is kept")
        os.replace(path, args.target)
    print(args.target)


if __name__ == "__main__":
    main()
