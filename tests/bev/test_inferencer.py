"""The inferencer: by name, what the model finds in samples of an info file, and their images."""

import re
import runpy
import sys
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from mmdet3d.registry import DATASETS, MODELS
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from dcnv4_mm.bev.drawing import draw_mosaic
from dcnv4_mm.bev.inferencer import MultiViewDet3DInferencer

NAME = "bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a model that has learned nothing, as a training writes it: tensors are not all."""
    init_default_scope("mmdet3d")
    torch.manual_seed(0)
    model = MODELS.build(get_config(f"dcnv4_mm::bevformerv2/{NAME}.py").model)
    path = tmp_path_factory.mktemp("weights") / "epoch_1.pth"
    torch.save(
        {
            "state_dict": model.state_dict(),
            "meta": {"mmengine_version": "0.10.7", "score": np.float64(0.5)},
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def infos(nuscenes_root):
    return nuscenes_root / "bevformerv2_infos_val.pkl"


@pytest.fixture(scope="module")
def inferencer(checkpoint, infos):
    return MultiViewDet3DInferencer(
        NAME, checkpoint, infos=infos, device="cpu", show_progress=False
    )


@pytest.fixture(scope="module")
def expected(checkpoint, nuscenes_root):
    """Function that gives a sample of the config's test set, and what the model finds there."""
    config = get_config(f"dcnv4_mm::bevformerv2/{NAME}.py")
    config.test_dataloader.dataset.data_root = f"{nuscenes_root}/"
    dataset = DATASETS.build(config.test_dataloader.dataset)
    model = MODELS.build(config.model).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])

    def find(index):
        sample = dataset[index]
        images, packed = sample["inputs"]["img"], sample["data_samples"]
        with torch.no_grad():
            (found,) = model.test_step(dict(inputs=dict(img=[images]), data_samples=[packed]))
        return sample, found.pred_instances_3d

    return find


def test_boxes_of_several_samples(inferencer, expected, tmp_path):
    """In the requested order; with an image of each."""
    indexes = [4, 0, 2]
    result = inferencer(indexes, out_dir=tmp_path / "new" / "found")
    assert result["visualization"] is None
    for index, found in zip(indexes, result["predictions"], strict=True):
        alone = expected(index)[1]
        assert len(alone.scores_3d) > 0
        assert found["scores_3d"] == alone.scores_3d.tolist()
        assert found["bboxes_3d"] == alone.bboxes_3d.tensor.tolist()
        assert found["labels_3d"] == alone.labels_3d.tolist()
    names = sorted(path.name for path in (tmp_path / "new" / "found").iterdir())
    assert names == ["00000.jpg", "00002.jpg", "00004.jpg"]
    assert cv2.imread(str(tmp_path / "new" / "found" / names[0])).shape[1] > 3 * 640


def test_batches_do_not_matter(inferencer):
    """But for the order in which numbers are added."""
    single, batched = (inferencer([4, 0, 2], batch_size=n)["predictions"] for n in (1, 2))
    first = [prediction["scores_3d"][0] for prediction in single]
    assert [prediction["scores_3d"][0] for prediction in batched] == pytest.approx(first, abs=1e-6)
    assert min(abs(a - b) for a, b in zip(first, first[1:] + first[:1], strict=True)) > 1e-5


def test_images_hold_the_boxes_above_the_threshold(inferencer, expected):
    _, found = expected(1)
    threshold = found.scores_3d.median().item()
    kept = found[found.scores_3d >= threshold]
    assert 0 < len(kept) < len(found)
    result = inferencer(
        1, return_datasamples=True, return_vis=True, pred_score_thr=threshold - 1e-6
    )
    (image,) = result["visualization"]
    drawn = draw_mosaic(
        inferencer.views(1),
        kept,
        class_names=inferencer.dataset.metainfo["classes"],
        reach=25.6,
        title=inferencer.dataset.get_data_info(1)["token"],
    )
    assert np.array_equal(image, drawn)
    (prediction,) = result["predictions"]
    assert torch.equal(prediction.pred_instances_3d.labels_3d, found.labels_3d)


def test_streaming_is_the_same_as_samples_of_a_file(checkpoint, inferencer, expected):
    """From images, matrices and poses alone, one frame after the other; past frames only."""
    from dcnv4_mm.bev.streaming import StreamingDetector

    config = get_config(f"dcnv4_mm::bevformerv2/{NAME}.py")
    dataset = inferencer.dataset
    detector = StreamingDetector(config, checkpoint, device="cpu")
    backbone, calls = detector.model.img_backbone, []
    backbone.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    for index in dataset.scene(0)[:3]:
        info = dataset.get_data_info(index)
        cameras = {
            name: dict(
                img=cv2.imread(image["img_path"]),
                cam2img=np.array(image["cam2img"]),
                lidar2cam=np.array(image["lidar2cam"]),
            )
            for name, image in info["images"].items()
        }
        mount = np.array(info["lidar_points"]["lidar2ego"])
        found = detector(cameras, ego2global=np.array(info["ego2global"]), lidar2ego=mount)
        sample, _ = expected(index)
        packed = sample["data_samples"]
        # A stream knows no future.
        past = tuple(v and k <= 0 for k, v in zip(packed.frames, packed.frame_valid, strict=True))
        packed.set_metainfo(dict(frame_valid=past))
        data = dict(inputs=dict(img=[sample["inputs"]["img"]]), data_samples=[packed])
        detector.model.cache.clear()
        with torch.no_grad():
            (alone,) = detector.model.test_step(data)
        torch.testing.assert_close(found.scores_3d, alone.pred_instances_3d.scores_3d)
        torch.testing.assert_close(
            found.bboxes_3d.tensor,
            alone.pred_instances_3d.bboxes_3d.tensor,
            rtol=1e-4,
            atol=1e-4,
        )
    # Other cameras begin another scene.
    detector.reset()
    renamed = {f"RIG_{i}": camera for i, camera in enumerate(cameras.values())}
    first = detector(renamed, ego2global=np.eye(4), lidar2ego=mount)
    alone = StreamingDetector(config, checkpoint, device="cpu")
    again = alone(cameras, ego2global=np.array(info["ego2global"]), lidar2ego=mount)
    torch.testing.assert_close(first.scores_3d, again.scores_3d)


@pytest.fixture(scope="module")
def stream(checkpoint):
    from dcnv4_mm.bev.streaming import StreamingDetector

    config = get_config(f"dcnv4_mm::bevformerv2/{NAME}.py")
    return StreamingDetector(config, checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (dict(count=5), "expected 6.* got 5"),
        (dict(img=np.zeros((90, 160), np.uint8)), r"img of camera C0.*\(90, 160\)"),
        (dict(img=np.zeros((90, 160, 3))), "img of camera C0.*uint8.*float64"),
        (dict(cam2img=np.eye(4)), r"cam2img of camera C0.*\(3, 3\), got \(4, 4\)"),
        (dict(cam2img=np.full((3, 3), np.nan)), "cam2img of camera C0.*finite"),
        (dict(lidar2cam=np.eye(4)[:3]), r"lidar2cam of camera C0.*got \(3, 4\)"),
        (dict(lidar2cam=np.vander([1, 2, 3, 4.0])), "lidar2cam of camera C0.*last row"),
        (dict(lidar2cam=None), "camera C0: lidar2cam"),
        (dict(ego2global=np.eye(3)), r"ego2global.*got \(3, 3\)"),
        (dict(img=np.zeros((90, 200, 3), np.uint8)), r"2 sizes"),
    ],
)
def test_wrong_frames_of_a_stream(stream, change, facts):
    stream.reset()
    camera = dict(
        img=np.zeros((90, 160, 3), np.uint8), cam2img=np.eye(3), lidar2cam=np.eye(4, dtype=float)
    )
    change = dict(change)
    count, pose = change.pop("count", 6), change.pop("ego2global", np.eye(4))
    cameras = {f"C{i}": dict(camera) for i in range(count)}
    for key, value in change.items():
        if value is None:
            del cameras["C0"][key]
        else:
            cameras["C0"][key] = value
    with pytest.raises(ValueError, match=facts):
        stream(cameras, ego2global=pose)


def test_the_cameras_of_a_stream_stay(stream):
    stream.reset()
    camera = dict(img=np.zeros((90, 160, 3), np.uint8), cam2img=np.eye(3), lidar2cam=np.eye(4))
    names = [f"C{i}" for i in range(6)]
    assert stream(dict.fromkeys(names, camera), ego2global=np.eye(4)).scores_3d.isfinite().all()
    with pytest.raises(ValueError, match=r"C0, C1.* got C5, C4"):
        stream(dict.fromkeys(names[::-1], camera), ego2global=np.eye(4))


def test_a_rig_of_two_cameras():
    """Any number and names, as the model has."""
    from dcnv4_mm.bev.streaming import StreamingDetector

    config = get_config(f"dcnv4_mm::bevformerv2/{NAME}.py")
    config.model.pts_bbox_head.num_cameras = 2
    stream = StreamingDetector(config, None, device="cpu")
    intrinsics = np.array([[80.0, 0, 80], [0, 80, 45], [0, 0, 1]])
    front = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    rear = front @ np.diag([-1.0, -1, 1, 1])
    noise = np.random.default_rng(0).integers(0, 255, (2, 90, 160, 3), np.uint8)
    cameras = {
        name: dict(img=img, cam2img=intrinsics, lidar2cam=pose)
        for name, img, pose in zip(("AHEAD", "BEHIND"), noise, (front, rear), strict=True)
    }
    for step in range(2):
        pose = np.eye(4)
        pose[1, 3] = 2.0 * step
        found = stream(cameras, ego2global=pose)
        assert found.bboxes_3d.tensor.isfinite().all()
        assert len(found.scores_3d) == len(found.labels_3d) == len(found.bboxes_3d) > 0


def test_a_frame_goes_through_the_backbone_once(checkpoint, infos, expected):
    """And only so many are kept; the boxes stay the same."""
    build = partial(
        MultiViewDet3DInferencer, NAME, checkpoint, infos=infos, device="cpu", show_progress=False
    )
    images, results = [], []
    for cached in (None, 0):
        inferencer, calls = build(cached_frames=cached), []
        inferencer.model.img_backbone.register_forward_hook(
            lambda module, args, output, calls=calls: calls.append(len(args[0]))
        )
        results.append(inferencer(range(6))["predictions"])
        images.append(sum(calls) // 6)
        assert len(inferencer.model.cache) == (0 if cached == 0 else 3)
    # Six samples of three frames, but for those beyond both ends of the scene.
    assert images == [6, 16]
    for ours, plain in zip(*results, strict=True):
        assert ours["labels_3d"] == plain["labels_3d"]
        for name in ("scores_3d", "bboxes_3d"):
            np.testing.assert_allclose(ours[name], plain[name], rtol=1e-5, atol=1e-5)


def test_it_takes_a_config_as_well(checkpoint, nuscenes_root):
    """And the test set that this names."""
    config = get_config(f"dcnv4_mm::bevformerv2/{NAME}.py")
    config.test_dataloader.dataset.data_root = f"{nuscenes_root}/"
    inferencer = MultiViewDet3DInferencer(config, checkpoint, device="cpu", show_progress=False)
    assert len(inferencer(range(2))["predictions"]) == 2


@pytest.mark.parametrize("inputs", [6, -1, [0, 6], "0", [0.5]])
def test_what_is_no_sample(inferencer, inputs):
    with pytest.raises(ValueError, match="indexes from 0 to 5, got"):
        inferencer(inputs)


def test_what_cannot_be_built(checkpoint, infos, tmp_path):
    with pytest.raises(ValueError, match="give a config and a checkpoint"):
        MultiViewDet3DInferencer(None, checkpoint)
    with pytest.raises(ValueError, match="give a config and a checkpoint"):
        MultiViewDet3DInferencer(NAME, None)
    with pytest.raises(ValueError, match="Cannot find model: bevformer"):
        MultiViewDet3DInferencer("bevformer", checkpoint)
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, other)
    with pytest.raises(ValueError, match="does not fit this BEVFormerV2"):
        MultiViewDet3DInferencer(NAME, other, infos=infos)
    with pytest.raises(FileNotFoundError):
        MultiViewDet3DInferencer(NAME, checkpoint, infos=tmp_path / "none.pkl", device="cpu")


def test_the_stream_of_the_page(tmp_path, monkeypatch):
    config = get_config(f"dcnv4_mm::bevformerv2/{NAME}.py")
    config.model.pts_bbox_head.num_cameras = 1
    config.dump(tmp_path / "config.py")
    init_default_scope("mmdet3d")
    weights = dict(
        state_dict=MODELS.build(config.model).state_dict(), meta=dict(mmengine_version="0.10.7")
    )
    torch.save(weights, tmp_path / "epoch_24.pth")
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "docs" / "bev.md").read_text().split("\n## Images of your own cameras\n")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].replace("> 0.3", "> 0")
    mounting = np.eye(4)
    mounting[2, 3] = 1.84
    names = dict(
        image=np.zeros((90, 160, 3), np.uint8),
        intrinsics=np.array([[80.0, 0, 80], [0, 80, 45], [0, 0, 1]]),
        extrinsics=np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
        pose=np.eye(4),
        mounting=mounting,
    )
    exec(block, names)
    in_lidar_frame = names["near"].gravity_center.numpy()
    assert len(in_lidar_frame) > 0
    np.testing.assert_allclose(
        names["in_ego_frame"] - in_lidar_frame, [[0, 0, 1.84]] * len(in_lidar_frame), atol=1e-5
    )


@pytest.fixture
def demo(monkeypatch, capsys, nuscenes_root):
    """Function that runs the tool on the synthetic set, and gives what it prints."""
    data = f"test_dataloader.dataset.data_root={nuscenes_root}/"

    def run(*arguments):
        command = ["bev_demo.py", NAME, *map(str, arguments), "--cfg-options", data]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(ROOT / "tools" / "visualization" / "bev_demo.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_demo_draws_what_there_is_and_what_is_found(demo, checkpoint, inferencer, tmp_path):
    truth, found = tmp_path / "truth.png", tmp_path / "found.png"
    printed = demo("--ground-truth", "--index=2", "--out", truth)
    instances = inferencer.dataset.get_data_info(2)["instances"]
    # One of a class that the model does not know, and one without points.
    known = [i for i in instances if i["bbox_3d_isvalid"] and i["bbox_label_3d"] >= 0]
    assert f"{truth}: {len(known)} boxes" in printed
    printed = demo(checkpoint, "--index=2", "--score=0", "--out", found)
    result = inferencer(2, return_vis=True, pred_score_thr=0)
    assert f"{found}: {len(result['predictions'][0]['scores_3d'])} boxes" in printed
    assert np.array_equal(cv2.imread(str(found)), result["visualization"][0])
    assert not np.array_equal(cv2.imread(str(truth)), result["visualization"][0])


def test_the_demo_makes_a_video_of_a_scene(demo, tmp_path):
    path = tmp_path / "scene.gif"
    assert f"{path}: 6 samples" in demo("--ground-truth", "--scene", "--index=3", "--out", path)
    assert path.read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize("drawn", ["objects", "predictions"])
def test_the_demo_of_no_sample(demo, checkpoint, drawn):
    with pytest.raises(SystemExit, match=r"--index.* 0 to 5, got 99"):
        demo(checkpoint if drawn == "predictions" else "--ground-truth", "--index=99")
