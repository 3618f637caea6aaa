"""Drawing the annotations of BEV samples."""

from dcnv4_mm.bev.drawing import draw_sample


def draw_ground_truth(dataset, index: int):
    """The picture of a sample with its annotations, as they are, and their number.

    The augmentation of the map does not concern the pictures.
    """
    annotations = dataset.parse_ann_info(dataset.get_data_info(index))
    kept = annotations["gt_labels_3d"] >= 0
    boxes, labels = annotations["gt_bboxes_3d"][kept], annotations["gt_labels_3d"][kept]
    return draw_sample(dataset.prepare_data(index), boxes, labels), len(labels)
