"""Runs an exported model in a separate process, without dcnv4_mm.

python runner.py FORMAT MODEL INPUTS.pt OUTPUTS.pt [LIBRARY ...]
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import torch


def load(kind: str, path: str, libraries: list[str]) -> Callable:
    """Loads a model as a function from input tensors to one or several output tensors."""
    if kind.startswith("onnx"):
        return load_onnx(path, libraries)
    for library in libraries:
        torch.ops.load_library(library)
    # Defines nms and roi_align, which two-stage detectors use.
    with suppress(ImportError):
        import_module("torchvision")
    if kind == "aotinductor":
        return torch._inductor.aoti_load_package(path)
    return torch.export.load(path).module()


def load_onnx(path: str, libraries: list[str]) -> Callable:
    """Loads an ONNX file, with the libraries of its custom operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for library in libraries:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def main() -> None:
    kind, path, batches, outputs, *libraries = sys.argv[1:]
    model = load(kind, path, libraries)
    results = []
    for inputs in torch.load(batches, weights_only=True):
        with torch.no_grad():
            result = model(*inputs)
        results.append(list(result.values()) if isinstance(result, dict) else list(result))
    torch.save(results, outputs)
    assert "dcnv4_mm" not in sys.modules


if __name__ == "__main__":
    main()
