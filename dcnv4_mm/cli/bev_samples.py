"""Annotated samples of BEVFormerV2's datasets as images."""

from typing import Any

import numpy as np

__all__ = ["draw_ground_truth"]


def draw_ground_truth(dataset: Any, index: int) -> tuple[np.ndarray, int]:
    """Draws a sample of a :class:`BEVFormerV2NuScenesDataset` with its annotations.

    The images are those that the model gets; the augmentation of the BEV does not concern them.

    Returns:
        The image and the number of boxes.
    """
    from dcnv4_mm.bev.drawing import draw_sample

    objects = dataset.ground_truth(index)
    # In training a sample without objects would not be prepared.
    dataset.filter_empty_gt, before = False, dataset.filter_empty_gt
    sample = dataset.prepare_data(index)
    dataset.filter_empty_gt = before
    names, classes = dataset.cameras, dataset.metainfo["classes"]
    image = draw_sample(sample, objects, camera_names=names, class_names=classes)
    return image, len(objects)
