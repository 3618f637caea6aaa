"""Converts a released classification file to a folder of Hugging Face transformers, or back.

    python tools/model_converters/hugging_face.py flash_intern_image_t_1k_224.pth FOLDER
    python tools/model_converters/hugging_face.py FOLDER released.pth

The folder holds config.json, model.safetensors and preprocessor_config.json, for the Auto classes
of transformers after `import dcnv4_mm.transformers`.
"""

import argparse
import os
from pathlib import Path

from dcnv4_mm.cli.configs import stop


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="released file, or folder")
    parser.add_argument("target", type=Path, help="folder, or file to write; must not exist")
    parser.add_argument("--image-size", type=int, default=224, help="that of the training")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.target.exists():
        stop(f"{args.target} exists")
    import torch

    from dcnv4_mm.checkpoints import to_released
    from dcnv4_mm.transformers import (
        FlashInternImageForImageClassification,
        from_released,
        image_processor,
    )

    unfinished = args.target.with_name(args.target.name + ".part")
    try:
        if args.source.is_dir():
            model = FlashInternImageForImageClassification.from_pretrained(args.source)
            torch.save({"model": to_released(model)}, unfinished)
        else:
            model = from_released(args.source, image_size=args.image_size)
            model.save_pretrained(unfinished)
            image_processor(model.config).save_pretrained(unfinished)
        os.replace(unfinished, args.target)
    except (ValueError, OSError) as error:
        stop(str(error))
    config = model.config
    print(f"{args.target}: {config.core_op} {config.arch}, {config.num_labels} classes")


if __name__ == "__main__":
    main()
