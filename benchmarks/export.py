"""One picture through FlashInternImage on the CPU: eager mode, compiled, and exported.

    python benchmarks/export.py                            # nano and T, 1 x 3 x 224 x 224
    python benchmarks/export.py --arch nano --size 64 64 --seconds 2

Ratios are what counts: all contenders run by turns in one process. Stop other work first.
onnxruntime runs the operators as standard ones, and as our nodes where it was built with them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from cases import OFFSET_DEVIATION
from layers import POINTS
from measure import RESULTS, Record, interleaved, ratio
from torch import Tensor, nn

from dcnv4_mm.backbones import ARCHS, FlashInternImage
from dcnv4_mm.export.onnx import custom_ops_library, onnx_decompositions
from dcnv4_mm.export.portable import portable_decompositions
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import offset_rows
from dcnv4_mm.ops.functional import backend_info


def make_classifier(arch: str) -> nn.Module:
    """A classifier with offsets that spread by two pixels, as after training.

    They hang on the picture by little: if by much, a deep network with random weights would turn
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
    parser.add_argument("--arch", nargs="+", choices=sorted(ARCHS), default=["nano", "t"])
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for all together")
    parser.add_argument("--out", type=Path, default=RESULTS / "export", help="folder for the CSV")
    arguments = parser.parse_args()
    record = Record(kernels=backend_info()["dcnv4"]["cpu"])
    for arch in arguments.arch:
        run(record, arch, arguments.size, arguments.threads, arguments.seconds)
    print(f"saved {record.save(arguments.out)}")


if __name__ == "__main__":
    main()
