"""The synthetic set through mmdet3d's converter, our infos, dataset, pipeline and metric."""

import copy
import pickle
import runpy
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from helpers import ROOT
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.registry import DATASETS, METRICS
from mmdet3d.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.fileio import load as mmengine_load
from mmengine.structures import InstanceData
from nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility
from pyquaternion import Quaternion

from dcnv4_mm.bev.data.dataset import CAMERAS, CLASSES
from dcnv4_mm.bev.data.infos import extend_infos
from dcnv4_mm.bev.data.mono import clipped_box, from_cam_instances
from dcnv4_mm.bev.geometry import box_corners

CONFIG = ROOT / "configs" / "_base_" / "bevformerv2_r50_fpn_nus-3d.py"


@pytest.fixture(scope="module")
def nusc(nuscenes_root):
    return NuScenes("v1.0-mini", str(nuscenes_root), verbose=False)


def corners(quaternion, center, wlh):
    """Of a box in the camera frame, (8, 3)."""
    parts = (Quaternion(quaternion).rotation_matrix, center, wlh)
    return box_corners(*(torch.tensor(np.asarray(part, float)) for part in parts)).numpy()


def infos_of(root, split="train"):
    return pickle.loads((root / f"bevformerv2_infos_{split}.pkl").read_bytes())


def dataset(root, split="train", **changes):
    """The config's own dataset on the synthetic one, with smaller images."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(CONFIG)
    loader = config.train_dataloader if split == "train" else config.val_dataloader
    settings = loader.dataset
    settings.update(data_root=str(root), metainfo=dict(classes=CLASSES, version="v1.0-mini"))
    for step in settings.frame_pipeline:
        if step["type"] == "dcnv4_mm.ResizeCropFlipImage":
            step["heights"] = [96, 128, 144]
    settings.update(changes)
    return DATASETS.build(settings)


def ground_truth(data, index):
    """What a perfect model would answer for a sample of the validation set."""
    info = data.get_data_info(index)
    annotations = data.parse_ann_info(info)
    kept = annotations["gt_labels_3d"] >= 0
    return InstanceData(
        bboxes_3d=annotations["gt_bboxes_3d"][torch.from_numpy(kept)],
        labels_3d=torch.from_numpy(annotations["gt_labels_3d"][kept]),
        scores_3d=torch.ones(int(kept.sum())),
    )


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
    """P1, P5, P6, P29, P30: boxes, order, classes and attributes through mmdet3d's metric."""
    data = dataset(nuscenes_root, "val")
    metrics = evaluate(nuscenes_root, data, [ground_truth(data, i) for i in range(len(data))])
    assert score(metrics, "mAP") == pytest.approx(1.0)
    assert score(metrics, "NDS") >= 0.999


def test_zero_predictions_run_to_the_end(nuscenes_root):
    """P29: every sample of the split is there, if without a box."""
    data = dataset(nuscenes_root, "val")
    metrics = evaluate(nuscenes_root, data, [ground_truth(data, i)[:0] for i in range(len(data))])
    assert score(metrics, "mAP") == 0


def test_predictions_of_other_samples_are_refused(nuscenes_root):
    """P5: as a wrapper that reorders the test set would hand them in."""
    data = dataset(nuscenes_root, "val")
    data.__class__ = type(
        "Reordered", (type(data),), {"__getitem__": lambda self, i: _other(self, i)}
    )
    with pytest.raises(ValueError, match="in the order of its infos, without a wrapper"):
        evaluate(nuscenes_root, data, [ground_truth(data, 0)])


def _other(data, index):
    sample = data.prepare_data((index + 1) % len(data))
    sample["data_samples"].set_metainfo(dict(sample_idx=index))
    return sample


def test_samples_are_in_the_order_of_the_file(nuscenes_root):
    """P5"""
    data, infos = dataset(nuscenes_root, "val"), infos_of(nuscenes_root, "val")
    tokens = [data[index]["data_samples"].token for index in range(len(data))]
    assert tokens == [info["token"] for info in infos["data_list"]]


def test_the_traps_are_inside(nuscenes_root):
    infos = infos_of(nuscenes_root)["data_list"]
    instances = [entry for info in infos for entry in info["instances"]]
    assert {0, 2} <= {entry["num_lidar_pts"] for entry in instances}
    assert any(np.isnan(entry["velocity"]).any() for entry in instances)
    assert any(entry["bbox_label"] == -1 for entry in instances)
    assert any(not info["instances"] for info in infos)
    speeds = [np.linalg.norm(entry["velocity"]) for entry in instances]
    assert min(speeds) == 0
    assert np.nanmax(speeds) > 1


def test_no_image_tells_a_speed():
    """Speeds are alike in all classes, and lead neither ahead nor away from the car more often."""
    sys.path.insert(0, str(ROOT / "dev" / "generators"))
    from synthetic_nuscenes import CATEGORIES, Way, scene_things

    way = Way(np.zeros(2), 1.0)
    place = way.pose(way.middle)[0][:2]
    things = [
        thing
        for seed in range(120)
        for thing in scene_things(np.random.default_rng(seed), way, 4, 0, reach=12, top_speed=9)
    ]
    velocities = np.array([thing.velocity for thing in things])
    speeds = np.linalg.norm(velocities, axis=1)
    assert (speeds > 0).mean() == pytest.approx(0.6, abs=0.06)
    names = np.array([thing.category for thing in things])
    for name in CATEGORIES:
        own = speeds[names == name]
        # Four standard errors.
        assert own.mean() == pytest.approx(speeds.mean(), abs=4 * speeds.std() / len(own) ** 0.5)
    yaws = np.array([thing.yaw for thing in things])
    headings = np.stack((np.cos(yaws), np.sin(yaws)), axis=1)
    away = np.array([thing.position - place for thing in things])
    for direction in (headings, away / np.linalg.norm(away, axis=1, keepdims=True)):
        along = (velocities * direction).sum(1)
        assert abs(along.mean()) < 4 * along.std() / len(along) ** 0.5


def test_the_generator_knows_how_many_scenes_there_are(tmp_path):
    tool = ROOT / "dev" / "generators" / "synthetic_nuscenes.py"
    command = [sys.executable, tool, tmp_path / "set", "--train=9"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "mini_train has 8 scenes, got 9" in result.stderr
    assert not (tmp_path / "set").exists()


def test_lidar_to_image_is_that_of_the_devkit(nuscenes_root, nusc):
    """P8, P13: centres of static objects in all cameras, now and half a second ago."""
    data = dataset(
        nuscenes_root,
        "val",
        frames=(-1, 0),
        frame_pipeline=[
            dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
            dict(type="dcnv4_mm.ResizeCropFlipImage", heights=[225], crop_top=0.0),
        ],
    )
    compared = 0
    sample = data[2]["data_samples"]
    tokens = {}
    for name, _ in zip(CAMERAS, range(6), strict=True):
        record = nusc.get("sample", sample.token)
        previous = nusc.get("sample", record["prev"])
        tokens[name] = (previous["data"][name], record["data"][name])
    lidar = nusc.get("sample", sample.token)["data"]["LIDAR_TOP"]
    _, boxes, _ = nusc.get_sample_data(lidar, BoxVisibility.NONE)
    static = {
        box.token: box.center for box in boxes if np.linalg.norm(nusc.box_velocity(box.token)) == 0
    }
    instances = {nusc.get("sample_annotation", t)["instance_token"]: c for t, c in static.items()}
    for camera, name in enumerate(CAMERAS):
        for frame, token in enumerate(tokens[name]):
            _, shown, intrinsics = nusc.get_sample_data(token, BoxVisibility.ALL)
            for box in shown:
                instance = nusc.get("sample_annotation", box.token)["instance_token"]
                if instance not in instances:
                    continue
                pixel = sample.lidar2img[frame, camera] @ [*instances[instance], 1]
                expected = intrinsics @ box.center
                # The infos' matrices are float32.
                assert pixel[:2] / pixel[2] == pytest.approx(expected[:2] / expected[2], abs=0.01)
                compared += 1
    assert compared >= 10


def test_mono_instances_are_the_devkits(nuscenes_root, nusc):
    """P6, P28, P32: corners, classes and order of the sizes."""
    compared = 0
    infos = infos_of(nuscenes_root)
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
    """The fallback finds the same objects, up to a degree and its cut boxes."""
    angles, compared = [], 0
    for info in infos_of(nuscenes_root)["data_list"]:
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
    infos = infos_of(nuscenes_root)
    again = copy.deepcopy(infos)
    extend_infos(again, nusc)
    assert pickle.dumps(again) == pickle.dumps(infos) or str(again) == str(infos)


def test_infos_of_other_tables_are_refused(nuscenes_root, nusc):
    infos = infos_of(nuscenes_root)
    infos["data_list"][0]["token"] = "unknown"
    with pytest.raises(ValueError, match="have no sample unknown"):
        extend_infos(infos, nusc)
    infos["metainfo"]["version"] = "v1.0-trainval"
    with pytest.raises(ValueError, match=r"infos are of v1\.0-trainval, the tables of v1\.0-mini"):
        extend_infos(infos, nusc)


def test_training_samples(nuscenes_root):
    """P4, P7, P26, and that what the model gets fits together."""
    data = dataset(nuscenes_root, frames=(-1, 0, 1))
    empty = [
        i for i, info in enumerate(infos_of(nuscenes_root)["data_list"]) if not info["instances"]
    ]
    assert [data.prepare_data(index) for index in empty] == [None] * len(empty)
    for index in range(len(data)):
        packed = data[index]
        pixels, sample = packed["inputs"]["img"], packed["data_samples"]
        assert pixels.dtype == torch.uint8
        assert pixels.shape[:2] == (18, 3)
        assert sample.lidar2img.shape == (3, 6, 4, 4)
        assert (sample.gt_instances_3d.labels_3d >= 0).all()
        assert sample.gt_instances_3d.bboxes_3d.tensor.isfinite().all()
        mono = sample.gt_mono_instances
        assert len(mono)
        height, width = sample.img_shape
        limit = torch.tensor([width, height, width, height])
        assert ((mono.bboxes >= 0) & (mono.bboxes <= limit)).all()


def test_missing_frames(nuscenes_root):
    """P14: at both ends of the scene; a missing frame is zero."""
    data = dataset(nuscenes_root, "val", frames=(-2, 0, 1))
    valid = [data[index]["data_samples"].frame_valid for index in range(len(data))]
    assert valid == [
        *[(False, True, True)] * 2,
        *[(True, True, True)] * 3,
        (True, True, False),
    ]
    pixels = data[0]["inputs"]["img"]
    assert (pixels[:6] == 0).all()
    assert (pixels[6:] != 0).any()


def test_frames_share_what_is_drawn(nuscenes_root):
    """Size and flip; not the photometric distortion."""
    data = dataset(nuscenes_root, frames=(-1, 0))
    for _ in range(3):
        sample = data[1]["data_samples"]
        rows = sample.lidar2img
        # The intrinsics of one camera are the same in both: see the part that motion leaves alone.
        focal = [np.linalg.norm(np.cross(m[0, 0, :3], m[0, 2, :3])) for m in rows]
        assert focal[0] == pytest.approx(focal[1], rel=1e-5)


@pytest.mark.parametrize("height", [100, 225])
def test_crop_enters_the_intrinsics(nuscenes_root, height):
    """P11: a box's centre lies at the same part of its 2D box whatever the size."""
    data = dataset(
        nuscenes_root,
        "val",
        frame_pipeline=[
            dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
            dict(type="dcnv4_mm.ResizeCropFlipImage", heights=[height]),
        ],
    )
    sample, info = data[1]["data_samples"], infos_of(nuscenes_root, "val")["data_list"][1]
    original = np.array(info["images"]["CAM_FRONT"]["cam2img"])
    top = round(225 * 260 / 900)
    scale = height / (225 - top)
    pixel = original @ [1.0, 2.0, 10.0]
    expected = (pixel[:2] / pixel[2] - [0, top]) * scale
    moved = sample.cam2img[0] @ [1.0, 2.0, 10.0]
    assert moved[:2] / moved[2] == pytest.approx(expected)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 1.0)])
def test_augmented_objects_follow_the_matrix(nuscenes_root, flips):
    """P2, P3, P4: mmdet3d's boxes move, turn and drive as the BEV does."""
    from dcnv4_mm.bev.data.transforms import BEVAugmentation

    data = dataset(nuscenes_root, "val")
    before = ground_truth(data, 1).bboxes_3d
    after = before.clone()
    step = BEVAugmentation(max_angle=0.4, flip_prob=flips[0])
    matrix = step.transform(dict(gt_bboxes_3d=after))["bev_augmentation"]
    matrix = torch.from_numpy(matrix).float()
    torch.testing.assert_close(
        after.gravity_center, before.gravity_center @ matrix.T, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        after.tensor[:, 7:], before.tensor[:, 7:] @ matrix[:2, :2].T, rtol=1e-4, atol=1e-4
    )
    heading = torch.stack((before.yaw.cos(), before.yaw.sin()), -1) @ matrix[:2, :2].T
    turned = torch.stack((after.yaw.cos(), after.yaw.sin()), -1)
    torch.testing.assert_close(
        turned, heading / heading.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-4
    )


def changed_copy(root, target, change):
    """The info files alone, with a change; the images are found in the old place."""
    target.mkdir()
    infos = infos_of(root, "val")
    change(infos)
    (target / "infos.pkl").write_bytes(pickle.dumps(infos))
    return str(target / "infos.pkl")


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
        dataset(nuscenes_root, "val", ann_file=path)


def test_settings_that_do_not_fit(nuscenes_root):
    with pytest.raises(ValueError, match="frames must be ascending"):
        dataset(nuscenes_root, frames=(0, -1))
    with pytest.raises(ValueError, match="frames must be ascending"):
        dataset(nuscenes_root, frames=(-1, 1))
    with pytest.raises(ValueError, match="in alphabetical order"):
        dataset(nuscenes_root, metainfo=dict(classes=CLASSES[::-1], version="v1.0-mini"))
    with pytest.raises(ValueError, match="mono_source must be"):
        dataset(nuscenes_root, mono_source="boxes")


def test_scenes_can_be_guessed(nuscenes_root):
    data = dataset(nuscenes_root, "val", fallback_scene_split=True)
    tokens = [info["token"] for info in infos_of(nuscenes_root, "val")["data_list"]]
    found = [data.neighbour(0, k) for k in (-1, 1, 5, 6)]
    assert [f and f["token"] for f in found] == [None, tokens[1], tokens[5], None]


def frames_of(data):
    """Tokens of the frames before, at and after each sample, by the sample's token."""
    found = {}
    for index in range(len(data)):
        around = [data.neighbour(index, offset) for offset in (-1, 0, 1)]
        found[data.get_data_info(index)["token"]] = [f and f["token"] for f in around]
    return found


@pytest.mark.parametrize("indices", [4, 10**6, -3, [5, 0, 2], [5, 4, 3], [-1, 2]])
@pytest.mark.parametrize("serialize", [True, False])
def test_a_part_keeps_the_frames_of_the_whole(nuscenes_root, indices, serialize):
    """By `indices`, and as `get_subset` gives it; wherever they lie in the whole file."""
    settings = {"frames": (-1, 0, 1), "serialize_data": serialize}
    whole = dataset(nuscenes_root, **settings)
    expected, tokens = frames_of(whole), [*frames_of(whole)]
    part = dataset(nuscenes_root, indices=indices, **settings)
    if isinstance(indices, int):
        chosen = tokens[:indices] if indices >= 0 else tokens[indices:]
    else:
        chosen = [tokens[index] for index in indices]
    assert [*frames_of(part)] == chosen
    subset = whole.get_subset([tokens.index(token) for token in chosen])
    for found in (frames_of(part), frames_of(subset)):
        assert found == {token: expected[token] for token in chosen}


def test_a_concatenation_keeps_the_frames(nuscenes_root, monkeypatch):
    """Of parts of one file and of another file, through the samples that a loader gets."""
    settings = {"frames": (-1, 0, 1), "pipeline": [], "test_mode": True}
    expected = {}
    for split in ("train", "val"):
        expected |= frames_of(dataset(nuscenes_root, split, **settings))
    parts = [dataset(nuscenes_root, indices=part, **settings) for part in ([4, 0], [3, 1, 2])]
    joined = ConcatDataset([parts[0], dataset(nuscenes_root, "val", **settings), parts[1]])
    take = type(parts[0])
    monkeypatch.setattr(take, "_frame", lambda _, current, info, augmentation: info["token"])
    found = {sample["token"]: sample["frames"] for sample in map(joined.__getitem__, range(11))}
    assert len(joined) == len(found) == 11
    assert found == {token: expected[token] for token in found}


@pytest.mark.parametrize("content", [{"infos": [], "metadata": {}}, []])
def test_infos_of_mmdet3d_0_name_the_updater(nuscenes_root, tmp_path, content):
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"update_infos_to_v2\.py"):
        dataset(nuscenes_root, "val", ann_file=str(path))


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_damaged_images(nuscenes_root, tmp_path, ending):
    from dcnv4_mm.bev.data.transforms import LoadMultiViewImageFromFiles

    info = infos_of(nuscenes_root, "val")["data_list"][0]
    path = tmp_path / f"image{ending}"
    image = {**info["images"]["CAM_FRONT"], "img_path": str(path)}
    frame = dict(images={"CAM_FRONT": image}, augmentation={})
    with pytest.raises(FileNotFoundError, match="no image"):
        LoadMultiViewImageFromFiles()(dict(frame))
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8))
    assert LoadMultiViewImageFromFiles()(dict(frame))["imgs"][0].shape == (90, 160, 3)
    whole = path.read_bytes()
    for content in (whole[: len(whole) * 3 // 4], b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or truncated"):
            LoadMultiViewImageFromFiles()(dict(frame))


def test_prepare_names_what_is_missing(tmp_path, nuscenes_root):
    shutil.copytree(nuscenes_root / "v1.0-mini", tmp_path / "v1.0-mini")
    tool = ROOT / "tools" / "dataset_converters" / "prepare_nuscenes.py"
    result = subprocess.run(
        [sys.executable, tool, tmp_path, "--version=v1.0-mini"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "lacks maps, samples/CAM_FRONT," in result.stderr


def test_train_and_val_can_be_merged(nuscenes_root, tmp_path):
    """Every sample has its neighbours as in its own file."""
    for split in ("train", "val"):
        shutil.copy(nuscenes_root / f"bevformerv2_infos_{split}.pkl", tmp_path)
    tool = runpy.run_path(str(ROOT / "tools" / "dataset_converters" / "prepare_nuscenes.py"))
    both = dataset(nuscenes_root, "val", ann_file=str(tool["merge"](tmp_path)))
    parts = [dataset(nuscenes_root, split) for split in ("train", "val")]
    infos = [part.get_data_info(i) for part in parts for i in range(len(part))]
    assert [both.get_data_info(i)["token"] for i in range(len(both))] == [i["token"] for i in infos]
    first = len(parts[0])
    assert both[first]["data_samples"].frame_valid == parts[1][0]["data_samples"].frame_valid
    assert both[first]["data_samples"].sample_idx == first


def test_a_submission_of_the_test_set(nuscenes_root, tmp_path):
    """D3: from annotation-free infos to a file with all that the format demands."""

    def anonymous(infos):
        infos["metainfo"]["version"] = "v1.0-test"
        for info in infos["data_list"]:
            # As prepare_nuscenes.py writes them for v1.0-test.
            info.update(instances=[], mono_instances={})
            info.pop("cam_instances", None)

    path = changed_copy(nuscenes_root, tmp_path / "infos", anonymous)
    metainfo = dict(classes=CLASSES, version="v1.0-test")
    data = dataset(nuscenes_root, "val", ann_file=path, metainfo=metainfo)
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
    answers = dataset(nuscenes_root, "val")
    for index in range(len(data)):
        sample = data[index]["data_samples"]
        sample.pred_instances_3d = ground_truth(answers, index)
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


def test_other_cameras(nuscenes_root, tmp_path):
    """D11: any names and number, as the config says."""

    def three(infos):
        for info in infos["data_list"]:
            info["images"] = {
                f"RIG_{i}": info["images"][name] for i, name in enumerate(CAMERAS[:3])
            }

    path = changed_copy(nuscenes_root, tmp_path / "infos", three)
    prefix = {f"RIG_{i}": f"samples/{name}" for i, name in enumerate(CAMERAS[:3])}
    names = tuple(prefix)
    data = dataset(nuscenes_root, "val", ann_file=path, cameras=names, data_prefix=prefix)
    assert data[0]["inputs"]["img"].shape[0] == 3
    assert data[0]["data_samples"].lidar2img.shape[1] == 3


def test_infos_are_read_once(nuscenes_root, monkeypatch):
    """D12: a file of the training set is a gigabyte."""
    from dcnv4_mm.bev.data import infos as module

    reads = []
    monkeypatch.setattr(
        module, "load", lambda path, **kw: reads.append(path) or mmengine_load(path)
    )
    data = dataset(nuscenes_root, "val")
    assert len(reads) == 1
    evaluate(nuscenes_root, data, [ground_truth(data, i) for i in range(len(data))])
    assert len(reads) == 2
