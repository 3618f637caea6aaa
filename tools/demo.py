"""Paints what a model sees into pictures.

python tools/demo.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out-dir DIR
"""

import argparse
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

from _running import stop

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Paint predictions into pictures.")
    parser.add_argument("input", type=Path, help="a picture, or a folder of pictures")
    parser.add_argument("config", type=Path, help="config file")
    parser.add_argument("checkpoint", type=Path, help="checkpoint file")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score shown, default 0.3")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser.parse_args()


def pictures(path: Path) -> list[Path]:
    """The picture, or those of a folder in order of their names."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        return found or stop(f"no pictures in {path} ({', '.join(sorted(SUFFIXES))})")
    return [path] if path.is_file() else stop(f"{path} does not exist")


def detect(args: argparse.Namespace, images: list[Path]) -> list[Path]:
    """Paints boxes and masks with the detection host's inferencer."""
    from mmdet.apis import DetInferencer

    from dcnv4_mm.checkpoints import load_released
    from dcnv4_mm.checkpoints.files import read_file

    try:
        checkpoint = read_file(args.checkpoint)
        with warnings.catch_warnings():
            # The inferencer would load what fits and be silent about the rest: load here instead.
            warnings.filterwarnings("ignore", message="Checkpoint is not loaded|weights is None")
            inferencer = DetInferencer(str(args.config), device=args.device, show_progress=False)
        load_released(inferencer.model, checkpoint)
    except ValueError as error:
        stop(f"{args.checkpoint}: {error}")
    if meta := checkpoint.get("meta", {}).get("dataset_meta"):
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta = meta
    inferencer([str(p) for p in images], out_dir=str(args.out_dir), pred_score_thr=args.score)
    return [args.out_dir / "vis" / p.name for p in images]


# One entry for each host that this tool can paint with.
PAINTERS = {"mmdet": detect}


def main() -> None:
    args = parse_args()
    images = pictures(args.input)
    for path in (args.config, args.checkpoint):
        if not path.is_file():
            stop(f"{path} does not exist")
    from mmengine.config import Config

    cfg = Config.fromfile(args.config)
    host = cfg.get("default_scope", "mmdet")
    if host not in PAINTERS:
        stop(f"no demo for configs of {host} yet; there is one for {', '.join(PAINTERS)}")
    if find_spec(host) is None:
        stop(f"{host} is not installed; python -m dcnv4_mm.env says what to install")
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"cannot write to {args.out_dir}: {error.strerror}; give another --out-dir")
    logging.getLogger("mmengine").setLevel(logging.WARNING)
    for path in PAINTERS[host](args, images):
        print(path)


if __name__ == "__main__":
    main()
