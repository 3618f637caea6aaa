"""A generated set with a folder of pictures per class: what mini ImageNet and mini shapes share."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from dataset_folder import write_whole

SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """A set of drawn pictures.

    Attributes:
        name: Of the set.
        format: Counts up when other pictures come of the same settings.
        classes: Their names, and their folders'.
        draw_image: Makes a picture of a class: uint8 (H, W, 3) in OpenCV's channel order.
        suffix: Of the files, ``.png`` for one.
        num_train: Pictures of each class to train on, unless asked otherwise.
        num_val: Held-out pictures of each class, unless asked otherwise.
    """

    name: str
    format: int
    classes: tuple[str, ...]
    draw_image: Callable[[str, np.random.Generator], np.ndarray]
    suffix: str
    num_train: int
    num_val: int

    def generate(
        self,
        out_dir: str | Path,
        *,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
    ) -> bool:
        """Writes the set to ``out_dir``, or keeps a finished one.

        The folder appears under its name only when it is complete.

        Args:
            out_dir: Folder to make: ``train/<class>/<class>_<number>``, and ``val`` alike.
            seed: Fixes every picture; the two splits share none.
            num_train: Pictures of each class to train on, at least 1.
            num_val: Held-out pictures of each class, at least 1.

        Returns:
            True if the set was written, False if it was there already.

        Raises:
            ValueError: Too few pictures, or the folder holds something else.
            OSError: The folder cannot be written.
        """
        num_train = self.num_train if num_train is None else num_train
        num_val = self.num_val if num_val is None else num_val
        if min(num_train, num_val) < 1:
            raise ValueError(f"each class needs at least 1 picture, got {num_train} and {num_val}")
        if seed < 0:
            raise ValueError(f"the seed must not be negative, got {seed}")
        settings = {"name": self.name, "format": self.format, "seed": seed}
        settings |= {"train": num_train, "val": num_val}

        def write(folder: Path) -> None:
            for split in SPLITS:
                self._write_split(folder, split, seed, settings[split])

        return write_whole(out_dir, settings, write)

    def _write_split(self, folder: Path, split: str, seed: int, count: int) -> None:
        for label, name in enumerate(self.classes):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                key = [seed, SPLITS.index(split), label, index]
                rng = np.random.Generator(np.random.PCG64(key))
                path = folder / split / name / f"{name}_{index + 1:05d}{self.suffix}"
                done, content = cv2.imencode(self.suffix, self.draw_image(name, rng))
                if not done:
                    raise OSError(f"cannot encode {path.name}")
                path.write_bytes(content)

    def main(self, description: str) -> int:
        """The command line; gives the exit status."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("out_dir", type=Path, help=f"folder to make, e.g. data/{self.name}")
        parser.add_argument("--seed", type=int, default=0)
        for option, default, kind in (
            ("--num-train", self.num_train, "pictures"),
            ("--num-val", self.num_val, "held-out pictures"),
        ):
            parser.add_argument(option, type=int, default=default, help=f"{kind} of each class")
        args = parser.parse_args()
        sizes = {"num_train": args.num_train, "num_val": args.num_val}
        try:
            written = self.generate(args.out_dir, seed=args.seed, **sizes)
        except (ValueError, OSError) as error:
            print(f"{self.name}.py: error: {error}", file=sys.stderr)
            return 1
        what = "wrote" if written else "kept the finished set in"
        print(
            f"{what} {args.out_dir}: {len(self.classes)} classes, {args.num_train} training and "
            f"{args.num_val} held-out pictures of each"
        )
        return 0
