"""The hosts' inferencers with configs of this package, found by name (docs/tools.md)."""

import importlib.util

import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def config(host, name):
    if importlib.util.find_spec(host) is None:
        pytest.skip(f"{host} is not installed")
    return get_config(f"dcnv4_mm::{name}.py", pretrained=True)


@pytest.mark.mmdet
def test_detection(tmp_path):
    cfg = config("mmdet", "quickstart/mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco")
    from mmdet.apis import DetInferencer
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    weights = MODELS.build(cfg.model).state_dict()
    # Beside tensors, as a training writes it: mmengine's own reader would refuse it.
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": weights, "meta": {"score": np.float64(0.5)}}, path)
    inferencer = DetInferencer(cfg, str(path), device="cpu", show_progress=False)
    for name, tensor in inferencer.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    (found,) = inferencer(IMAGE)["predictions"]
    assert {"labels", "scores", "bboxes", "masks"} <= set(found)


@pytest.mark.mmseg
def test_segmentation():
    cfg = config("mmseg", "quickstart/upernet_flash-internimage-nano_1xb8-500it_mini-ade20k")
    from mmseg.apis import MMSegInferencer

    names = {"classes": tuple("abcdef"), "palette": [[index] * 3 for index in range(6)]}
    inferencer = MMSegInferencer(cfg, device="cpu", **names)
    inferencer.show_progress = False
    assert inferencer(IMAGE)["predictions"].shape == IMAGE.shape[:2]


@pytest.mark.mmpretrain
def test_classification():
    cfg = config("mmpretrain", "classification/flash-internimage-t_4xb128-300e_in1k-224")
    from mmengine.registry import init_default_scope
    from mmpretrain import ImageClassificationInferencer

    # It keeps the scope of the previous model.
    init_default_scope("mmpretrain")
    assert cfg.model_path.endswith("/flash_intern_image_t_1k_224.pth")
    (found,) = ImageClassificationInferencer(cfg, pretrained=False, device="cpu")(IMAGE)
    assert found["pred_scores"].shape == (1000,)
