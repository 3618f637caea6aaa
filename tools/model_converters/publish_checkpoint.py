"""Strips a training checkpoint for publication: only weights and class names remain.

    python tools/model_converters/publish_checkpoint.py work_dirs/x/epoch_12.pth x.pth

The target gets eight digits of its SHA-256 added to its name, x-1a2b3c4d.pth, by which torch and
mmengine check a download; the full checksum is printed.
"""

import argparse
from pathlib import Path

from convert import select_weights, write

from dcnv4_mm.cli.configs import stop


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Strip a training checkpoint for publication.")
    parser.add_argument("source", type=Path, help="training checkpoint")
    parser.add_argument("target", type=Path, help="file to write, -CHECKSUM added to its name")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from dcnv4_mm.checkpoints.bevformerv2 import convert_released_boxes
    from dcnv4_mm.checkpoints.files import naming_file, read_file

    try:
        with naming_file(args.source):
            checkpoint = convert_released_boxes(read_file(args.source))
            # Where weights are averaged, mmengine saves the averages under this name.
            _, weights = select_weights(checkpoint, "state_dict")
        meta = checkpoint.get("meta")
        names = (meta.get("dataset_meta") or {}) if isinstance(meta, dict) else {}
        meta = {"dataset_meta": {k: names[k] for k in ("classes", "palette") if k in names}}
        # Shared memory would bring along what a slice was cut from.
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        path, checksum, size = write({"meta": meta, "state_dict": weights}, args.target)
    except (ValueError, OSError) as error:
        stop(str(error))
    before, after = args.source.stat().st_size / 2**20, size / 2**20
    print(f"{path}: {len(weights)} tensors, {after:.1f} MiB of {before:.1f}, SHA-256 {checksum}")


if __name__ == "__main__":
    main()
