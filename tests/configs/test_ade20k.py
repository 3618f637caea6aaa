"""The eight ADE20K configs have the settings of the originals.

As for Mask R-CNN: the table holds the values of the original configs under the names of their
libraries (mmseg 0, mmcv 1), ``mmseg_names.py`` expresses a config of this project in those names;
every key of the table is compared, or stands in ``NO_COUNTERPART`` with the reason.
"""

import json

import pytest
import torch

pytest.importorskip("mmseg", reason="mmseg is not installed")

from configs.mmseg_names import DECODER_LAYER, ENCODER_LAYER, translate
from helpers import build_model, hyperparameters
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmseg.registry import TRANSFORMS
from torch import nn

from configs import original_names

pytestmark = [pytest.mark.mmseg, pytest.mark.mmdet]

VALUES = hyperparameters("upernet", "mask2former")
NO_COUNTERPART = {
    **original_names.NO_COUNTERPART,
    **{
        f"data.{phase}.{key}": "detection only"
        for phase in ("train", "val", "test")
        for key in ("ann_file", "img_prefix")
    },
    "model_leftover.pretrained": "a leftover of a base file that has no effect",
    **{f"ema.{key}": "no EMA" for key in ("momentum", "total_iter", "priority")},
    **{f"ema.{key}": "no EMA" for key in ("skip_buffers", "interval")},
}
NO_COUNTERPART_MASK2FORMER = {
    "model.train_cfg.sampler.type": "here the head's own, compared below",
    **{
        f"model.test_cfg.{key}": "leftovers of panoptic segmentation; inference is semantic"
        for key in (
            *("panoptic_on", "semantic_on", "instance_on"),
            *("max_per_image", "iou_thr", "filter_low_score"),
        )
    },
    "model.init_cfg": "none",
    "model.decode_head.in_index": "the original's head takes all maps, and so does mmdet's",
    f"{ENCODER_LAYER}.operation_order": "fixed in mmdet 3; the recorded outputs show it",
    f"{ENCODER_LAYER}.attn_cfgs.use_softmax": "the unpublished variant without softmax alone",
    f"{DECODER_LAYER}.operation_order": "fixed in mmdet 3; the recorded outputs show it",
    f"{DECODER_LAYER}.feedforward_channels": "set twice; the other is compared",
    f"{ENCODER_LAYER}.attn_cfgs.batch_first": "a layout",
    f"{DECODER_LAYER}.attn_cfgs.batch_first": "a layout",
    f"{ENCODER_LAYER}.ffn_cfgs.with_cp": "checkpointing, off; mmdet 3 has no such option",
    f"{DECODER_LAYER}.ffn_cfgs.with_cp": "checkpointing, off",
}


@pytest.fixture(scope="module", params=VALUES, ids=lambda stem: stem.removesuffix("_ss"))
def case(request):
    """The original's name, its values, our config and the model built from it."""
    model, cfg = build_model(request.param)
    # Only its settings are compared.
    return request.param, VALUES[request.param], cfg, model


def test_values_equal_the_originals(case):
    stem, values, cfg, model = case
    ours = json.loads(json.dumps(translate(cfg, model)))
    reasons = dict(NO_COUNTERPART)
    if stem.startswith("mask2former"):
        reasons |= NO_COUNTERPART_MASK2FORMER
    assert set(reasons) <= set(values)
    compared = {k: v for k, v in values.items() if k not in reasons}
    assert set(compared) - set(ours) == set()
    assert {k: ours[k] for k in compared} == compared
    # Nothing in the model section that the original does not have.
    assert {k for k in ours if k.startswith("model.")} <= set(values)


def test_copies_for_testing_are_scaled_as_in_the_original(case):
    """mmseg 0 scales the range of sizes; it turns each copy, and rounds sizes as in testing."""
    _, values, cfg, _ = case
    assert cfg.tta_model.type == "SegTTAModel"
    load, augment = cfg.tta_pipeline
    sizes, *others = augment.transforms
    ((_, test),) = values["data.test.pipeline"][1:]
    long, short = test["img_scale"]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert load == {"type": "LoadImageFromFile"}
    assert [size.scale for size in sizes] == [(int(long * r), int(short * r)) for r in ratios]
    assert all(size.type == "Resize" and size.keep_ratio for size in sizes)
    multiple = [[s] for s in cfg.test_dataloader.dataset.pipeline if s.type == "ResizeToMultiple"]
    assert others[: len(multiple)] == multiple
    assert [flip.prob for flip in others[len(multiple)]] == [0.0, 1.0]
    labels = [s for s in cfg.test_dataloader.dataset.pipeline if "Annotations" in s.type]
    assert others[len(multiple) + 1 :] == [labels, [{"type": "PackSegInputs"}]]


def test_learning_rate_follows_the_original_formula(case):
    """To the end of the training; every iteration of the warm-up, then every hundredth."""
    _, values, cfg, _ = case
    lr, iterations = values["optimizer.lr"], values["schedule.max_iters"]
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr * s} for s in (1.0, 0.0952)]
    optimizer = torch.optim.AdamW(groups)
    (scheduler,) = (
        PARAM_SCHEDULERS.build({"optimizer": optimizer, **scheduler})
        for scheduler in cfg.param_scheduler
    )
    for iteration in range(iterations):
        if iteration < 1510 or iteration % 100 == 0 or iteration > iterations - 10:
            factor = (1 - iteration / iterations) ** values["schedule.power"]
            if iteration < values["schedule.warmup_iters"]:
                missing = 1 - iteration / values["schedule.warmup_iters"]
                factor *= 1 - missing * (1 - values["schedule.warmup_ratio"])
            for group, scale in zip(optimizer.param_groups, (1.0, 0.0952), strict=True):
                assert abs(group["lr"] - lr * scale * factor) <= 1e-12 * lr, iteration
        scheduler.step()


def test_one_process_has_no_synchronised_norms():
    """As mmengine's runner does for non-distributed training, so that it works on a CPU."""
    model, _ = build_model("upernet_flash_internimage_t_512_160k_ade20k", device="meta")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in revert_sync_batchnorm(model).modules())


def test_optimizer_can_be_built(case):
    _, values, cfg, model = case
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in parameters) == values["num_parameters"]


def test_every_transform_can_be_built(case):
    _, _, cfg, _ = case
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline):
        for step in (*pipeline, cfg.tta_pipeline[1]):
            TRANSFORMS.build(step)
