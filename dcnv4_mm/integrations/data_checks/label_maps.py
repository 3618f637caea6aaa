"""Which labels occur in label maps, and whether a model can learn from them."""

from typing import Any

import numpy as np

__all__ = ["LabelCount"]

_IGNORED = 255


class LabelCount:
    """Counts the labels of label maps: those of the first training batches, or files.

    Args:
        classes: Names of the classes.
        maps: Number of label maps to count.
    """

    def __init__(self, classes: tuple[str, ...], maps: int) -> None:
        self.classes, self.left = classes, maps
        self.pixels = np.zeros(_IGNORED + 1, np.int64)

    def add(self, samples: list[Any]) -> bool:
        """Counts the maps of a batch; returns whether enough have been counted."""
        for sample in samples if isinstance(samples, list) else ():
            if "gt_sem_seg" in sample:
                self.add_map(sample.gt_sem_seg.data.cpu().numpy())
        self.left -= len(samples)
        return self.left <= 0

    def add_map(self, labels: np.ndarray) -> None:
        """Counts the pixels of one map of labels from 0 to 255."""
        self.pixels += np.bincount(labels.ravel(), minlength=_IGNORED + 1)

    def occurring(self) -> list[str]:
        """Names of the classes that occurred."""
        return [name for label, name in enumerate(self.classes) if self.pixels[label]]

    def fault(self) -> str | None:
        """Why nothing can be learned from the maps, and what helps."""
        occurring = self.occurring()
        if len(occurring) > 1 or (occurring and len(self.classes) == 1):
            return None
        ignored = 100 * float(self.pixels[_IGNORED]) / max(int(self.pixels.sum()), 1)
        seen = f"only the class {occurring[0]!r}" if occurring else "no class at all"
        return (
            f"the first label maps of the training show {seen}; {ignored:.1f} % of the pixels are "
            "ignored. 255 is ignored: write 1 where an object is, or 0 / 255 maps train nothing. "
            "With reduce_zero_label=True label 0 is ignored too, and 1 is the first class"
        )
