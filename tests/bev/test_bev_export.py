"""BEVFormer v2 as one function whose history goes in and comes out."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from bev.samples import surround_cameras
from bev.small_detector import CHANNELS, SIZE, build, images, sample
from helpers import ROOT

from dcnv4_mm.export.wrappers import Boxes3D

FRAMES = (-2, 0, 1)
COUNT = 5


@pytest.fixture(scope="module")
def detector():
    return build(frames=len(FRAMES)).eval()


@pytest.fixture(scope="module")
def drive():
    """Images and poses of some frames, of a car that turns as it drives."""
    poses = np.tile(np.eye(4), (COUNT, 1, 1))
    for step in range(COUNT):
        cos, sin = np.cos(0.1 * step), np.sin(0.1 * step)
        poses[step, :2, :2] = [[cos, -sin], [sin, cos]]
        poses[step, :2, 3] = [0.3 * step, 2.0 * step]
    return images(frames=COUNT).unflatten(1, (COUNT, -1)), poses


def projections(poses, current, offsets):
    """From the current LiDAR frame to the pixels of each frame, and which of them exist."""
    cameras = surround_cameras(SIZE).double().numpy()
    exists = [0 <= current + offset < COUNT for offset in offsets]
    frames = [current + offset if e else current for offset, e in zip(offsets, exists, strict=True)]
    return np.stack([cameras @ np.linalg.inv(poses[k]) @ poses[current] for k in frames]), exists


def expected(detector, drive, current, offsets, known):
    """The detector's own boxes and scores, with the frames that are known."""
    pixels, poses = drive
    matrices, exists = projections(poses, current, offsets)
    exists = [e and offset <= known for offset, e in zip(offsets, exists, strict=True)]
    frames = [
        pixels[:, current + offset] if e else torch.zeros_like(pixels[:, 0])
        for offset, e in zip(offsets, exists, strict=True)
    ]
    packed = sample(frames=offsets, valid=tuple(exists))
    packed.set_metainfo(dict(lidar2img=matrices))
    logits, codes = detector._forward(dict(imgs=torch.cat(frames, dim=1)), [packed])
    return detector.pts_bbox_head.coder.boxes(codes[-1]), logits[-1].sigmoid()


@pytest.mark.parametrize("online", [False, True])
@torch.no_grad()
def test_a_loop_over_frames_equals_the_detector(detector, drive, online):
    pixels, poses = drive
    program = Boxes3D(detector, FRAMES, online=online)
    delay = 0 if online else FRAMES[-1]
    history = [torch.zeros_like(x) for x in program.examples(1, *SIZE, torch.Generator())[3:]]
    for newest in range(COUNT):
        current = max(newest - delay, 0)
        matrices, exists = projections(poses, current, program.offsets)
        inputs = (pixels[:, newest], torch.tensor(matrices[None], dtype=torch.float32))
        boxes, scores, *history = program(*inputs, torch.tensor([exists]), *history).values()
        if newest < delay:
            continue
        for ours, plain in zip(
            (boxes, scores), expected(detector, drive, current, FRAMES, delay), strict=True
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert [len(program.offsets), program.history_length] == ([2, 2] if online else [3, 3])


@torch.no_grad()
def test_the_loop_of_the_page(drive, monkeypatch, capsys):
    """In place of a file, onnxruntime runs the function itself."""
    page = (ROOT / "docs" / "export.md").read_text()
    section = page.split("\n## BEVFormer v2 frame by frame\n")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    for published, small in ((256, CHANNELS), (640, SIZE[0]), (1600, SIZE[1]), ("> 0.3", "> 0")):
        assert str(published) in block
        block = block.replace(str(published), str(small))
    detector = build(frames=2).eval()
    program, found = Boxes3D(detector, (-1, 0)), []
    names = ["images", "lidar_to_image", "exists", *(f"history_{i}" for i in range(4))]

    def run(outputs, inputs):
        assert list(inputs) == names
        results = program(*map(torch.from_numpy, inputs.values())).values()
        found.append(list(results)[:2])
        return [tensor.numpy() for tensor in results]

    nodes = [SimpleNamespace(name=name) for name in names]
    session = SimpleNamespace(get_inputs=lambda: nodes, run=run)
    fake = SimpleNamespace(InferenceSession=lambda path: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    cameras = surround_cameras(SIZE).double().numpy()
    frames = zip(drive[0][0].numpy(), [cameras] * COUNT, drive[1], strict=True)
    exec(block, dict(drive=frames))
    assert len(found) == COUNT
    assert capsys.readouterr().out
    for current, results in enumerate(found):
        plain = expected(detector, drive, current, (-1, 0), 0)
        for ours, own in zip(results, plain, strict=True):
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_frame_has_no_history():
    detector = build().eval()
    program = Boxes3D(detector, (0,))
    pixels, matrices = program.examples(1, *SIZE, torch.Generator().manual_seed(0))
    boxes, scores = program(pixels, matrices).values()
    packed = sample(frames=(0,))
    packed.set_metainfo(dict(lidar2img=matrices[0].numpy()))
    logits, codes = detector._forward(dict(imgs=pixels), [packed])
    torch.testing.assert_close(scores, logits[-1].sigmoid())
    torch.testing.assert_close(boxes, detector.pts_bbox_head.coder.boxes(codes[-1]))


@pytest.mark.parametrize(
    ("settings", "fact"),
    [(dict(temporal_alignment="warp"), "warp"), (dict(num_proposal_queries=2), "proposal")],
)
def test_what_cannot_be_exported(settings, fact):
    with pytest.raises(ValueError, match=fact):
        Boxes3D(build(frames=3, **settings), (-1, 0, 1))
