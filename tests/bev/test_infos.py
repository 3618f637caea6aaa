"""The infos of the synthetic nuScenes: its converter, our extension of it, and their errors."""

import copy
import pickle
import runpy
import shutil

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.synthetic_samples import build_dataset, changed_copy, load_infos
from helpers import ROOT
from mmdet3d.evaluation.metrics import NuScenesMetric
from pyquaternion import Quaternion

from dcnv4_mm.bev.data.dataset import CAMERAS
from dcnv4_mm.bev.data.infos import extend_infos
from dcnv4_mm.bev.data.mono import clipped_box, from_cam_instances
from dcnv4_mm.bev.geometry import box_corners


def corners(quaternion, center, wlh):
    """Corners of a box in the camera frame, (8, 3)."""
    parts = (Quaternion(quaternion).rotation_matrix, center, wlh)
    return box_corners(*(torch.tensor(np.asarray(part, float)) for part in parts)).numpy()


def test_corner_cases_occur(nuscenes_root):
    infos = load_infos(nuscenes_root)["data_list"]
    instances = [entry for info in infos for entry in info["instances"]]
    assert {0, 2} <= {entry["num_lidar_pts"] for entry in instances}
    assert any(np.isnan(entry["velocity"]).any() for entry in instances)
    assert any(entry["bbox_label"] == -1 for entry in instances)
    assert any(not info["instances"] for info in infos)
    speeds = [np.linalg.norm(entry["velocity"]) for entry in instances]
    assert min(speeds) == 0
    assert np.nanmax(speeds) > 1


def test_mono_instances_are_the_devkits(nuscenes_root, nusc):
    """Corners, classes and order of the sizes."""
    compared = 0
    infos = load_infos(nuscenes_root)
    names = {label: name for name, label in infos["metainfo"]["categories"].items()}
    for info in infos["data_list"]:
        for camera in CAMERAS:
            _, boxes, _ = nusc.get_sample_data(info["images"][camera]["sample_data_token"])
            by_token = {box.token: box for box in boxes}
            for entry in info["mono_instances"][camera]:
                box = by_token[entry["token"]]
                ours = corners(entry["quat"], entry["center"], entry["wlh"])
                theirs = box.corners().T
                distance = np.linalg.norm(ours[:, None] - theirs[None], axis=-1).min(1)
                assert distance.max() < 1e-4
                assert NuScenesMetric.NameMapping[box.name] == names[entry["bbox_label"]]
                compared += 1
    assert compared > 20


def test_mono_instances_of_stock_infos(nuscenes_root):
    """The fallback finds the same objects, up to some degrees of rotation."""
    angles, compared = [], 0
    for info in load_infos(nuscenes_root)["data_list"]:
        for camera in CAMERAS:
            own = {tuple(np.round(e["center"], 2)): e for e in info["mono_instances"][camera]}
            found = from_cam_instances(info, camera, (225, 400))
            assert len(found) == len(own)
            for entry in found:
                other = own[tuple(np.round(entry["center"], 2))]
                turn = Quaternion(entry["quat"]).inverse * Quaternion(other["quat"])
                angles.append(abs(turn.degrees))
                assert entry["wlh"] == pytest.approx(other["wlh"], rel=1e-5)
                assert entry["bbox_label"] == other["bbox_label"]
                assert entry["attr"] == other["attr"]
                compared += 1
    assert compared > 20
    # One angle of three is kept: the LiDAR's tilt and the car's pitch are lost.
    assert np.minimum(angles, np.abs(np.subtract(angles, 360))).max() < 3


def test_clipped_box_by_hand():
    """A cube of 2 m, 10 m ahead, at the right border, behind the camera, and too near."""
    intrinsics = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    upright, size = [1.0, 0, 0, 0], [2.0, 2, 2]

    def clip(x, z):
        return clipped_box(corners(upright, [x, 0, z], size), intrinsics, (100, 100))

    near = 100 / 9
    assert clip(0, 10) == pytest.approx([50 - near, 50 - near, 50 + near, 50 + near])
    assert clip(4.5, 10)[2] == 100
    # Less than a fifth of it is inside.
    assert clip(5.9, 10) is None
    assert clip(0, -10) is None
    assert clip(0, 1.05) is None


def test_extending_twice_changes_nothing(nuscenes_root, nusc):
    infos = load_infos(nuscenes_root)
    again = copy.deepcopy(infos)
    extend_infos(again, nusc)
    assert pickle.dumps(again) == pickle.dumps(infos) or str(again) == str(infos)


def test_infos_of_other_tables_are_refused(nuscenes_root, nusc):
    infos = load_infos(nuscenes_root)
    infos["data_list"][0]["token"] = "unknown"
    with pytest.raises(ValueError, match="have no sample unknown"):
        extend_infos(infos, nusc)
    infos["metainfo"]["version"] = "v1.0-trainval"
    with pytest.raises(ValueError, match=r"infos are of v1\.0-trainval, the tables of v1\.0-mini"):
        extend_infos(infos, nusc)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda infos: infos["data_list"][0].pop("scene_token"), "lacks scene_token .* extend the"),
        (lambda infos: infos["metainfo"].update(version="v1.0-trainval"), "version says v1.0-mini"),
        (
            lambda infos: infos["data_list"][1].update(
                images=dict(sorted(infos["data_list"][1]["images"].items()))
            ),
            "cameras: expected .*CAM_FRONT.* got",
        ),
    ],
)
def test_infos_that_do_not_fit(nuscenes_root, tmp_path, change, message):
    path = changed_copy(nuscenes_root, tmp_path / "infos", change)
    with pytest.raises(ValueError, match=message):
        build_dataset(nuscenes_root, "val", ann_file=path)


@pytest.mark.parametrize("content", [{"infos": [], "metadata": {}}, []])
def test_infos_of_mmdet3d_0_name_the_updater(nuscenes_root, tmp_path, content):
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"update_infos_to_v2\.py"):
        build_dataset(nuscenes_root, "val", ann_file=str(path))


def test_prepare_names_what_is_missing(run_tool, tmp_path, nuscenes_root):
    shutil.copytree(nuscenes_root / "v1.0-mini", tmp_path / "v1.0-mini")
    result = run_tool("prepare_nuscenes.py", tmp_path, "--version=v1.0-mini", cwd=tmp_path)
    assert "lacks maps, samples/CAM_FRONT," in result.message


def test_train_and_val_can_be_merged(nuscenes_root, tmp_path):
    """Every sample has its neighbours as in its own file."""
    for split in ("train", "val"):
        shutil.copy(nuscenes_root / f"bevformerv2_infos_{split}.pkl", tmp_path)
    tool = runpy.run_path(str(ROOT / "tools" / "dataset_converters" / "prepare_nuscenes.py"))
    both = build_dataset(nuscenes_root, "val", ann_file=str(tool["merge"](tmp_path)))
    parts = [build_dataset(nuscenes_root, split) for split in ("train", "val")]
    infos = [part.get_data_info(i) for part in parts for i in range(len(part))]
    assert [both.get_data_info(i)["token"] for i in range(len(both))] == [i["token"] for i in infos]
    first = len(parts[0])
    assert both[first]["data_samples"].frame_valid == parts[1][0]["data_samples"].frame_valid
    assert both[first]["data_samples"].sample_idx == first
