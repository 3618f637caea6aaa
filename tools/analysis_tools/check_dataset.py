"""Checks the files of a dataset, training and validation together, and lists all faults at once.

    python tools/analysis_tools/check_dataset.py --config CONFIG
    python tools/analysis_tools/check_dataset.py KIND --train PATHS --val PATHS [--config CONFIG]
    python tools/analysis_tools/check_dataset.py coco2017 data/coco

``--config`` checks the data that a config reads, and whether its heads, pipelines and evaluators
fit them; together with a dataset, whether they would fit that one. Paths by kind: coco takes an
annotation file and a folder of images, label-maps folders of images and of label maps, folders one
with a folder per class, nuscenes an info file and the root of the dataset.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcnv4_mm.cli.configs import add_cfg_options, install_hosts, read_config, stop

if TYPE_CHECKING:
    from dcnv4_mm.integrations.data_checks.on_disk import Report

# Kind -> the paths that a split is given by.
KINDS = {
    "coco": ("ANNOTATIONS", "IMAGES"),
    "label-maps": ("IMAGES", "MAPS"),
    "folders": ("FOLDER",),
    "nuscenes": ("INFOS", "ROOT"),
}
COCO, ADE20K = "http://images.cocodataset.org", "http://data.csail.mit.edu/places/ADEchallenge"


@dataclass(frozen=True)
class Known:
    """A public dataset, as our configs expect it.

    Attributes:
        kind: Key of :data:`KINDS`.
        splits: Paths of each split, relative to the root.
        images: Number of images of each split.
        stamp: A file in the generated, smaller stand-in.
        archives: Path relative to the root -> the archive that contains it.
        nested: Whether the archive contains the root folder too.
        labels: Number of classes of label maps, without the ignored label 0.
    """

    kind: str
    splits: dict[str, tuple[str, ...]]
    images: dict[str, int]
    stamp: str
    archives: dict[str, str]
    nested: bool = False
    labels: int = 0


KNOWN = {
    "coco2017": Known(
        kind="coco",
        splits={s: (f"annotations/instances_{s}2017.json", f"{s}2017") for s in ("train", "val")},
        images={"train": 118287, "val": 5000},
        stamp="mini_coco.json",
        archives={
            "annotations": f"{COCO}/annotations/annotations_trainval2017.zip",
            "train2017": f"{COCO}/zips/train2017.zip",
            "val2017": f"{COCO}/zips/val2017.zip",
        },
    ),
    "ade20k": Known(
        kind="label-maps",
        splits={
            "train": ("images/training", "annotations/training"),
            "val": ("images/validation", "annotations/validation"),
        },
        images={"train": 20210, "val": 2000},
        stamp="mini_ade20k.json",
        archives={"": f"{ADE20K}/ADEChallengeData2016.zip"},
        nested=True,
        labels=150,
    ),
    "imagenet": Known(
        kind="folders",
        splits={"train": ("train",), "val": ("val",)},
        images={"train": 1281167, "val": 50000},
        stamp="mini_imagenet.json",
        archives={},
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the files of a dataset.")
    parser.add_argument("dataset", nargs="?", choices=[*KINDS, *KNOWN], help="kind, or a known one")
    parser.add_argument("root", nargs="?", type=Path, help="folder of a known dataset")
    for split in ("train", "val", "test"):
        parser.add_argument(
            f"--{split}",
            nargs="+",
            type=Path,
            metavar="PATH",
            help="annotations and images, images and maps, a folder, or infos and root",
        )
    parser.add_argument("--config", help="config to check, with the dataset or with its own data")
    parser.add_argument("--num-classes", type=int, default=0, help="of label maps, with no config")
    parser.add_argument(
        "--reduce-zero-label", action="store_true", help="label 0 of label maps is ignored"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="read every image header and every label map; by default a sample of each",
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    args.splits = {s: getattr(args, s) for s in ("train", "val", "test") if getattr(args, s)}
    if args.dataset in KNOWN:
        if args.root is None or args.splits:
            parser.error(f"{args.dataset} takes its folder, as in: {args.dataset} data/...")
        known = KNOWN[args.dataset]
        args.kind = known.kind
        args.splits = {s: [args.root / p for p in paths] for s, paths in known.splits.items()}
        args.num_classes, args.reduce_zero_label = known.labels, bool(known.labels)
    elif args.dataset:
        args.kind = args.dataset
        names = KINDS[args.kind]
        if args.root or not args.splits or any(len(p) != len(names) for p in args.splits.values()):
            parser.error(f"{args.kind} takes --train {' '.join(names)}, and --val and --test alike")
    elif not args.config or args.splits:
        parser.error("give a dataset, or --config")
    return args


def check_split(args: argparse.Namespace, paths: list[Path]) -> "Report":
    """Checks the files of a split."""
    from dcnv4_mm.integrations.data_checks import on_disk

    if args.kind == "coco":
        return on_disk.check_coco(*paths, every=args.all)
    if args.kind == "folders":
        return on_disk.check_class_folders(*paths, every=args.all)
    if args.kind == "nuscenes":
        return on_disk.check_nuscenes(*paths)
    first = int(args.reduce_zero_label)
    classes = tuple(f"label {n + first}" for n in range(args.num_classes))
    return on_disk.check_label_maps(
        *paths, classes=classes, reduce_zero_label=args.reduce_zero_label, every=args.all
    )


def print_table(reports: dict[str, "Report"]) -> None:
    """Prints the counts of all splits side by side."""
    rows: dict[str, dict[str, int]] = {}
    for split, report in reports.items():
        shown = {**report.counts, **{f"  {name}": n for name, n in report.classes.items()}}
        for name, number in shown.items():
            rows.setdefault(name, {})[split] = number
    width = max(map(len, rows), default=0)
    print(f"{'':{width}}" + "".join(f"{split:>12}" for split in reports))
    for name, numbers in rows.items():
        print(f"{name:{width}}" + "".join(f"{numbers.get(s, '-'):>12}" for s in reports))


def check_known(known: Known, root: Path, reports: dict[str, "Report"]) -> list[str]:
    """Adds the faults of an incomplete public dataset; returns commands that download it."""
    from dcnv4_mm.integrations.data_checks.faults import Fault

    for split, report in reports.items():
        found, expected = report.counts.get("images"), known.images[split]
        if found not in (None, expected) and not (root / known.stamp).is_file():
            what = f"{found} images, the public dataset has {expected}"
            report.faults.append(Fault(str(root / known.splits[split][0]), what))
    wrong = [fault.where for report in reports.values() for fault in report.faults]
    target = root.parent if known.nested else root
    return [
        f"curl -LO -C - {address} && unzip -q -n {Path(address).name} -d {target}"
        for part, address in known.archives.items()
        if any(where.startswith(str(root / part)) for where in wrong)
    ]


def main() -> None:
    args = parse_args()
    install_hosts()
    from dcnv4_mm.integrations.data_checks.faults import format_table
    from dcnv4_mm.integrations.data_checks.on_disk import compare_splits

    commands: list[str] = []
    if args.config:
        from dcnv4_mm.integrations.data_checks import configs

        config = read_config(args.config, args.cfg_options)
        if args.dataset:
            configs.use_files(config, args.kind, args.splits)
        names = args.splits or ("train", "val", "test")
        reports, faults = configs.check(config, names, every=args.all)
    else:
        reports = {split: check_split(args, paths) for split, paths in args.splits.items()}
        faults = []
    if args.dataset in KNOWN:
        commands = check_known(KNOWN[args.dataset], args.root, reports)
    if not reports:
        stop(f"{args.config} reads no data of the kinds {', '.join(KINDS)}")
    print_table(reports)
    faults = [fault for report in reports.values() for fault in report.faults] + faults
    faults += compare_splits(reports)
    if faults:
        print(f"\n{format_table(faults)}", file=sys.stderr)
        for command in commands:
            print(f"to get the files: {command}", file=sys.stderr)
        raise SystemExit(1)
    print("no fault was found" + ("" if args.all else "; --all reads every image and label map"))


if __name__ == "__main__":
    main()
