"""The hook that checks the data of a run before its first iteration."""

from importlib import import_module
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from dcnv4_mm.integrations.data_checks import annotation_files
from dcnv4_mm.integrations.data_checks.faults import DataError, Fault, format_table
from dcnv4_mm.integrations.data_checks.label_maps import LabelCount
from dcnv4_mm.integrations.data_checks.splits import Split, check_classes, find_splits
from dcnv4_mm.registry import HOOKS

__all__ = ["HOSTS", "CheckDataHook", "find_faults"]

HOSTS = {
    "mmdet": "detection",
    "mmseg": "segmentation",
    "mmpretrain": "classification",
    "mmdet3d": "bev",
}


def find_faults(model: nn.Module, splits: list[Split], host: str) -> list[Fault]:
    """Finds inconsistencies between a model, its datasets and its metrics.

    Args:
        model: The model that the runner has built.
        splits: The runner's splits.
        host: Name of the module with the host's checks.
    """
    checks = import_module(f"dcnv4_mm.integrations.data_checks.{host}")
    faults: list[Fault] = check_classes(splits)
    for split in splits:
        faults += checks.check(model, split)
    if host == "classification":
        faults += checks.check_folders(splits)
    return faults


@HOOKS.register_module()
class CheckDataHook(Hook):
    """Checks before the first iteration that data, heads and evaluators fit together.

    Detection: names and order of the classes in the dataset, the annotation file and the heads;
    required fields, ids, boxes and masks; the evaluator's file; missing images; image sizes, from
    the headers of a few files. Segmentation: classes of heads, loaders and dataset, missing files,
    and which classes occur in the first label maps. Classification: classes, folders, lists of
    labels. BEV: classes, evaluator, missing images. All hosts: whether a dataset has any samples.

    Args:
        label_maps: Number of label maps in which segmentation looks for the classes.

    Raises:
        DataError: Something is inconsistent; the message lists all faults.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.CheckDataHook")]
    """

    # Before slow hooks, and before weights are loaded.
    priority = "VERY_HIGH"

    def __init__(self, label_maps: int = 100) -> None:
        self.label_maps = label_maps
        self._labels: LabelCount | None = None
        # The runner builds its datasets later.
        annotation_files.install()

    def before_run(self, runner: Runner) -> None:
        """Checks all splits that the run uses."""
        scope = DefaultScope.get_current_instance()
        host = HOSTS.get(scope.scope_name if scope else "")
        splits = [split for split in find_splits(runner) if split.datasets]
        if host is None or not splits:
            return
        if faults := find_faults(runner.model, splits, host):
            raise DataError(
                f"the data are inconsistent; check_data = False at the top level of the config "
                f"turns this check off:\n{format_table(faults)}"
            )
        if host == "segmentation":
            self._labels = self._begin_counting(splits)

    def _begin_counting(self, splits: list[Split]) -> LabelCount | None:
        train = next((split for split in splits if split.name == "train"), None)
        if train is None:
            return None
        # In small datasets, each map twice.
        maps = min(self.label_maps, 2 * sum(map(len, train.datasets)))
        return LabelCount(tuple(train.datasets[0].metainfo["classes"]), maps)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Counts the labels in the label maps of the first batches."""
        labels = self._labels
        if labels is None or not labels.add(data_batch["data_samples"]):
            return
        self._labels = None
        if fault := labels.fault():
            raise DataError(f"{fault}. check_data = False in the config turns this check off")
        absent = [name for name in labels.classes if name not in labels.occurring()]
        more = f"; not: {', '.join(absent[:20])}" if absent else ""
        runner.logger.info(
            f"The first label maps show {len(labels.occurring())} of {len(labels.classes)} "
            f"classes{more}"
        )
