"""mmdet3d's data: classes of heads, pipelines and datasets, and the evaluator's file."""

import pytest

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from mmdet3d.utils import register_all_modules

from dcnv4_mm.integrations.data_checks import CheckDataHook, DataError

CLASSES = ("bus", "car")
CAMERAS = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")


@pytest.fixture
def check(tiny_data, make_runner):
    """Function that checks a run on three samples, with some settings changed."""
    register_all_modules(init_default_scope=False)

    def run(*, kept=CLASSES, val=CLASSES, num_classes=2, evaluator="infos.pkl", images="samples"):
        data = {
            "type": "NuScenesDataset",
            "data_root": str(tiny_data),
            "ann_file": "infos.pkl",
            "metainfo": {"classes": CLASSES, "version": "v1.0-trainval"},
            "data_prefix": {f"CAM_{name}": f"{images}/CAM_{name}" for name in CAMERAS},
            "modality": {"use_camera": True, "use_lidar": False},
            "pipeline": [{"type": "ObjectNameFilter", "classes": kept}],
        }
        other = {**data, "metainfo": {"classes": val}, "test_mode": True}
        metric = {"type": "NuScenesMetric", "data_root": str(tiny_data)}
        metric["ann_file"] = str(tiny_data / evaluator)
        heads = {"pts_bbox_head": {"num_classes": num_classes}}
        # A head of proposals knows no classes.
        heads["fcos_rpn_head"] = {"num_classes": 1}
        runner = make_runner("mmdet3d", data, other, metric, **heads)
        # Built, not run: there are no points to load.
        assert runner.train_loop
        assert runner.val_loop
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckDataHook))
        hook.before_run(runner)

    return run


def test_data_that_fit(check):
    check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 10}, "pts_bbox_head of Model has num_classes=10"),
        ({"kept": ("bus", "car", "truck")}, "ObjectNameFilter in the pipeline keeps 3 classes"),
        ({"val": ("car", "bus")}, r"(?s)than in train_dataloader.*\*   0 bus +car"),
        ({"images": "sweeps"}, "18 of 18 sampled images are missing, such as .*sweeps/CAM_FRONT"),
        ({"evaluator": "other.pkl"}, "val_evaluator\n.*other.pkl, val_dataloader reads .*infos"),
    ],
)
def test_data_that_do_not_fit(check, settings, message):
    with pytest.raises(DataError, match=message):
        check(**settings)
