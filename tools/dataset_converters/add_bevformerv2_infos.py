"""Adds scenes and per-image objects to mmdet3d's nuScenes infos, for BEVFormerV2.

    python tools/dataset_converters/add_bevformerv2_infos.py --data-root data/nuscenes \
        --version v1.0-trainval --infos nuscenes_infos_val.pkl \
        --out data/nuscenes/bevformerv2_infos_val.pkl
"""

import argparse
import pickle
import sys
from functools import partial
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--version", required=True, help="v1.0-trainval, v1.0-mini or v1.0-test")
    parser.add_argument("--infos", type=Path, required=True, help="infos of version 1.1")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from nuscenes import NuScenes
    from tqdm import tqdm

    from dcnv4_mm.atomic_files import write_file
    from dcnv4_mm.integrations import install

    install()
    from dcnv4_mm.bev.data.infos import extend_infos
    from dcnv4_mm.engine.pickles import load_pickle

    try:
        infos = load_pickle(args.infos)
        nusc = NuScenes(args.version, str(args.data_root), verbose=False)
        extend_infos(infos, nusc, progress=partial(tqdm, desc=args.out.name, unit="sample"))
    except (AssertionError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    try:
        write_file(args.out, pickle.dumps(infos))
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}: {len(infos['data_list'])} samples")


if __name__ == "__main__":
    main()
