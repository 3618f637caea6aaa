"""browse_dataset.py on samples of several cameras and frames."""

import cv2
import pytest
from helpers import ROOT, run_python

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")

pytestmark = pytest.mark.mmdet3d

CONFIG = "bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d"


def test_boxes_in_the_cameras_and_from_above(nuscenes_root, tmp_path):
    option = f"train_dataloader.dataset.data_root={nuscenes_root}/"
    arguments = (CONFIG, "--count", "2", "--cfg-options", option)
    run_python(ROOT / "tools/analysis_tools/browse_dataset.py", *arguments, cwd=tmp_path)
    for index in range(2):
        img = cv2.imread(str(tmp_path / "browsed" / f"{index:05}.jpg"))
        # Three cameras of 640 pixels in a row, and the bird's-eye view beside them.
        assert img.shape[1] > 4 * 640
        # Objects, of another colour than the rings.
        above = img[:640, -600:].astype(int)
        assert (above.max(-1) - above.min(-1)).max() > 100
