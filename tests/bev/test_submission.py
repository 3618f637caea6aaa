"""From raw nuScenes folders to a submission of the test set, by the commands of docs/bev.md."""

import re
import runpy
import shlex

import pytest

pytestmark = [pytest.mark.mmdet3d, pytest.mark.slow]

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from helpers import ROOT, run_python
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_prediction
from nuscenes.eval.detection.data_classes import DetectionBox

NAME = "bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d.py"
# The small model of the synthetic set, for the folder that the page names.
CONFIG = f"""
_base_ = {str(ROOT / "configs" / "bevformerv2" / NAME)!r}
version = dict(version="v1.0-trainval")
model = dict(pts_bbox_head=dict(bev_shape=(16, 16)))
loader = dict(num_workers=0, persistent_workers=False)
data = dict(data_root="data/nuscenes/", metainfo=version)
train_dataloader = dict(dataset=data, **loader)
val_dataloader = dict(dataset=data, **loader)
test_dataloader = dict(dataset=data, **loader)
val_evaluator = dict(data_root="data/nuscenes/", ann_file="data/nuscenes/bevformerv2_infos_val.pkl")
test_evaluator = val_evaluator
# The evaluation of the validation set has tests of its own.
train_cfg = dict(max_epochs=1, val_begin=2)
"""


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder with raw nuScenes in data/nuscenes: one scene of each split, two keyframes each."""
    monkeypatch.syspath_prepend(str(ROOT / "dev" / "generators"))
    generator = runpy.run_path(str(ROOT / "dev" / "generators" / "synthetic_nuscenes.py"))
    options = dict(keyframes=2, objects=0, reach=20, top_speed=3, size=(160, 90), seed=0)
    for splits, version, first in (
        (("train", "val"), "v1.0-trainval", 0),
        (("test",), "v1.0-test", 2),
    ):
        names = generator["scene_names"](splits, [1] * len(splits))
        generator["write_scenes"](
            tmp_path / "data" / "nuscenes", names, version=version, first=first, **options
        )
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path


def test_the_commands_of_the_page(raw):
    page = (ROOT / "docs" / "bev.md").read_text()
    (block,) = re.findall(r"<!-- submission -->\n```bash\n(.*?)```", page, re.DOTALL)
    names = {"CONFIG": "config.py", "CHECKPOINT": "work_dirs/trainval/epoch_1.pth"}
    for line in block.replace("\\\n", " ").splitlines():
        python, tool, *arguments = (names.get(word, word) for word in shlex.split(line))
        assert python == "python"
        run_python(ROOT / tool, *arguments, cwd=raw)
    written = re.search(r"`(work_dirs/submission/\S+\.json)`", page)[1]
    # The devkit's own reader checks the fields of every box and the number of boxes.
    boxes, meta = load_prediction(str(raw / written), 500, DetectionBox)
    nusc = NuScenes("v1.0-test", str(raw / "data" / "nuscenes"), verbose=False)
    assert set(boxes.sample_tokens) == {sample["token"] for sample in nusc.sample}
    assert len(boxes.all) > 0
    assert meta.pop("use_camera") is True
    assert meta == dict.fromkeys(("use_lidar", "use_radar", "use_map", "use_external"), False)
