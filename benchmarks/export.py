"""One picture through FlashInternImage: eager mode, torch.compile and onnxruntime on the CPU.

    python benchmarks/export.py                            # T, 1 x 3 x 224 x 224, 1 and 2 threads
    python benchmarks/export.py --arch nano --size 64 64 --threads 1 --seconds 2

Ratios are what counts: all contenders run by turns in one process. Stop other work first.
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
from dcnv4_mm.ops.portable import portable_decompositions


def make_classifier(arch: str) -> nn.Module:
    """A classifier whose offsets and masks, zero in a fresh one, depend on the picture."""
    torch.manual_seed(0)
    model = FlashInternImage(arch, num_classes=1000).eval()
    for name, parameter in model.named_parameters():
        if "offset_mask" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def write_onnx(model: nn.Module, image: Tensor, path: str) -> None:
    """Writes the model by standard operators, for pictures of one size."""
    program = torch.export.export(model, (image,)).run_decompositions(portable_decompositions())
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)


def onnx_session(path: str, image: Tensor, threads: int) -> Callable[[], list]:
    """A function that runs the written model on the image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def run(record: Record, arch: str, size: list[int], threads: list[int], seconds: float) -> None:
    """Measures the forward in float32."""
    model, image = make_classifier(arch), torch.randn(1, 3, *size)
    compiled = torch.compile(model, fullgraph=True)
    row = dict(benchmark="export", measured="forward", dtype="float32")
    row["case"] = f"{arch} 1x3x{size[0]}x{size[1]}"
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model.onnx"))
        write_onnx(model, image, path)
        for count in threads:
            contenders = {
                "eager": lambda: model(image),
                "torch.compile": lambda: compiled(image),
                "onnxruntime": onnx_session(path, image, count),
            }
            expected = model(image)
            for output in (compiled(image), torch.from_numpy(contenders["onnxruntime"]()[0])):
                scale = expected.abs().max().item()
                torch.testing.assert_close(output, expected, rtol=0, atol=1e-3 * scale)
            times = interleaved(
                contenders, seconds=seconds, threads=dict.fromkeys(contenders, count)
            )
            for name, taken in times.items():
                faster = ratio(times["eager"], taken)
                record.add(**row, threads=count, contender=name, times=taken, ratio=faster)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=sorted(ARCHS), default="t")
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of threads")
    parser.add_argument("--out", type=Path, default=RESULTS / "export", help="folder for the CSV")
    arguments = parser.parse_args()
    record = Record(kernels=backend_info()["dcnv4"]["cpu"])
    run(record, arguments.arch, arguments.size, arguments.threads, arguments.seconds)
    print(f"saved {record.save(arguments.out)}")


if __name__ == "__main__":
    main()
