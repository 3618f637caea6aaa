"""Converts the boxes of a BEVFormerV2 checkpoint between mmdet3d 0.x and 1.x.

    python tools/model_converters/convert_bev_boxes.py RELEASED.pth OURS.pth
    python tools/model_converters/convert_bev_boxes.py OURS.pth RELEASED.pth --to-released
    python tools/model_converters/convert_bev_boxes.py OURS.pth MARKED.pth --mark

Released files need it only if their ``meta`` does not name the mmcv version that wrote them;
``--mark`` marks the boxes of a file as those of mmdet3d 1.x.
"""

import argparse
from pathlib import Path

from dcnv4_mm.cli.configs import stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--to-released", action="store_true", help="from 1.x to 0.x")
    direction.add_argument("--mark", action="store_true", help="change nothing but the mark")
    args = parser.parse_args()
    from dcnv4_mm.checkpoints.bevformerv2 import convert_boxes, mark_boxes, restore_boxes
    from dcnv4_mm.checkpoints.files import naming_file, read_file, save_file

    change = mark_boxes if args.mark else restore_boxes if args.to_released else convert_boxes
    try:
        checkpoint = read_file(args.source)
        bare = isinstance(checkpoint, dict) and "state_dict" not in checkpoint
        with naming_file(args.source):
            changed = change({"state_dict": checkpoint} if bare and not args.mark else checkpoint)
        save_file(changed, args.target)
    except (ValueError, OSError) as error:
        stop(str(error))
    print(f"{args.target}: boxes of mmdet3d {'0.x' if args.to_released else '1.x'}")


if __name__ == "__main__":
    main()
