"""Runs an exported model in a process of its own, which knows nothing of dcnv4_mm.

python -P tools/_exported.py FORMAT MODEL IMAGES.pt OUTPUTS.pt [LIBRARY ...]
"""

import sys
from collections.abc import Callable

import torch


def load(kind: str, path: str, libraries: list[str]) -> Callable:
    """A function from images to what the model puts out, a tensor or a sequence of them."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: [
            torch.from_numpy(array) for array in session.run(None, {name: images.numpy()})
        ]
    for library in libraries:
        torch.ops.load_library(library)
    if kind == "aotinductor":
        return torch._inductor.aoti_load_package(path)
    return torch.export.load(path).module()


def main() -> None:
    kind, path, images, outputs, *libraries = sys.argv[1:]
    model = load(kind, path, libraries)
    results = []
    for batch in torch.load(images, weights_only=True):
        with torch.no_grad():
            result = model(batch)
        results.append([result] if isinstance(result, torch.Tensor) else list(result))
    torch.save(results, outputs)
    assert "dcnv4_mm" not in sys.modules


if __name__ == "__main__":
    main()
