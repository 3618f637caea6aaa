"""Evaluation and submission on the synthetic nuScenes through mmdet3d's metric."""

import pytest

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.synthetic_samples import build_dataset, changed_copy, ground_truth
from mmdet3d.registry import METRICS
from mmengine.structures import InstanceData

from dcnv4_mm.bev.data.dataset import CLASSES


def evaluate(root, data, answers):
    metric = METRICS.build(
        dict(
            type="dcnv4_mm.StrictNuScenesMetric",
            data_root=str(root),
            ann_file=str(root / "bevformerv2_infos_val.pkl"),
        )
    )
    metric.dataset_meta = data.metainfo
    for index, answer in enumerate(answers):
        sample = data[index]["data_samples"]
        sample.pred_instances_3d, sample.pred_instances = answer, InstanceData()
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(answers))


def score(metrics, name):
    (value,) = (value for key, value in metrics.items() if key.endswith(f"/{name}"))
    return value


def test_ground_truth_scores_perfectly(nuscenes_root):
    """Boxes, order, classes and attributes through mmdet3d's metric."""
    data = build_dataset(nuscenes_root, "val")
    metrics = evaluate(nuscenes_root, data, [ground_truth(data, i) for i in range(len(data))])
    assert score(metrics, "mAP") == pytest.approx(1.0)
    assert score(metrics, "NDS") >= 0.999


def test_zero_predictions_run_to_the_end(nuscenes_root):
    """Every sample of the split is in the results, if without a box."""
    data = build_dataset(nuscenes_root, "val")
    metrics = evaluate(nuscenes_root, data, [ground_truth(data, i)[:0] for i in range(len(data))])
    assert score(metrics, "mAP") == 0


def test_predictions_of_other_samples_are_refused(nuscenes_root):
    """As with a wrapper that reorders the test set."""
    data = build_dataset(nuscenes_root, "val")
    data.__class__ = type(
        "Reordered", (type(data),), {"__getitem__": lambda self, i: _other(self, i)}
    )
    with pytest.raises(ValueError, match="in the order of its infos, without a wrapper"):
        evaluate(nuscenes_root, data, [ground_truth(data, 0)])


def _other(data, index):
    sample = data.prepare_data((index + 1) % len(data))
    sample["data_samples"].set_metainfo(dict(sample_idx=index))
    return sample


def test_a_submission_of_the_test_set(nuscenes_root, tmp_path):
    """From infos without annotations to a file with all fields of the format."""

    def anonymous(infos):
        infos["metainfo"]["version"] = "v1.0-test"
        for info in infos["data_list"]:
            # As prepare_nuscenes.py writes them for v1.0-test.
            info.update(instances=[], mono_instances={})
            info.pop("cam_instances", None)

    path = changed_copy(nuscenes_root, tmp_path / "infos", anonymous)
    metainfo = dict(classes=CLASSES, version="v1.0-test")
    data = build_dataset(nuscenes_root, "val", ann_file=path, metainfo=metainfo)
    metric = METRICS.build(
        dict(
            type="dcnv4_mm.StrictNuScenesMetric",
            data_root=str(nuscenes_root),
            ann_file=path,
            format_only=True,
            jsonfile_prefix=str(tmp_path / "submission"),
        )
    )
    metric.dataset_meta = data.metainfo
    truth = build_dataset(nuscenes_root, "val")
    for index in range(len(data)):
        sample = data[index]["data_samples"]
        sample.pred_instances_3d = ground_truth(truth, index)
        sample.pred_instances = InstanceData()
        metric.process({}, [sample.to_dict()])
    assert metric.evaluate(len(data)) == {}
    (written,) = (tmp_path / "submission").rglob("*.json")
    # The devkit's own reader checks the fields; the test set's tokens are those of the infos.
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes, meta = load_prediction(str(written), 500, DetectionBox)
    assert set(boxes.sample_tokens) == {data.get_data_info(i)["token"] for i in range(len(data))}
    assert meta["use_camera"]
    others = {"use_lidar", "use_radar", "use_map", "use_external"}
    assert {key for key, used in meta.items() if not used} == others


def test_infos_are_read_once(nuscenes_root, monkeypatch):
    """The file of the training set has a gigabyte."""
    from dcnv4_mm.bev.data import infos as module

    reads, load_pickle = [], module.load_pickle
    monkeypatch.setattr(
        module, "load_pickle", lambda path, *args: reads.append(path) or load_pickle(path, *args)
    )
    data = build_dataset(nuscenes_root, "val")
    assert len(reads) == 1
    evaluate(nuscenes_root, data, [ground_truth(data, i) for i in range(len(data))])
    assert len(reads) == 2
