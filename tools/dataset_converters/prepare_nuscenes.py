"""Checks a nuScenes folder and writes the info files that the BEVFormerV2 configs read.

    python tools/dataset_converters/prepare_nuscenes.py data/nuscenes --version v1.0-trainval
    python tools/dataset_converters/prepare_nuscenes.py data/nuscenes --version v1.0-test

``v1.0-test`` makes ``bevformerv2_infos_test.pkl``; the others make those of train and val, and with
``--merge`` ``bevformerv2_infos_trainval.pkl`` of both, to train on for the test server.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map"),
    *("sample", "sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
SENSORS = (
    *("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT"),
    *("CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "LIDAR_TOP"),
)
PREFIX = "bevformerv2"
SPLITS = {"v1.0-trainval": ("train", "val"), "v1.0-mini": ("train", "val"), "v1.0-test": ("test",)}
# mmdet3d's converter has its folder written into it, and lies beside its package's code. Everything
# runs in one process: importing mmdet3d takes longer than a small dataset.
CONVERT = f"""
import runpy, sys
from pathlib import Path
from dcnv4_mm.integrations import install
install()
import mmdet3d
sys.path.insert(0, str(Path(mmdet3d.__file__).parent / ".mim"))
from tools.dataset_converters.nuscenes_converter import create_nuscenes_infos
from tools.dataset_converters.update_infos_to_v2 import update_pkl_infos
root, version, extend, *splits = sys.argv[1:]
create_nuscenes_infos("./data/nuscenes", "{PREFIX}", version=version, max_sweeps=0)
for split in splits:
    path = f"{{root}}/{PREFIX}_infos_{{split}}.pkl"
    update_pkl_infos("nuscenes", out_dir=root, pkl_path=path)
    sys.argv = [extend, "--data-root", root, "--version", version, "--infos", path, "--out", path]
    runpy.run_path(extend, run_name="__main__")
"""


def missing(root: Path, version: str) -> list[str]:
    """The files and folders of a release that are not there."""
    tables = [f"{version}/{name}.json" for name in TABLES]
    return [
        path
        for path in (*tables, "maps", *(f"samples/{sensor}" for sensor in SENSORS))
        if not (root / path).exists()
    ]


def merge(root: Path) -> Path:
    """Writes one info file of the training and validation sets."""
    from dcnv4_mm.atomic_files import write_file
    from dcnv4_mm.engine.pickles import load_pickle

    train, val = (load_pickle(root / f"{PREFIX}_infos_{split}.pkl") for split in ("train", "val"))
    train["data_list"] += val["data_list"]
    for index, info in enumerate(train["data_list"]):
        info["sample_idx"] = index
    path = root / f"{PREFIX}_infos_trainval.pkl"
    write_file(path, pickle.dumps(train))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval", choices=SPLITS)
    parser.add_argument("--merge", action="store_true", help="also train and val in one file")
    args = parser.parse_args()
    root, splits = args.root.resolve(), SPLITS[args.version]
    if args.merge and splits == ("test",):
        parser.error("--merge is for v1.0-trainval and v1.0-mini")
    absent = missing(root, args.version)
    if absent:
        sys.exit(
            f"error: {root} lacks {', '.join(absent)}: unpack all parts of nuScenes "
            f"{args.version} there (docs/bev.md)"
        )
    extend = Path(__file__).resolve().with_name("add_bevformerv2_infos.py")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data" / "nuscenes").symlink_to(root)
        command = [sys.executable, "-c", CONVERT, root, args.version, extend, *splits]
        if subprocess.run(command, cwd=folder).returncode:
            sys.exit(f"error: the infos of {root} could not be made, see above")
    if args.merge:
        try:
            print(f"{merge(root)}: the samples of both")
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
