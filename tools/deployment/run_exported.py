"""Runs an exported model on images, and draws the results.

    python tools/deployment/run_exported.py MODEL.onnx IMAGE_OR_FOLDER --out-dir DIR
    python tools/deployment/run_exported.py MODEL.pt2  IMAGE_OR_FOLDER --out-dir DIR

The file tells how images are prepared and what the classes are called (docs/export.md). A .pt2 file
is a program: run only files that you trust.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np

from dcnv4_mm.cli.checks import make_folder
from dcnv4_mm.cli.configs import stop
from dcnv4_mm.cli.images import check_results, find_images

TASKS = ("classification", "detection", "segmentation")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run an exported model on images.")
    parser.add_argument("model", type=Path, help="a file of export.py")
    parser.add_argument("input", type=Path, help="an image, or a folder of images")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score shown, default 0.3")
    return parser.parse_args()


def load(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The program in a file, as a function from an input to outputs by name."""
    if path.suffix == ".onnx":
        return load_onnx(path)
    import torch

    # Defines the operators, with this package's kernels.
    import dcnv4_mm.ops.functional  # noqa: F401
    from dcnv4_mm.export.metadata import is_aotinductor

    # Defines nms and roi_align, which two-stage detectors use.
    with suppress(ImportError):
        import_module("torchvision")
    if is_aotinductor(path):
        program = torch._inductor.aoti_load_package(str(path))
    else:
        program = torch.export.load(path).module()

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = program(torch.from_numpy(image))
        return {name: output.numpy() for name, output in outputs.items()}

    return run


def load_onnx(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """An ONNX file, with our custom operators where there is their library."""
    import onnxruntime

    from dcnv4_mm.export.onnx import custom_ops_library

    options = onnxruntime.SessionOptions()
    if custom_ops_library().exists():
        options.register_custom_ops_library(str(custom_ops_library()))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {"image": image}), strict=True))

    return run


def draw(image: np.ndarray, outputs: dict, metadata: dict, score: float) -> tuple[np.ndarray, str]:
    """The image with the results in it, and a line of text about them."""
    import cv2

    from dcnv4_mm.cli.overlay import colors, draw_boxes, draw_masks, overlay
    from dcnv4_mm.export.metadata import paste_masks, resize

    names = metadata["classes"]
    if metadata["task"] == "classification":
        logits = outputs["logits"][0].astype(np.float64)
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        best = scores.argsort()[::-1][:5]
        named = [f"{names[i] if names else i} {scores[i]:.2f}" for i in best]
        where = (8, 20)
        for thickness, color in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            cv2.putText(image, named[0], where, cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, thickness)
        return image, ", ".join(named)
    height, width = image.shape[:2]
    # What padding has added is no part of the image.
    inner = resize(image, metadata["resize"]).shape[:2]
    if metadata["task"] == "segmentation":
        labels = outputs["segmentation"][0, : inner[0], : inner[1]].astype(np.uint16)
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        count = len(names) if names else int(labels.max()) + 1
        names = names or [str(i) for i in range(count)]
        return overlay(image, labels, names, metadata["palette"] or colors(count)), ""
    # The score is 0 where there is no box.
    keep = (outputs["scores"][0] >= score) & (outputs["scores"][0] > 0)
    scale = np.array([width / inner[1], height / inner[0]] * 2, np.float32)
    boxes, labels = outputs["boxes"][0][keep] * scale, outputs["labels"][0][keep]
    if "masks" in outputs:
        masks = paste_masks(outputs["masks"][0][keep], boxes, (height, width))
        image = draw_masks(image, masks, labels, names)
    drawn = draw_boxes(image, boxes, outputs["scores"][0][keep], labels, names)
    return drawn, f"{len(boxes)} objects"


def main() -> None:
    args = parse_args()
    images = find_images(args.input)
    check_results(images, args.out_dir)
    if not args.model.is_file():
        stop(f"the model {args.model} does not exist")
    from dcnv4_mm.export.metadata import prepare, read_metadata

    try:
        metadata = read_metadata(args.model)
        if metadata["task"] not in TASKS:
            stop(
                f"{args.model} outputs {metadata['task']}, which this tool does not draw; "
                "docs/export.md has an example"
            )
        make_folder(args.out_dir, "--out-dir")
        program = load(args.model)
    except ImportError as error:
        stop(f"{args.model} needs a library that is missing: {error}; pip install onnx onnxruntime")
    # The file is not ours: its program can be damaged in any way.
    except Exception as error:
        stop(f"{args.model} cannot be loaded: {str(error).splitlines()[0]}")
    import cv2

    for path in images:
        image = cv2.imread(str(path))
        if image is None:
            stop(f"{path} is damaged or not an image")
        try:
            outputs = program(prepare(image, metadata))
            drawn, text = draw(image, outputs, metadata, args.score)
        except Exception as error:
            stop(f"{args.model} on {path}: {type(error).__name__}: {str(error).splitlines()[0]}")
        target = args.out_dir / path.name
        cv2.imwrite(str(target), drawn)
        print(f"{target}: {text}" if text else target)


if __name__ == "__main__":
    main()
