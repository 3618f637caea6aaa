"""Converts a released classification file to a folder of Hugging Face transformers, or back.

    python tools/model_converters/hugging_face.py flash_intern_image_t_1k_224.pth FOLDER
    python tools/model_converters/hugging_face.py FOLDER released.pth

The folder holds config.json, model.safetensors and preprocessor_config.json, for the Auto classes
of transformers after `import dcnv4_mm.transformers`.
"""

import argparse
from pathlib import Path

from dcnv4_mm.cli.configs import naming_missing, stop


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
    from safetensors import SafetensorError

    from dcnv4_mm.atomic_files import replacing
    from dcnv4_mm.checkpoints import to_released
    from dcnv4_mm.checkpoints.files import save_file
    from dcnv4_mm.transformers import (
        FlashInternImageForImageClassification,
        from_released,
        image_processor,
    )

    try:
        if args.source.is_dir():
            model = FlashInternImageForImageClassification.from_pretrained(args.source)
            save_file({"model": to_released(model)}, args.target)
        else:
            model = from_released(args.source, image_size=args.image_size)
            with replacing(args.target) as unfinished:
                model.save_pretrained(unfinished)
                image_processor(model.config).save_pretrained(unfinished)
    except (ValueError, OSError) as error:
        stop(str(error))
    # Of reading a damaged file and of a full disk; it does not name the files.
    except SafetensorError as error:
        stop(f"{args.source} to {args.target}: {' '.join(str(error).split())}")
    config = model.config
    print(f"{args.target}: {config.core_op} {config.arch}, {config.num_labels} classes")


if __name__ == "__main__":
    with naming_missing():
        main()
