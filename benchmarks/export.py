"""One picture through FlashInternImage on the CPU: eager mode, compiled, and exported.

    python benchmarks/export.py                            # T, 1 x 3 x 224 x 224, 1 thread
    python benchmarks/export.py --arch nano --size 64 64 --seconds 2

Ratios are what counts: all contenders run by turns in one process. Stop other work first.
onnxruntime runs the operators as standard ones, and as our nodes where it was built with them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import RESULTS, Record, interleaved, ratio
from torch import Tensor, nn

from dcnv4_mm.backbones import ARCHS, FlashInternImage
from dcnv4_mm.ops.functional import backend_info
from dcnv4_mm.ops.onnx import custom_ops_library, onnx_decompositions
from dcnv4_mm.ops.portable import portable_decompositions


def make_classifier(arch: str) -> nn.Module:
    """A classifier whose offsets and masks, zero in a fresh one, depend on the picture."""
    torch.manual_seed(0)
    model = FlashInternImage(arch, num_classes=1000).eval()
    for name, parameter in model.named_parameters():
        if "offset_mask" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def exported(model: nn.Module, image: Tensor, folder: str, threads: int) -> dict[str, Callable]:
    """The model for pictures of one size in each format that runs here, as functions of nothing."""
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


def run(record: Record, arch: str, size: list[int], threads: int, seconds: float) -> None:
    """Measures the forward in float32."""
    # Inductor writes the number of threads into its code.
    torch.set_num_threads(threads)
    model, image = make_classifier(arch), torch.randn(1, 3, *size)
    compiled = torch.compile(model, fullgraph=True)
    row = dict(benchmark="export", measured="forward", dtype="float32", threads=threads)
    row["case"] = f"{arch} 1x3x{size[0]}x{size[1]}"
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        contenders = {
            "eager": lambda: model(image),
            "torch.compile": lambda: compiled(image),
            **exported(model, image, folder, threads),
        }
        expected = model(image)
        for contender in contenders.values():
            scale = expected.abs().max().item()
            torch.testing.assert_close(contender(), expected, rtol=0, atol=1e-3 * scale)
        times = interleaved(contenders, seconds=seconds, threads=dict.fromkeys(contenders, threads))
        for name, taken in times.items():
            record.add(**row, contender=name, times=taken, ratio=ratio(times["eager"], taken))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=sorted(ARCHS), default="t")
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for all together")
    parser.add_argument("--out", type=Path, default=RESULTS / "export", help="folder for the CSV")
    arguments = parser.parse_args()
    record = Record(kernels=backend_info()["dcnv4"]["cpu"])
    run(record, arguments.arch, arguments.size, arguments.threads, arguments.seconds)
    print(f"saved {record.save(arguments.out)}")


if __name__ == "__main__":
    main()
