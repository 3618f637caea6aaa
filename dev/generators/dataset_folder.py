"""Common parts of the dataset generators: sizes, atomic writing, the command line."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dcnv4_mm.atomic_files import replacing


def write_folder(out_dir: str | Path, settings: dict, write: Callable[[Path], None]) -> bool:
    """Writes a folder atomically, or keeps a finished one.

    Args:
        out_dir: The folder to make.
        settings: The settings of the dataset with its ``name``, stored in ``<name>.json``.
        write: Fills the folder that it is given.

    Returns:
        True if the dataset was written, False if it was there already.

    Raises:
        ValueError: The folder holds something else.
        OSError: The folder cannot be written.
    """
    out_dir, stamp = Path(out_dir), f"{settings['name']}.json"
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        path = out_dir / stamp
        found = json.loads(path.read_text()) if path.is_file() else f"no {settings['name']} dataset"
        if found != settings:
            raise ValueError(
                f"{out_dir} holds {found}, requested was {settings}: give another folder, or "
                "remove this one first"
            )
        return False
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out_dir) as unfinished:
        unfinished.mkdir()
        write(unfinished)
        (unfinished / stamp).write_text(json.dumps(settings))
    return True


@dataclass(frozen=True, kw_only=True)
class GeneratedDataset:
    """A dataset of generated images, with a training and a validation split.

    Attributes:
        name: Name of the dataset and of its script.
        format: Version of the content; counts up when the same settings give other images.
        write_split: Function of the folder, the index of the split, the seed and the number of
            images; writes the split and yields after each image.
        num_train: Default number of training images.
        num_val: Default number of held-out images.
        least: Smallest number of either.
        unit: What the numbers count.
        splits: Names of the two splits in the stored settings.
        flags: Further options without a value -> their help, and a function that changes the
            written folder.
    """

    name: str
    format: int
    write_split: Callable[[Path, int, int, int], Iterator[None]]
    num_train: int
    num_val: int
    least: int = 2
    unit: str = "images"
    splits: tuple[str, str] = ("train", "val")
    flags: Mapping[str, tuple[str, Callable[[Path], None]]] = field(default_factory=dict)

    def generate(
        self,
        out_dir: str | Path,
        *,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
        **flags: bool,
    ) -> bool:
        """Writes the dataset atomically, or keeps a finished one; see :func:`write_folder`.

        Args:
            out_dir: Folder to make.
            seed: Determines every image; the two splits share none.
            num_train: Number of training images.
            num_val: Number of held-out images.
            flags: Which of the dataset's flags are set.
        """
        counts = tuple(
            default if count is None else count
            for count, default in ((num_train, self.num_train), (num_val, self.num_val))
        )
        if min(counts) < self.least:
            wanted = f"{self.name}: expected at least {self.least} {self.unit} in each split"
            raise ValueError(f"{wanted}, got {counts[0]} and {counts[1]}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        chosen = [name for name, on in flags.items() if on]
        settings = {"name": self.name, "format": self.format, "seed": seed}
        settings |= dict(zip(self.splits, counts, strict=True)) | dict.fromkeys(chosen, True)

        def write(folder: Path) -> None:
            for split, count in enumerate(counts):
                progress = f"\r{self.name}: {self.splits[split]} {{}}"
                for done, _ in enumerate(self.write_split(folder, split, seed, count), 1):
                    if sys.stderr.isatty():
                        print(progress.format(done), end="", file=sys.stderr, flush=True)
            if sys.stderr.isatty():
                print(file=sys.stderr)
            for name in chosen:
                self.flags[name][1](folder)

        return write_folder(out_dir, settings, write)

    def main(self, description: str) -> int:
        """Runs the command line; returns the exit status."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("out_dir", type=Path, help=f"folder to make, e.g. data/{self.name}")
        parser.add_argument("--seed", type=int, default=0)
        for option, default in (("--num-train", self.num_train), ("--num-val", self.num_val)):
            parser.add_argument(option, type=int, default=default, help=self.unit)
        for name, (text, _) in self.flags.items():
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
        return run_generator(self.name, self.generate, vars(parser.parse_args()))


def run_generator(name: str, generate: Callable[..., bool], options: dict[str, Any]) -> int:
    """Calls ``generate(**options)`` and prints the result; returns the exit status."""
    try:
        written = generate(**options)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"{name}.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{'wrote' if written else 'kept the finished dataset in'} {options['out_dir']}")
    return 0


def random_generator(seed: int, split: int, *index: int) -> np.random.Generator:
    """The random numbers of one image."""
    return np.random.Generator(np.random.PCG64([seed, split, *index]))


def write_image(path: Path, image: np.ndarray, *options: int) -> None:
    """Writes an image, uint8 (H, W, 3) in OpenCV's channel order; raises ``OSError``."""
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f"cannot write {path}")


def class_folders(
    classes: tuple[str, ...],
    draw_image: Callable[[str, np.random.Generator], np.ndarray],
    suffix: str,
) -> Callable[[Path, int, int, int], Iterator[None]]:
    """Returns a ``write_split`` for files ``<split>/<class>/<class>_<number>``.

    Args:
        classes: Names of the classes.
        draw_image: Draws an image of a class, uint8 (H, W, 3) in OpenCV's channel order.
        suffix: Suffix of the files, such as ``.png``.
    """

    def write_split(folder: Path, split: int, seed: int, count: int) -> Iterator[None]:
        for label, name in enumerate(classes):
            target = folder / ("train", "val")[split] / name
            target.mkdir(parents=True)
            for index in range(count):
                image = draw_image(name, random_generator(seed, split, label, index))
                write_image(target / f"{name}_{index + 1:05d}{suffix}", image)
                yield

    return write_split
