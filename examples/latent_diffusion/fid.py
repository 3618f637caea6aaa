"""Fréchet Inception distance between samples and real images, by torch-fidelity.

    python examples/latent_diffusion/fid.py samples data/imagenet/val --size 256

The Inception network of the first TensorFlow release, whose FIDs papers compare, is downloaded
once (96 MB). A FID is comparable only with others of as many samples; 50,000 are usual.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from data import SUFFIXES, to_square
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3


class AllImages(Dataset[Tensor]):
    """All images below a folder, uint8 (3, size, size).

    Raises:
        ValueError: There are fewer than two.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        # The grid of sample.py is not a sample.
        self.paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.name != "grid.png"
        )
        if len(self.paths) < 2:
            raise ValueError(f"{folder} must hold at least two images, got {len(self.paths)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            pixels = np.array(to_square(image.convert("RGB"), self.size))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def check_weights(path: Path | None) -> None:
    """Checks that the Inception network can be read and holds only tensors.

    torch-fidelity itself would unpickle anything.

    Raises:
        ValueError: It can be neither read nor downloaded.
    """
    try:
        if path is not None:
            torch.load(path, weights_only=True, map_location="cpu")
        else:
            torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True
            )
    except Exception as error:
        where = path or URL_INCEPTION_V3
        raise ValueError(
            f"the Inception network cannot be read from {where}: {error}; download "
            f"{URL_INCEPTION_V3} on another machine, and give the file as --weights"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Fréchet Inception distance of two folders.")
    parser.add_argument("samples", type=Path, help="folder of generated images")
    parser.add_argument("reference", type=Path, help="folder of real images")
    parser.add_argument("--size", type=int, required=True, help="side to which all are cropped")
    parser.add_argument("--weights", type=Path, help="file of the Inception network")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    try:
        inputs = [AllImages(folder, args.size) for folder in (args.samples, args.reference)]
        check_weights(args.weights)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    found = calculate_metrics(
        input1=inputs[0],
        input2=inputs[1],
        fid=True,
        cuda=torch.cuda.is_available(),
        batch_size=args.batch_size,
        feature_extractor_weights_path=args.weights and str(args.weights),
        save_cpu_ram=True,
        verbose=False,
    )
    print(
        f"FID {found['frechet_inception_distance']:.4g} of {len(inputs[0])} samples against "
        f"{len(inputs[1])} images"
    )


if __name__ == "__main__":
    main()
