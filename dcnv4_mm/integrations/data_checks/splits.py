"""The datasets, metrics and heads of a runner, and the checks that all hosts share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.runner import BaseLoop, Runner
from torch import nn

from dcnv4_mm.integrations.data_checks.faults import Fault, compare_names

__all__ = ["Split", "check_classes", "check_heads", "find_splits", "plain_datasets", "transforms"]


@dataclass
class Split:
    """Datasets and metrics of a training, validation or test loop.

    Attributes:
        name: ``"train"``, ``"val"`` or ``"test"``.
        datasets: The datasets inside wrappers such as ``ConcatDataset``.
        metrics: The metrics that score it.
    """

    name: str
    datasets: list[BaseDataset]
    metrics: list[Any] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The part of the config, for messages."""
        return f"{self.name}_dataloader"


def find_splits(runner: Runner) -> list[Split]:
    """The splits whose loops are built."""
    found = []
    for name in ("train", "val", "test"):
        loop = getattr(runner, f"_{name}_loop", None)
        if isinstance(loop, BaseLoop):
            metrics = getattr(getattr(loop, "evaluator", None), "metrics", [])
            datasets = list(plain_datasets(loop.dataloader.dataset))
            for dataset in datasets:
                # With lazy_init a dataset has loaded nothing yet.
                dataset.full_init()
            found.append(Split(name, datasets, list(metrics)))
    return found


def plain_datasets(dataset: Any) -> Iterator[BaseDataset]:
    """The datasets inside wrappers such as ``ConcatDataset``."""
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from plain_datasets(inner)
    elif hasattr(dataset, "dataset"):
        yield from plain_datasets(dataset.dataset)
    elif isinstance(dataset, BaseDataset):
        yield dataset


def transforms(part: Any) -> Iterator[Any]:
    """All transforms of a pipeline, including nested ones."""
    for step in part if isinstance(part, (list, tuple)) else getattr(part, "transforms", []):
        yield step
        if not isinstance(step, dict):
            yield from transforms(step)


def check_heads(model: nn.Module, split: Split, heads: dict[str, int]) -> list[Fault]:
    """Compares the number of classes of heads with that of each dataset.

    Args:
        model: The model, for its name.
        split: The split.
        heads: Number of classes by the head's name in the model.
    """
    faults = []
    for dataset in split.datasets:
        classes = dataset.metainfo.get("classes")
        if classes is None:
            what = f"{type(dataset).__name__} has no class names: set metainfo.classes"
            faults.append(Fault(split.where, what))
            continue
        if isinstance(classes, str):
            what = f"metainfo.classes: expected a tuple of str, got {classes!r}: ({classes!r},)"
            faults.append(Fault(split.where, what))
            continue
        for name, count in heads.items():
            if count != len(classes):
                faults.append(
                    Fault(
                        split.where,
                        f"{len(classes)} classes in metainfo.classes ({_listed(classes)}), but "
                        f"{name} of {type(model).__name__} has num_classes={count}: align them",
                    )
                )
    return faults


def check_classes(splits: list[Split]) -> list[Fault]:
    """Compares the names of the classes, and their order, between the splits."""
    named = [
        (split.where, list(classes))
        for split in splits
        for dataset in split.datasets
        if (classes := dataset.metainfo.get("classes"))
    ]
    return [
        Fault(
            where,
            f"other classes, or another order, than in {named[0][0]}:\n"
            + compare_names(named[0][1], classes, (named[0][0], where)),
        )
        for where, classes in named[1:]
        if classes != named[0][1]
    ]


def _listed(names: Any) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
