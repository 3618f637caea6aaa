"""Files as the original project wrote them, evaluated by mim without any preparatory step."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, config_of, dino_weights, manifest, weights

pytestmark = [pytest.mark.mim, pytest.mark.mmdet]

MIM = Path(sys.executable).with_name("mim")
MASK_RCNN = "mask_rcnn_flash_intern_image_t_fpn_1x_coco"
# The one with averaged weights, and their hook.
CASCADE = "cascade_flash_intern_image_l_fpn_3x_coco"
DINO = "dino_4scale_flash_internimage_t_1x_coco"
FAMILY = {MASK_RCNN: "mask_rcnn", CASCADE: "cascade", DINO: "dino"}
OPTIONS = {
    "test_dataloader.num_workers": 0,
    "test_dataloader.persistent_workers": False,
}
# Random weights give only low scores.
ANY_SCORE = {"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 20}
SIZES = {MASK_RCNN: (256, 192), CASCADE: (160, 128), DINO: (384, 288)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    """A folder with mini COCO under the paths and names of COCO."""
    folder = tmp_path_factory.mktemp("released")
    generator = (sys.executable, ROOT / "dev/generators/mini_coco.py", "data/coco", "--as-coco")
    run(*generator, "--num-train", 2, "--num-val", 3, cwd=folder)
    return folder


def released_weights(original):
    if original == DINO:
        return dino_weights(DINO)
    return weights(manifest(FAMILY[original], original))


def write_released(original, tensors, path):
    """What mmcv's runner of the original stack wrote, from the manifest's names and order."""
    prefix = {MASK_RCNN: "module."}.get(original, "")
    stored = {prefix + name: tensor for name, tensor in tensors.items()}
    if original == CASCADE:
        # What its averaging hook has swapped out; one number's memory for each.
        for name, tensor in tensors.items():
            stored["ema_" + name.replace(".", "_")] = tensor.new_zeros(()).expand(tensor.shape)
    first = next(iter(tensors.values()))
    state = {"step": 7330, "exp_avg": torch.zeros_like(first), "exp_avg_sq": first**2}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "lr_scale": np.float64(0.5), "params": [0]}
    hook_messages = {"best_score": np.float64(0.48), "best_ckpt": "best_bbox_mAP_epoch_12.pth"}
    meta = {
        "epoch": 12,
        "iter": 87960,
        "mmcv_version": "1.5.0",
        "mmdet_version": "2.28.1+",
        "time": "Thu Nov 16 00:00:00 2023",
        "config": "model = dict()\n",
        "seed": None,
        "exp_name": f"{original}.py",
        "hook_msgs": hook_messages,
        "CLASSES": tuple(f"class {index}" for index in range(80)),
        "PALETTE": [(index, 0, 0) for index in range(80)],
        "env_info": "",
        "scores": np.arange(3.0),
    }
    optimizer = {"state": {0: state}, "param_groups": [group]}
    torch.save({"meta": meta, "state_dict": stored, "optimizer": optimizer}, path)


def evaluate_directly(original, options, tensors, folder):
    """Metrics and predictions of a model that is built here and filled in memory."""
    from mmdet.evaluation import DumpDetResults
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.runner import Runner

    from dcnv4_mm.checkpoints import load_released

    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(config_of(original))
    cfg.merge_from_dict(options)
    cfg.work_dir = str(folder / "direct")
    runner = Runner.from_cfg(cfg)
    load_released(runner.model, {"state_dict": tensors})
    path = folder / "direct.pkl"
    runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(path)))
    return runner.test(), pickle.loads(path.read_bytes())


# Cascade's 277 million parameters make a file of 1.1 GB.
@pytest.mark.parametrize(
    "original", [MASK_RCNN, DINO, pytest.param(CASCADE, marks=pytest.mark.slow)]
)
def test_released_file_is_evaluated_by_mim(run, folder, tmp_path, monkeypatch, original):
    monkeypatch.chdir(folder)
    tensors, path = released_weights(original), tmp_path / "released.pth"
    write_released(original, tensors, path)
    options = OPTIONS | ({} if original == DINO else ANY_SCORE)
    options["test_dataloader.dataset.pipeline.1.scale"] = SIZES[original]
    texts = [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]
    config, work = config_of(original).name, tmp_path / "work"
    command = [MIM, "test", "dcnv4_mm", config, "--checkpoint", path, "--gpus", "0"]
    command += ["--work-dir", work, "--out", tmp_path / "found.pkl", "--cfg-options", *texts]
    printed = run(*command, cwd=folder)
    path.unlink()
    assert "Testing finished successfully" in printed
    (log,) = work.glob("*/*.json")
    metrics, found = (
        json.loads(log.read_text()),
        pickle.loads((tmp_path / "found.pkl").read_bytes()),
    )

    expected_metrics, expected = evaluate_directly(original, options, tensors, tmp_path)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        one, other = one["pred_instances"], other["pred_instances"]
        assert len(one["scores"]) >= 20
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["scores"], other["scores"])
        torch.testing.assert_close(one["bboxes"], other["bboxes"], rtol=1e-4, atol=1e-3)
    metrics = {name: metrics[name] for name in expected_metrics}
    assert metrics == pytest.approx(expected_metrics, abs=1e-6, nan_ok=True)
    assert any("bbox_mAP" in name for name in metrics)
