"""Generates images of classes with a pipeline of train.py.

    python examples/latent_diffusion/sample.py work_dirs/mine/pipeline --count 8 --out-dir samples

Writes ``<class>/<number>.png`` and a grid of the first of each class. An image depends only on its
class, its number and the seed.
"""

import argparse
from pathlib import Path

import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import make_image_grid
from PIL import Image
from pipeline import ClassConditionalPipeline, load_pipeline
from tqdm.auto import tqdm

# Columns of the grid.
SHOWN = 8


def write_samples(
    pipeline: ClassConditionalPipeline,
    classes: list[str],
    out_dir: Path,
    *,
    count: int,
    batch_size: int = 16,
    seed: int = 0,
    guidance_scale: float = 2.0,
    steps: int = 50,
) -> Path:
    """Generates ``count`` images of each class.

    Args:
        pipeline: The pipeline.
        classes: Names, or labels as strings.
        out_dir: Folder to write to.
        count: Images per class, at least 1.
        batch_size: Images per batch, at least 1.
        seed: Seed of the noise.
        guidance_scale: See the pipeline.
        steps: Number of denoising steps.

    Returns:
        Path of the grid.

    Raises:
        ValueError: A class is unknown, or a number is out of its range.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch size must be at least 1, got {count} and {batch_size}")
    names = list(pipeline.config.class_names)
    labels = pipeline.labels([each if each in names else _number(each) for each in classes])
    wanted = [(label, index) for label in labels for index in range(count)]
    pipeline.set_progress_bar_config(disable=True)
    shown: list[Image.Image] = []
    for start in tqdm(range(0, len(wanted), batch_size)):
        part = wanted[start : start + batch_size]
        output: ImagePipelineOutput = pipeline(
            [label for label, _ in part],
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=[
                torch.Generator().manual_seed((seed << 40) + (label << 24) + index)
                for label, index in part
            ],
        )
        for (label, index), image in zip(part, output.images, strict=True):
            name = names[label] if names else str(label)
            _save(image, out_dir / name / f"{index:06d}.png")
            if index < SHOWN:
                shown.append(image)
    grid = make_image_grid(shown, rows=len(labels), cols=min(count, SHOWN))
    return _save(grid, out_dir / "grid.png")


def _number(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    image.save(partial, format="png")
    return partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate images of classes.")
    parser.add_argument("pipeline", type=Path, help="the folder that train.py has saved")
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--classes", nargs="+", help="names or labels; default: all")
    parser.add_argument("--count", type=int, default=8, help="images per class")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="1: none")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        pipeline = load_pipeline(args.pipeline).to(args.device)
        count = pipeline.unet.config.num_class_embeds - 1
        grid = write_samples(
            pipeline,
            args.classes or [str(label) for label in range(count)],
            args.out_dir,
            count=args.count,
            batch_size=args.batch_size,
            seed=args.seed,
            guidance_scale=args.guidance_scale,
            steps=args.steps,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"the images are in {args.out_dir}, a grid in {grid}")


if __name__ == "__main__":
    main()
