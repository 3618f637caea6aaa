"""Checks the data that a config reads, from the files to the heads, without training."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS, init_default_scope

from dcnv4_mm.integrations.data_checks import annotation_files, on_disk
from dcnv4_mm.integrations.data_checks.faults import DataError, Fault
from dcnv4_mm.integrations.data_checks.hook import HOSTS, find_faults
from dcnv4_mm.integrations.data_checks.on_disk import Report
from dcnv4_mm.integrations.data_checks.splits import Split, plain_datasets

__all__ = ["check", "dataset_configs", "use_files"]


def use_files(config: Config, kind: str, splits: dict[str, list[Path]]) -> None:
    """Makes a config read other files.

    Args:
        config: The config, changed in place.
        kind: ``"coco"``, ``"label-maps"``, ``"folders"`` or ``"nuscenes"``.
        splits: By split the annotation file and the images, the images and the label maps, the
            folder, or the infos and their root.
    """
    for split, given in splits.items():
        paths = [str(path.resolve()) for path in given]
        for dataset in dataset_configs(config[f"{split}_dataloader"].dataset):
            dataset.data_root = ""
            if kind == "coco":
                dataset.ann_file, dataset.data_prefix = paths[0], {"img": paths[1]}
            elif kind == "label-maps":
                dataset.ann_file = ""
                dataset.data_prefix = {"img_path": paths[0], "seg_map_path": paths[1]}
            elif kind == "folders":
                dataset.ann_file, dataset.data_prefix = "", paths[0]
                dataset.pop("split", None)
            else:
                dataset.ann_file, dataset.data_root = paths
        if kind == "coco" and f"{split}_evaluator" in config:
            evaluators = config[f"{split}_evaluator"]
            for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
                if "ann_file" in metric:
                    metric.ann_file = paths[0]


def check(
    config: Config, names: Iterable[str] = ("train", "val", "test"), *, every: bool = False
) -> tuple[dict[str, Report], list[Fault]]:
    """Checks the files of each split, then whether model, pipelines and metrics fit them.

    Args:
        config: The config of any host.
        names: The splits to check, of those that the config has.
        every: Whether to read every image header and label map, not a sample.

    Returns:
        Reports of the files by split, and the faults in how the config uses them.
    """
    init_default_scope(config.default_scope)
    annotation_files.install()
    reports: dict[str, Report] = {}
    faults: list[Fault] = []
    splits = []
    for name in names:
        loader = config.get(f"{name}_dataloader")
        if not loader or (name == "test" and loader.dataset == _dataset(config, "val")):
            continue
        found = []
        try:
            for number, part in enumerate(dataset_configs(loader.dataset)):
                lazy = DATASETS.build({**part, "lazy_init": True})
                report = _check_files(lazy, every=every)
                if report:
                    found.append(report)
                    reports[name + f" ({number + 1})" * bool(number)] = report
            if not any(fault.fatal for report in found for fault in report.faults):
                splits.append(_split(config, name))
        except DataError as error:
            faults.append(Fault(f"{name}_dataloader", str(error)))
        # Hosts raise these for bad data.
        except (OSError, ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
            faults.append(Fault(f"{name}_dataloader", f"{type(error).__name__}: {error}"))
    host = HOSTS.get(config.default_scope)
    if host and splits:
        faults += find_faults(MODELS.build(config.model), splits, host)
    return reports, faults


def _dataset(config: Config, split: str) -> ConfigDict | None:
    loader = config.get(f"{split}_dataloader")
    return loader.dataset if loader else None


def dataset_configs(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The configs of datasets inside wrappers such as RepeatDataset and ConcatDataset."""
    if "datasets" in dataset:
        for inner in dataset.datasets:
            yield from dataset_configs(inner)
    elif "dataset" in dataset:
        yield from dataset_configs(dataset.dataset)
    else:
        yield dataset


def _split(config: Config, name: str) -> Split:
    datasets = list(plain_datasets(DATASETS.build(config[f"{name}_dataloader"].dataset)))
    for dataset in datasets:
        dataset.full_init()
    evaluator = config.get(f"{name}_evaluator")
    metrics = Evaluator(evaluator).metrics if evaluator else []
    return Split(name, datasets, list(metrics))


def _check_files(dataset: Any, *, every: bool) -> Report | None:
    """Checks the files of a dataset of any host; ``None`` for kinds that have no check."""
    prefix = dataset.data_prefix
    prefix = prefix if isinstance(prefix, dict) else {"img_path": prefix}
    if hasattr(dataset, "filter_cfg") and annotation_files.is_coco(dataset):
        return on_disk.check_coco(Path(dataset.ann_file), Path(prefix["img"]), every=every)
    if "seg_map_path" in prefix and not Path(dataset.ann_file or "").is_file():
        return on_disk.check_label_maps(
            Path(prefix["img_path"]),
            Path(prefix["seg_map_path"]),
            classes=tuple(dataset.metainfo.get("classes") or ()),
            reduce_zero_label=bool(dataset.reduce_zero_label),
            suffixes=(dataset.img_suffix, dataset.seg_map_suffix),
            every=every,
        )
    if hasattr(dataset, "img_prefix") and not dataset.ann_file:
        return on_disk.check_class_folders(Path(dataset.img_prefix), every=every)
    if hasattr(dataset, "box_type_3d"):
        return on_disk.check_nuscenes(Path(dataset.ann_file), Path(dataset.data_root))
    return None
