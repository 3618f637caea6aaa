"""Feature maps or BEV features of recent frames, by sample token."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["FeatureCache", "useful_capacity"]


class FeatureCache:
    """Keeps tensors of the most recently used frames.

    Args:
        capacity: Number of frames to keep; 0 for none.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"capacity: expected a number of frames >= 0, got {capacity}")
        self.capacity = capacity
        self._frames: OrderedDict[tuple, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._frames)

    def __deepcopy__(self, memo: dict) -> "FeatureCache":
        # A copy of a model may get other weights.
        return FeatureCache(self.capacity)

    def clear(self) -> None:
        """Forgets all frames."""
        self._frames.clear()

    def get(self, key: tuple | None) -> tuple[Tensor, ...] | None:
        """The tensors of a frame; ``None`` if they are not there or the frame has no key."""
        found = None if key is None else self._frames.get(key)
        if found is None:
            return None
        self._frames.move_to_end(key)
        return found

    def put(self, key: tuple | None, tensors: Sequence[Tensor]) -> None:
        """Keeps the tensors of a frame; drops those of the one that was not used for longest."""
        if key is None or not self.capacity:
            return
        # A slice of a batch would keep all of it alive.
        self._frames[key] = tuple(tensor.clone() for tensor in tensors)
        self._frames.move_to_end(key)
        while len(self._frames) > self.capacity:
            self._frames.popitem(last=False)

    def fetch(
        self, keys: Sequence[tuple | None], compute: Callable[[list[int]], Sequence[Tensor]]
    ) -> list[Tensor]:
        """The tensors of several frames; those that are not there are computed and kept.

        Args:
            keys: The frames' keys.
            compute: Function of the indices of the missing frames that returns their tensors,
                each stacked along the first dim.

        Returns:
            The tensors of all frames, each stacked along the first dim.
        """
        if not any(keys):
            return list(compute(list(range(len(keys)))))
        found = [self.get(key) for key in keys]
        missing = [index for index, tensors in enumerate(found) if tensors is None]
        if missing:
            computed = compute(missing)
            for row, index in enumerate(missing):
                found[index] = tuple(tensor[row] for tensor in computed)
                self.put(keys[index], found[index])
        return [torch.stack(tensors) for tensors in zip(*found, strict=True)]


def useful_capacity(frames: Sequence[int]) -> int:
    """The capacity at which no frame of consecutive samples is computed twice.

    A frame is used again after at most the largest gap between offsets. Meanwhile every sample
    uses ``len(frames)`` frames, each of them as recently.

    Args:
        frames: The keyframe offsets of a sample, in ascending order.

    Returns:
        Number of frames to keep; 0 for a single frame, which no other sample contains.
    """
    if len(frames) == 1:
        return 0
    gap = max(after - before for before, after in pairwise(frames))
    return min(gap * len(frames), frames[-1] - frames[0] + 1 + gap)
