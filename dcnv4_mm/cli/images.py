"""Images that a command is given."""

from collections.abc import Sequence
from pathlib import Path

from dcnv4_mm.cli.configs import stop

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(path: Path) -> list[Path]:
    """The image, or the sorted images of a folder; stops if there are none."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        return found or stop(f"no images in {path} ({', '.join(sorted(SUFFIXES))})")
    return [path] if path.is_file() else stop(f"{path} does not exist")


def check_results(images: Sequence[Path], folder: Path) -> None:
    """Stops if results, which have the names of their images, would replace these."""
    if any(image.parent.resolve() == folder.resolve() for image in images):
        stop(f"the results in {folder} would replace the images there: give another --out-dir")
