"""The four classification configs have the settings of the originals.

The table holds the values of the original configs under their own names and timm's. ``translate``
expresses a config of this project in those names; every key of the table is compared, or stands in
``NO_COUNTERPART`` with the reason.
"""

import copy
import json
import math

import pytest
import torch
from helpers import build_model, hyperparameters

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mmengine.registry import PARAM_SCHEDULERS
from mmpretrain.registry import TRANSFORMS
from torch import nn

from dcnv4_mm.layers import DropPath

pytestmark = pytest.mark.mmpretrain

VALUES = hyperparameters("classification")
NO_COUNTERPART = {
    "family": "the table's own grouping",
    "model.type": "the table's own word",
    "amp.level": "an option of the original's command, here --amp",
    "amp.type": "as amp.level",
    "accumulation_steps": "0: none, mmengine's default",
    "augmentation.color_jitter": "ignored by timm where RandAugment is on",
    "augmentation.random_resized_crop": "the crop of the pipeline, which is compared, counts",
    "backbone.core_op": "this package has one operator",
    "backbone.drop_rate": "a dropout that the original builds and never applies",
    "backbone.level2_post_norm": "InternImage's options, off",
    "backbone.level2_post_norm_block_ids": "InternImage's options, off",
    "backbone.res_post_norm": "InternImage's options, off",
    "backbone.use_clip_projector": "InternImage's options, off",
    "backbone.pretrained_file": "none is named; L starts from the released file of ImageNet-22k",
    "data.num_gpus_commented": "not recorded",
    "data.total_batch_commented": "not recorded",
    "schedule.runner": "not recorded",
}
OPS = {
    "ColorTransform": "ColorIncreasing",
    "Contrast": "ContrastIncreasing",
    "Brightness": "BrightnessIncreasing",
    "Sharpness": "SharpnessIncreasing",
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
}
DIRECTED = {
    ("Shear", "horizontal"): "ShearX",
    ("Shear", "vertical"): "ShearY",
    ("Translate", "horizontal"): "TranslateXRel",
    ("Translate", "vertical"): "TranslateYRel",
}


@pytest.fixture(scope="module", params=VALUES, ids=lambda name: name.split("image_")[1])
def case(request):
    """The original's name, its values, our config and the model built from it."""
    model, config = build_model(request.param, device="meta")
    return request.param, VALUES[request.param], config, model


def translate(cfg, model):
    """A config of this project in the flat names of the table."""
    return {
        **translate_training(cfg),
        **translate_data(cfg),
        **translate_augmentation(cfg),
        **translate_model(cfg, model),
    }


def translate_training(cfg):
    wrapper, (warmup, cosine) = cfg.optim_wrapper, cfg.param_scheduler
    optimizer, paramwise = wrapper.optimizer, wrapper.paramwise_cfg
    ema = next(hook for hook in cfg.custom_hooks if hook.type == "mmpretrain.EMAHook")
    decays = "layer_decay_rate" in paramwise
    assert paramwise.recipe == "classification"
    assert warmup.convert_to_iter_based
    assert (warmup.begin, warmup.end) == (0, cosine.begin)
    assert cosine.end == cfg.train_cfg.max_epochs
    lowest = cosine.get("eta_min", cosine.get("eta_min_ratio", 0) * optimizer.lr)
    return {
        "optimizer.type": optimizer.type,
        "optimizer.lr": optimizer.lr,
        "optimizer.lr_reference_batch": cfg.auto_scale_lr.base_batch_size,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.betas": list(optimizer.betas),
        "optimizer.eps": optimizer.eps,
        "optimizer.layer_decay.enabled": decays,
        "optimizer.layer_decay.layer_decay_rate": paramwise.get("layer_decay_rate"),
        "optimizer.layer_decay.offset_lr_scale": paramwise.get("offset_lr_scale"),
        "grad_clip.max_norm": wrapper.clip_grad.max_norm,
        "grad_clip.norm_type": wrapper.clip_grad.get("norm_type", 2),
        "schedule.policy": {"CosineAnnealingLR": "cosine"}[cosine.type],
        "schedule.by_epoch": not cosine.convert_to_iter_based,
        "schedule.max_epochs": cfg.train_cfg.max_epochs,
        "schedule.warmup": {"LinearLR": "linear"}[warmup.type],
        "schedule.warmup_epochs": warmup.end,
        # mmengine cannot begin at 0.
        "schedule.warmup_lr": round(warmup.start_factor * optimizer.lr, 10),
        "schedule.min_lr": round(lowest, 10),
        "ema.enabled": True,
        "ema.decay": 1 - ema.momentum,
        "evaluation.interval": cfg.train_cfg.val_interval,
        "evaluation.metric": [f"top{k}" for k in cfg.val_evaluator.topk],
        "checkpoint.interval": cfg.default_hooks.checkpoint.interval,
        "runtime.seed": cfg.randomness.seed,
    }


def translate_data(cfg):
    resize, crop = cfg.test_dataloader.dataset.pipeline[1:3]
    train, test = cfg.train_dataloader, cfg.test_dataloader
    normalize = [
        ["ToTensor", {}],
        [
            "Normalize",
            {k: [round(v / 255, 6) for v in cfg.data_preprocessor[k]] for k in ("mean", "std")},
        ],
    ]
    assert resize.backend == "pillow"
    assert cfg.data_preprocessor.to_rgb
    assert test == cfg.val_dataloader
    for pipeline in (train.dataset.pipeline, test.dataset.pipeline):
        assert pipeline[0].imdecode_backend == "pillow"
    return {
        "data.images_per_gpu": train.batch_size,
        "data.workers_per_gpu": train.num_workers,
        "data.image_size": resize.scale,
        "data.interpolation": resize.interpolation,
        "data.mean": normalize[1][1]["mean"],
        "data.std": normalize[1][1]["std"],
        "test.center_crop": crop.type == "CenterCrop",
        "data.test.pipeline": [
            [
                "Resize",
                {
                    "size": resize.scale,
                    "interpolation": resize.interpolation,
                    "short_side": resize.edge == "short",
                },
            ],
            ["CenterCrop", {"size": crop.crop_size}],
            *normalize,
        ],
        "data.train.pipeline": train_steps(train.dataset.pipeline, normalize),
    }


def train_steps(pipeline, normalize):
    """The steps of training by timm's names, with what mmpretrain adds by default."""
    steps = []
    for settings in pipeline[1:-1]:
        step = TRANSFORMS.build(settings)
        if settings.type == "RandomResizedCrop":
            steps.append(
                [
                    "RandomResizedCropAndInterpolation",
                    {
                        "size": list(step.scale),
                        "scale": list(step.crop_ratio_range),
                        "ratio": [round(ratio, 5) for ratio in step.aspect_ratio_range],
                        "interpolation": step.interpolation,
                    },
                ]
            )
        elif settings.type == "RandomFlip":
            assert settings.direction == "horizontal"
            steps.append(["RandomHorizontalFlip", {"p": settings.prob}])
        elif settings.type == "RandAugment":
            # timm fills with the mean and interpolates as the crop does.
            assert step.hparams == {"pad_val": [104, 116, 124], "interpolation": "bicubic"}
            ops = [
                [
                    DIRECTED.get((policy["type"], policy.get("direction")))
                    or OPS.get(policy["type"], policy["type"]),
                    transform.prob,
                    step.magnitude_level,
                    step.magnitude_std,
                ]
                for policy, transform in zip(step.policies, step.transforms, strict=True)
            ]
            config = f"rand-m{step.magnitude_level}-mstd{step.magnitude_std}-inc1"
            steps.append(
                [
                    "RandAugment",
                    {"num_layers": step.num_policies, "config_string": config, "ops": ops},
                ]
            )
        else:
            assert settings.type == "RandomErasing"
    erasing = [erasing_step(s) for s in pipeline if s.type == "RandomErasing"]
    # mmpretrain erases before it normalises, with pixels of the same distribution.
    return [*steps, *normalize, *erasing]


def erasing_step(settings):
    step = TRANSFORMS.build(settings)
    assert step.mode == "rand"
    assert step.aspect_range == pytest.approx((0.3, 1 / 0.3))
    assert step.fill_color == [103.53, 116.28, 123.675]
    assert step.fill_std == [57.375, 57.12, 58.395]
    return [
        "RandomErasing",
        {
            "probability": step.erase_prob,
            "min_area": step.min_area_ratio,
            "max_area": round(step.max_area_ratio, 6),
            # As timm's float64 has the second.
            "aspect": [step.aspect_range[0], 3.333333333333334],
            "mode": {"rand": "pixel"}[step.mode],
            "min_count": 1,
            "max_count": 1,
        },
    ]


def translate_augmentation(cfg):
    pipeline = cfg.train_dataloader.dataset.pipeline
    erase = next((s for s in pipeline if s.type == "RandomErasing"), None)
    batch = cfg.model.train_cfg
    alphas = {augment.type: augment.alpha for augment in batch.augments} if batch else {}
    # Without `probs` one of the two is drawn for every batch, with equal chances.
    assert not batch or list(batch) == ["augments"]
    return {
        "augmentation.auto_augment": "rand-m9-mstd0.5-inc1",
        "augmentation.random_erase_prob": erase.erase_prob if erase else 0.0,
        "augmentation.random_erase_mode": "pixel",
        "augmentation.random_erase_count": 1,
        "augmentation.mixup_alpha": alphas.get("Mixup", 0.0),
        "augmentation.cutmix_alpha": alphas.get("CutMix", 0.0),
        "augmentation.cutmix_minmax": None,
        "augmentation.mixup_prob": 1.0,
        "augmentation.mixup_switch_prob": 0.5,
        "augmentation.mixup_mode": "batch",
    }


def translate_model(cfg, model):
    backbone, arch, head = model.backbone, model.backbone.arch, cfg.model.head
    blocks = [block for level in backbone.levels for block in level.blocks]
    rates = [cfg.model.backbone.drop_path_rate * i / (len(blocks) - 1) for i in range(len(blocks))]
    assert [m.rate for m in backbone.modules() if isinstance(m, DropPath)] == pytest.approx(rates)
    assert (head.loss.type, head.loss.mode) == ("LabelSmoothLoss", "original")
    assert (blocks[0].gamma1 is None) == (cfg.model.backbone.layer_scale is None)
    return {
        "loss.label_smoothing": head.loss.label_smooth_val,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "head.num_classes": model.head.head.out_features,
        "head.features": model.head.head.in_features,
        "head.cls_scale": model.head.head.in_features / backbone.out_channels[-1],
        "backbone.channels": arch.channels,
        "backbone.depths": list(arch.depths),
        "backbone.groups": list(arch.groups),
        "backbone.layer_scale": cfg.model.backbone.layer_scale,
        "backbone.offset_scale": arch.offset_scale,
        "backbone.mlp_ratio": arch.mlp_ratio,
        "backbone.post_norm": arch.post_norm,
        "backbone.dw_kernel_size": arch.dw_kernel_size,
        "backbone.center_feature_scale": arch.center_feature_scale,
        "backbone.mlp_fc2_bias": arch.mlp_fc2_bias,
        "backbone.dcn_output_bias": arch.dcn_output_bias,
        "backbone.drop_path_rate": cfg.model.backbone.drop_path_rate,
        "backbone.drop_path_type": "linear",
        "backbone.with_cp": backbone.with_cp,
    }


def test_values_equal_the_originals(case):
    _, values, cfg, model = case
    ours = json.loads(json.dumps(translate(cfg, model)))
    compared = {k: v for k, v in values.items() if k not in NO_COUNTERPART}
    assert set(compared) - set(ours) == set()
    assert {k: ours[k] for k in compared} == compared


def test_learning_rate_warms_up_and_falls_by_iteration(case):
    _, values, cfg, _ = case
    length, lr, lowest = 10, values["optimizer.lr"], values["schedule.min_lr"]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = []
    for settings in copy.deepcopy(cfg.param_scheduler):
        kind = PARAM_SCHEDULERS.get(settings.pop("type"))
        assert settings.pop("convert_to_iter_based")
        schedulers.append(kind.build_iter_from_epoch(optimizer, epoch_length=length, **settings))
    warm = values["schedule.warmup_epochs"] * length
    end = values["schedule.max_epochs"] * length
    for iteration in range(end):
        if iteration < warm:
            # mmengine has the full rate in the last of the warm-up's iterations.
            share = iteration / (warm - 1)
            expected = values["schedule.warmup_lr"] * (1 - share) + lr * share
        else:
            angle = math.pi * (iteration - warm) / (end - warm)
            expected = lowest + (lr - lowest) * (1 + math.cos(angle)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-5, abs=1e-12)
        for scheduler in schedulers:
            scheduler.step()
