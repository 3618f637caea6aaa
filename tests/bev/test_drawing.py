"""What is drawn where."""

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.samples import surround_cameras
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from dcnv4_mm.bev.data.dataset import CAMERAS, CLASSES
from dcnv4_mm.bev.drawing import CameraView, draw_bev, draw_boxes, draw_mosaic
from dcnv4_mm.bev.video import write_video

SIZE = (180, 320)


def car(x, y, velocity=(0, 0)):
    box = torch.tensor([[x, y, -1.0, 4.5, 1.9, 1.6, np.pi / 2, *velocity]])
    return LiDARInstance3DBoxes(box, box_dim=9, origin=(0.5, 0.5, 0.5))


def found(x, y, velocity=(0, 0), score=0.9):
    boxes = car(x, y, velocity)
    scores = torch.full((1,), score)
    return InstanceData(bboxes_3d=boxes, labels_3d=torch.tensor([3]), scores_3d=scores)


def view(camera, size=SIZE):
    matrix = surround_cameras(size)[camera].double().numpy()
    return CameraView(CAMERAS[camera], np.zeros((*size, 3), np.uint8), matrix)


def changed(boxes, camera, **kwargs):
    return draw_boxes(view(camera), boxes, [3], thickness=2, **kwargs).any(-1)


def coloured(image):
    return np.ptp(image.astype(int), axis=-1) > 40


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


def test_velocities_and_captions():
    """An arrow to where the car is in one second; the name above the box."""
    still, moving = (changed(car(0, 12, v), 0) for v in ((0, 0), (4, 0)))
    assert moving.nonzero()[1].max() > still.nonzero()[1].max() + 20
    named = changed(car(0, 12), 0, captions=["car 0.90"])
    assert named.nonzero()[0].min() < still.nonzero()[0].min() - 5


def test_lines_grow_with_the_image():
    def width(size):
        drawn = draw_boxes(view(0, size), car(0, 12), [3]).any(-1)
        # The run of pixels at the left border of the box.
        row = drawn[drawn.shape[0] * 38 // 100]
        first = row.argmax()
        return (~row[first:]).argmax()

    assert width((1080, 1920)) >= 3 * width(SIZE)


def test_the_birds_eye_view_has_forward_up_and_right_right():
    image = draw_bev(found(20, 30), reach=50, size=400)
    # Colours: the box alone is neither grey nor black.
    rows, columns = coloured(image).nonzero()
    assert columns.mean() == pytest.approx(200 + 20 * 4, abs=4)
    # The line to the front pulls the mean a little.
    assert rows.mean() == pytest.approx(200 - 30 * 4, abs=6)
    # The ego car is in the middle, and as long as 4 m.
    assert (image[192:209, 198:202] < 255).all()


def test_ground_truth_beside_predictions():
    truth = found(-20, -30)
    both = draw_bev(found(20, 30), truth, reach=50, size=400)
    magenta = (np.abs(both.astype(int) - (200, 0, 200)) < 80).all(-1)
    assert magenta.nonzero()[1].mean() == pytest.approx(120, abs=4)
    assert coloured(both)[:, 200:].any()


def test_the_mosaic_has_one_size_whatever_the_images():
    """Cameras of 640 pixels in the devkit's order, their names, and the class in the legend."""
    drawn = [
        draw_mosaic([view(c, s) for c in range(6)], found(0, 12), class_names=CLASSES, title="x")
        for s in (SIZE, (450, 800))
    ]
    assert drawn[0].shape == drawn[1].shape
    cells = drawn[0][: 2 * 364, : 3 * 644].reshape(2, 364, 3, 644, 3)
    # The car is in CAM_FRONT alone, the second of the first row.
    boxes = coloured(cells).any((1, 3))
    assert boxes.tolist() == [[False, True, False], [False, False, False]]
    # A name in each.
    assert (cells[:, :30, :, :200] > 200).all(-1).any((1, 3)).all()


def test_other_cameras_keep_their_order():
    views = [CameraView(f"C{i}", view(i).image, view(i).lidar_to_image) for i in range(4)]
    assert draw_mosaic(views, class_names=CLASSES).shape[0] >= 2 * 360


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_videos(tmp_path, ending):
    path = tmp_path / f"scene.{ending}"
    images = [np.full((66, 101, 3), value, np.uint8) for value in (20, 120, 220)]
    assert write_video(path, iter(images)) == 3
    capture, means = cv2.VideoCapture(str(path)), []
    while True:
        more, image = capture.read()
        if not more:
            break
        means.append(image.mean())
    assert means == pytest.approx([20, 120, 220], abs=12)


def test_videos_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif.*scene\.avi"):
        write_video(tmp_path / "scene.avi", [])
    with pytest.raises(ValueError, match="no image"):
        write_video(tmp_path / "scene.mp4", [])
