"""Encodes images to the latents of a VAE, as training data for train.py.

    python examples/latent_diffusion/encode.py data/imagenet/train --out-dir data/latents

Writes ``<number>.safetensors`` with ``latents`` [N, C, H, W] (float16, scaled to unit variance) and
``labels`` [N].
"""

import argparse
from pathlib import Path

import torch
from data import ImageFolder
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm


@torch.inference_mode()
def encode(
    dataset: ImageFolder,
    vae: AutoencoderKL,
    out_dir: Path,
    *,
    batch_size: int,
    per_file: int,
    workers: int = 0,
) -> None:
    """Writes the latents of all images; existing files are kept.

    Args:
        dataset: The images.
        vae: The encoder; latents are sampled from its distribution.
        out_dir: Folder to write to.
        batch_size: Images per batch.
        per_file: Images per file.
        workers: Data-loading processes.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    # Shuffled, so that every file has all classes.
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    for start in tqdm(range(0, len(order), per_file)):
        path = out_dir / f"{start // per_file:05d}.safetensors"
        if path.exists():
            continue
        part = Subset(dataset, order[start : start + per_file])
        found, labels = [], []
        for images, classes in DataLoader(part, batch_size, num_workers=workers):
            latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.sample()
            found.append((latents * vae.config.scaling_factor).half().cpu())
            labels.append(classes)
        partial = path.with_suffix(".part")
        save_file(
            {"latents": torch.cat(found).contiguous(), "labels": torch.cat(labels)},
            partial,
            metadata={"classes": "\n".join(dataset.classes)},
        )
        partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode images to latents.")
    parser.add_argument("data", type=Path, help="a folder of images for each class")
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--vae", default="stabilityai/sd-vae-ft-ema", help="name or folder")
    parser.add_argument("--size", type=int, default=256, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--per-file", type=int, default=10000, help="images per file")
    parser.add_argument("--workers", type=int, default=4, help="data-loading processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        if min(args.size, args.batch_size, args.per_file) < 1:
            raise ValueError("--size, --batch-size and --per-file must be at least 1")
        dataset = ImageFolder(args.data, args.size)
        vae = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True).to(args.device).eval()
        encode(
            dataset,
            vae,
            args.out_dir,
            batch_size=args.batch_size,
            per_file=args.per_file,
            workers=args.workers,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{args.out_dir} holds the latents of {len(dataset)} images")


if __name__ == "__main__":
    main()
