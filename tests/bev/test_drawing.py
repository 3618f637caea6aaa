"""What is drawn where."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev_samples import surround_cameras
from mmdet3d.structures import LiDARInstance3DBoxes

from dcnv4_mm.bev.drawing import draw_bev, draw_boxes

SIZE = (180, 320)


def car(x, y):
    box = torch.tensor([[x, y, -1.0, 4.5, 1.9, 1.6, np.pi / 2, 0, 0]])
    return LiDARInstance3DBoxes(box, box_dim=9, origin=(0.5, 0.5, 0.5))


def changed(boxes, camera):
    matrix = surround_cameras(SIZE)[camera].double().numpy()
    blank = np.zeros((*SIZE, 3), np.uint8)
    return draw_boxes(blank, boxes, [3], matrix).any(-1)


def test_a_car_ahead_is_in_the_front_image():
    rows, columns = changed(car(0, 12), 0).nonzero()
    assert columns.mean() == pytest.approx(SIZE[1] / 2, abs=3)
    # Its top, 10 cm above the camera's axis and 8.95 m away, to its bottom, 1.5 m below.
    axis, focal = 0.36 * SIZE[0], 0.79 * SIZE[1]
    assert rows.min() == pytest.approx(axis - focal * 0.1 / 8.95, abs=4)
    assert rows.max() == pytest.approx(axis + focal * 1.5 / 8.95, abs=4)
    assert not changed(car(0, 12), 3).any()


def test_a_box_around_the_camera_is_cut_not_mirrored():
    """Behind the camera's plane, pixels would come out upside down."""
    assert changed(car(0, 1), 0).any()
    assert not changed(car(0, -8), 0).any()


def test_the_map_has_forward_up_and_right_right():
    img = draw_bev(car(20, 30), [3], reach=50, size=400)
    # Colours: the box alone is neither grey nor black.
    rows, columns = (np.ptp(img, axis=-1) > 40).nonzero()
    assert columns.mean() == pytest.approx(200 + 20 * 4, abs=4)
    # The line to the front pulls the mean a little.
    assert rows.mean() == pytest.approx(200 - 30 * 4, abs=6)
