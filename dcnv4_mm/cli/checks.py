"""Checks of files and folders that a command needs, made before it starts."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dcnv4_mm.cli.configs import stop

if TYPE_CHECKING:
    from mmengine.config import Config


def make_folder(path: str | Path, option: str) -> None:
    """Makes the folder that an option names, and stops if nothing can be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        stop(f"cannot write to {path}: {error.strerror}; give another {option}")


def check_checkpoint(path: str | Path) -> None:
    """Stops if a checkpoint that is a local file does not exist."""
    if "://" not in str(path) and not Path(path).is_file():
        stop(f"the checkpoint {path} does not exist")


def check_data(cfg: "Config", *phases: str) -> None:
    """Stops if a dataset that a phase ("train", "val", "test") reads is missing."""
    from dcnv4_mm.integrations.data_checks.configs import dataset_configs

    for phase in phases:
        loader = cfg.get(f"{phase}_dataloader")
        for dataset in dataset_configs(loader["dataset"]) if loader else ():
            root = dataset.get("data_root") or ""
            # Segmentation datasets: the folders of images and of label maps.
            prefix = dataset.get("data_prefix")
            folders = prefix if isinstance(prefix, dict) else {}
            parts = [folders.get(kind) for kind in ("img_path", "seg_map_path")]
            # mmpretrain's ImageNet names a subfolder of the root by its split.
            parts.append(dataset.get("split") if dataset.get("type") == "ImageNet" else None)
            for path in filter(None, (root, dataset.get("ann_file"), *parts)):
                full = path if path == root else os.path.join(root, path)
                if "://" not in full and not os.path.exists(full):
                    stop(
                        f"{os.path.abspath(full)} does not exist; put or link the data there, or "
                        f"set data_root and ann_file of {phase}_dataloader.dataset with "
                        "--cfg-options (and ann_file of the evaluator)"
                    )
