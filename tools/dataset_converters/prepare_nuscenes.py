"""Checks a nuScenes folder and writes the info files that the BEVFormerV2 configs read.

python tools/dataset_converters/prepare_nuscenes.py data/nuscenes --version v1.0-trainval
"""

import argparse
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
# mmdet3d's converter has its folder written into it, and lies beside its package's code.
CONVERT = f"""
import sys
from pathlib import Path
from dcnv4_mm.integrations import install
install()
import mmdet3d
sys.path.insert(0, str(Path(mmdet3d.__file__).parent / ".mim"))
from tools.dataset_converters.nuscenes_converter import create_nuscenes_infos
from tools.dataset_converters.update_infos_to_v2 import update_pkl_infos
create_nuscenes_infos("./data/nuscenes", "{PREFIX}", version=sys.argv[1], max_sweeps=0)
for split in ("train", "val"):
    path = f"./data/nuscenes/{PREFIX}_infos_{{split}}.pkl"
    update_pkl_infos("nuscenes", out_dir="./data/nuscenes", pkl_path=path)
"""


def missing(root: Path, version: str) -> list[str]:
    """What the folder lacks."""
    tables = [f"{version}/{name}.json" for name in TABLES]
    return [
        path
        for path in (*tables, "maps", *(f"samples/{sensor}" for sensor in SENSORS))
        if not (root / path).exists()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval", help="or v1.0-mini")
    args = parser.parse_args()
    root = args.root.resolve()
    absent = missing(root, args.version)
    if absent:
        sys.exit(
            f"error: {root} lacks {', '.join(absent)}: unpack all parts of nuScenes "
            f"{args.version} there (docs/bev.md)"
        )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data" / "nuscenes").symlink_to(root)
        command = [sys.executable, "-c", CONVERT, args.version]
        if subprocess.run(command, cwd=folder).returncode:
            sys.exit("error: mmdet3d's converter failed, see above")
    extend = Path(__file__).with_name("add_bevformerv2_infos.py")
    for split in ("train", "val"):
        path = root / f"{PREFIX}_infos_{split}.pkl"
        options = ["--data-root", root, "--version", args.version, "--infos", path, "--out", path]
        subprocess.run([sys.executable, extend, *options], check=True)


if __name__ == "__main__":
    main()
