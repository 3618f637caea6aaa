"""BEVFormerV2's dataset and pipeline on the synthetic nuScenes."""

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.synthetic_samples import build_dataset, changed_copy, ground_truth, load_infos
from mmengine.dataset import ConcatDataset
from nuscenes.utils.geometry_utils import BoxVisibility

from dcnv4_mm.bev.data.dataset import CAMERAS, CLASSES


def test_samples_are_in_the_order_of_the_file(nuscenes_root):
    data, infos = build_dataset(nuscenes_root, "val"), load_infos(nuscenes_root, "val")
    tokens = [data[index]["data_samples"].token for index in range(len(data))]
    assert tokens == [info["token"] for info in infos["data_list"]]


def test_lidar_to_image_is_that_of_the_devkit(nuscenes_root, nusc):
    """Centres of static objects in all cameras, now and half a second ago."""
    data = build_dataset(
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


def test_training_samples(nuscenes_root):
    """Shapes, types and labels of what the model gets fit together."""
    data = build_dataset(nuscenes_root, frames=(-1, 0, 1))
    empty = [
        i for i, info in enumerate(load_infos(nuscenes_root)["data_list"]) if not info["instances"]
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
    """At both ends of the scene; a missing frame is zero."""
    data = build_dataset(nuscenes_root, "val", frames=(-2, 0, 1))
    valid = [data[index]["data_samples"].frame_valid for index in range(len(data))]
    assert valid == [
        *[(False, True, True)] * 2,
        *[(True, True, True)] * 3,
        (True, True, False),
    ]
    pixels = data[0]["inputs"]["img"]
    assert (pixels[:6] == 0).all()
    assert (pixels[6:] != 0).any()


def test_frames_have_one_augmentation(nuscenes_root):
    """Size and flip, but not the photometric distortion."""
    data = build_dataset(nuscenes_root, frames=(-1, 0))
    for _ in range(3):
        sample = data[1]["data_samples"]
        rows = sample.lidar2img
        # The intrinsics of one camera are the same in both: see the part that motion leaves alone.
        focal = [np.linalg.norm(np.cross(m[0, 0, :3], m[0, 2, :3])) for m in rows]
        assert focal[0] == pytest.approx(focal[1], rel=1e-5)


@pytest.mark.parametrize("height", [100, 225])
def test_crop_enters_the_intrinsics(nuscenes_root, height):
    """A box's centre lies at the same part of its 2D box whatever the size."""
    data = build_dataset(
        nuscenes_root,
        "val",
        frame_pipeline=[
            dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
            dict(type="dcnv4_mm.ResizeCropFlipImage", heights=[height]),
        ],
    )
    sample, info = data[1]["data_samples"], load_infos(nuscenes_root, "val")["data_list"][1]
    original = np.array(info["images"]["CAM_FRONT"]["cam2img"])
    top = round(225 * 260 / 900)
    scale = height / (225 - top)
    pixel = original @ [1.0, 2.0, 10.0]
    expected = (pixel[:2] / pixel[2] - [0, top]) * scale
    moved = sample.cam2img[0] @ [1.0, 2.0, 10.0]
    assert moved[:2] / moved[2] == pytest.approx(expected)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 1.0)])
def test_augmented_objects_follow_the_matrix(nuscenes_root, flips):
    """Boxes of mmdet3d move, turn and drive as the BEV does."""
    from dcnv4_mm.bev.data.transforms import BEVAugmentation

    data = build_dataset(nuscenes_root, "val")
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


def test_settings_that_do_not_fit(nuscenes_root):
    with pytest.raises(ValueError, match="frames must be ascending"):
        build_dataset(nuscenes_root, frames=(0, -1))
    with pytest.raises(ValueError, match="frames must be ascending"):
        build_dataset(nuscenes_root, frames=(-1, 1))
    with pytest.raises(ValueError, match="in alphabetical order"):
        build_dataset(nuscenes_root, metainfo=dict(classes=CLASSES[::-1], version="v1.0-mini"))
    with pytest.raises(ValueError, match="mono_source must be"):
        build_dataset(nuscenes_root, mono_source="boxes")


def test_scenes_can_be_guessed(nuscenes_root):
    data = build_dataset(nuscenes_root, "val", fallback_scene_split=True)
    tokens = [info["token"] for info in load_infos(nuscenes_root, "val")["data_list"]]
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
def test_a_subset_keeps_its_frames(nuscenes_root, indices, serialize):
    """By `indices`, and as `get_subset` gives it; wherever they lie in the file."""
    settings = {"frames": (-1, 0, 1), "serialize_data": serialize}
    complete = build_dataset(nuscenes_root, **settings)
    expected, tokens = frames_of(complete), [*frames_of(complete)]
    part = build_dataset(nuscenes_root, indices=indices, **settings)
    if isinstance(indices, int):
        chosen = tokens[:indices] if indices >= 0 else tokens[indices:]
    else:
        chosen = [tokens[index] for index in indices]
    assert [*frames_of(part)] == chosen
    subset = complete.get_subset([tokens.index(token) for token in chosen])
    for found in (frames_of(part), frames_of(subset)):
        assert found == {token: expected[token] for token in chosen}


def test_a_concatenation_keeps_the_frames(nuscenes_root, monkeypatch):
    """Subsets of one file and another file, by the samples that a loader gets."""
    settings = {"frames": (-1, 0, 1), "pipeline": [], "test_mode": True}
    expected = {}
    for split in ("train", "val"):
        expected |= frames_of(build_dataset(nuscenes_root, split, **settings))
    parts = [build_dataset(nuscenes_root, indices=part, **settings) for part in ([4, 0], [3, 1, 2])]
    joined = ConcatDataset([parts[0], build_dataset(nuscenes_root, "val", **settings), parts[1]])
    take = type(parts[0])
    monkeypatch.setattr(take, "_frame", lambda _, current, info, augmentation: info["token"])
    found = {sample["token"]: sample["frames"] for sample in map(joined.__getitem__, range(11))}
    assert len(joined) == len(found) == 11
    assert found == {token: expected[token] for token in found}


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_damaged_images(nuscenes_root, tmp_path, ending):
    from dcnv4_mm.bev.data.transforms import LoadMultiViewImageFromFiles

    info = load_infos(nuscenes_root, "val")["data_list"][0]
    path = tmp_path / f"image{ending}"
    image = {**info["images"]["CAM_FRONT"], "img_path": str(path)}
    frame = dict(images={"CAM_FRONT": image}, augmentation={})
    with pytest.raises(FileNotFoundError, match="no image"):
        LoadMultiViewImageFromFiles()(dict(frame))
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8))
    assert LoadMultiViewImageFromFiles()(dict(frame))["imgs"][0].shape == (90, 160, 3)
    complete = path.read_bytes()
    for content in (complete[: len(complete) * 3 // 4], b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or truncated"):
            LoadMultiViewImageFromFiles()(dict(frame))


def test_other_cameras(nuscenes_root, tmp_path):
    """Any names and number, as the config says."""

    def keep_three(infos):
        for info in infos["data_list"]:
            info["images"] = {
                f"RIG_{i}": info["images"][name] for i, name in enumerate(CAMERAS[:3])
            }

    path = changed_copy(nuscenes_root, tmp_path / "infos", keep_three)
    prefix = {f"RIG_{i}": f"samples/{name}" for i, name in enumerate(CAMERAS[:3])}
    names = tuple(prefix)
    data = build_dataset(nuscenes_root, "val", ann_file=path, cameras=names, data_prefix=prefix)
    assert data[0]["inputs"]["img"].shape[0] == 3
    assert data[0]["data_samples"].lidar2img.shape[1] == 3
