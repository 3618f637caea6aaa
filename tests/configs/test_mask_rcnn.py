"""The six Mask R-CNN configs say what the original configs said.

The table holds the values of the original configs under the names of their libraries (mmdet 2,
mmcv 1). ``translate`` expresses a config of this project in those names; every key of the table is
compared, or stands in ``NO_COUNTERPART`` with the reason.
"""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from dcnv4_mm.layers import DropPath

pytestmark = pytest.mark.mmdet

ROOT = Path(__file__).resolve().parents[2]
TABLE = json.loads((ROOT / "tests" / "data" / "mask_rcnn_hyperparameters.json").read_text())
CONFIGS = {
    "mask_rcnn_flash_intern_image_t_fpn_1x_coco": "mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco",
    "mask_rcnn_flash_intern_image_s_fpn_1x_coco": "mask-rcnn_flash-internimage-s_fpn_8xb2-1x_coco",
    "mask_rcnn_flash_intern_image_b_fpn_1x_coco": "mask-rcnn_flash-internimage-b_fpn_8xb2-1x_coco",
    "mask_rcnn_flash_intern_image_t_fpn_3x_coco": "mask-rcnn_flash-internimage-t_fpn_32xb2-3x_coco",
    "mask_rcnn_flash_intern_image_s_fpn_3x_coco": "mask-rcnn_flash-internimage-s_fpn_8xb8-3x_coco",
    "mask_rcnn_flash_intern_image_b_fpn_3x_coco": "mask-rcnn_flash-internimage-b_fpn_16xb4-3x_coco",
}
NO_COUNTERPART = {
    "family": "the table's own grouping",
    "optimizer_config.type": "mmcv's hook around the step; here the optimizer wrapper",
    "data.num_nodes_commented": "a comment about the original cluster",
    "data.train.img_dir": "segmentation only",
    "data.train.ann_dir": "segmentation only",
    "data.val.img_dir": "segmentation only",
    "data.val.ann_dir": "segmentation only",
    "data.test.img_dir": "segmentation only",
    "data.test.ann_dir": "segmentation only",
    "data.train.data_root": "here the common part of the paths, which are compared joined",
    "data.val.data_root": "as for training",
    "data.test.data_root": "as for training",
    "backbone.drop_rate": "a dropout that the original builds and never applies",
    "backbone.level2_post_norm": "InternImage's options, off in every published DCNv4 model",
    "backbone.level2_post_norm_block_ids": "InternImage's options, off",
    "backbone.res_post_norm": "InternImage's options, off",
    "backbone.other_arguments": "none in the original; unknown arguments are an error here",
    "model.neck.use_residual": "the top-down sum; mmdet's FPN always has it",
    "ema.momentum": "no EMA (ema.type is compared)",
    "ema.total_iter": "no EMA",
    "ema.priority": "no EMA",
    "ema.skip_buffers": "no EMA",
    "ema.interval": "no EMA",
}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.split("image_")[1])
def case(request):
    """The original's name, its values, our config and the model built from it."""
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(ROOT / "configs" / "mask_rcnn" / f"{CONFIGS[request.param]}.py")
    model = MODELS.build(copy.deepcopy(cfg.model))
    values = {**TABLE["common"], **TABLE["configs"][request.param]}
    return request.param, values, cfg, model


def translate(cfg, model, stem):
    """A config of this project in the flat names of the table."""
    return {
        **translate_optimizer(cfg, model),
        **translate_schedule(cfg),
        **translate_data(cfg, stem),
        **translate_runtime(cfg),
        **translate_backbone(cfg, model),
        **translate_model(cfg, model),
    }


def translate_optimizer(cfg, model):
    wrapper = cfg.optim_wrapper
    paramwise = wrapper.paramwise_cfg
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = {k: v for k, v in wrapper.optimizer.items() if k != "type"}
    built = getattr(torch.optim, wrapper.optimizer.type)([parameter], **optimizer).defaults
    depths = list(model.backbone.arch.depths)
    names = {"dcnv4_mm.LayerDecayOptimWrapperConstructor": "CustomLayerDecayOptimizerConstructor"}
    clip = wrapper.get("clip_grad") or {}
    return {
        "optimizer.type": wrapper.optimizer.type,
        **{f"optimizer.{name}": built[name] for name in ("lr", "weight_decay", "eps")},
        "optimizer.betas": list(built["betas"]),
        "optimizer.constructor": names[wrapper.constructor],
        "optimizer.layer_decay.num_layers": sum(depths),
        "optimizer.layer_decay.depths": depths,
        "optimizer.layer_decay.layer_decay_rate": paramwise.layer_decay_rate,
        "optimizer.layer_decay.offset_lr_scale": paramwise.offset_lr_scale,
        "optimizer.custom_keys": paramwise.get("custom_keys"),
        "grad_clip.max_norm": clip.get("max_norm"),
        "grad_clip.norm_type": clip.get("norm_type"),
        "fp16.enabled": wrapper.type == "AmpOptimWrapper",
    }


def translate_schedule(cfg):
    warmup, steps = cfg.param_scheduler
    return {
        "schedule.policy": {"MultiStepLR": "step"}[steps.type],
        "schedule.step": steps.milestones,
        "schedule.gamma": steps.gamma,
        "schedule.power": steps.get("power"),
        "schedule.min_lr": steps.get("eta_min"),
        "schedule.by_epoch": steps.by_epoch,
        "schedule.warmup": {"LinearLR": "linear"}[warmup.type],
        # The last of mmengine's `end - begin` iterations has the full rate already.
        "schedule.warmup_iters": warmup.end - warmup.begin - 1,
        "schedule.warmup_ratio": warmup.start_factor,
        "schedule.warmup_by_epoch": warmup.by_epoch,
        "schedule.runner": {"EpochBasedTrainLoop": "EpochBasedRunner"}[cfg.train_cfg.type],
        "schedule.max_epochs": cfg.train_cfg.max_epochs,
        "schedule.max_iters": cfg.train_cfg.get("max_iters"),
    }


def translate_data(cfg, stem):
    gpus, images = map(int, re.search(r"_(\d+)xb(\d+)-", CONFIGS[stem]).groups())
    assert images == cfg.train_dataloader.batch_size
    table = {
        "data.images_per_gpu": cfg.train_dataloader.batch_size,
        "data.workers_per_gpu": cfg.train_dataloader.num_workers,
        "data.total_batch_commented": cfg.auto_scale_lr.base_batch_size,
        "data.num_gpus_commented": gpus,
        "data.auto_scale_lr": cfg.auto_scale_lr.enable,
    }
    for phase in ("train", "val", "test"):
        dataset = cfg[f"{phase}_dataloader"].dataset
        pipeline = translate_pipeline(dataset.pipeline, cfg.model.data_preprocessor)
        if phase != "train":
            pipeline = test_form(pipeline)
        table |= {
            f"data.{phase}.dataset": dataset.type,
            f"data.{phase}.ann_file": dataset.data_root + dataset.ann_file,
            f"data.{phase}.img_prefix": dataset.data_root + dataset.data_prefix.img,
            f"data.{phase}.pipeline": pipeline,
        }
    return table


def translate_pipeline(pipeline, preprocessor):
    """mmdet 3's steps as mmdet 2's; normalising and padding moved into the model since."""
    steps = []
    for step in pipeline:
        arguments = {k: v for k, v in step.items() if k not in ("type", "backend_args")}
        if step.type in ("LoadImageFromFile", "LoadAnnotations"):
            steps.append([step.type, arguments])
        elif step.type == "Resize":
            arguments["img_scale"] = list(arguments.pop("scale"))
            steps.append(["Resize", arguments])
        elif step.type == "RandomFlip":
            steps.append(["RandomFlip", {"flip_ratio": step.prob}])
        elif step.type == "RandomChoiceResize":
            scales = [list(scale) for scale in arguments.pop("scales")]
            again = {"override": True} if any(name == "Resize" for name, _ in steps) else {}
            arguments |= {"img_scale": scales, "multiscale_mode": "value"} | again
            steps.append(["Resize", arguments])
        elif step.type == "RandomCrop":
            steps.append(["RandomCrop", arguments | {"crop_size": list(step.crop_size)}])
        elif step.type == "RandomChoice":
            assert "prob" not in step
            policies = [translate_pipeline(p, preprocessor) for p in step.transforms]
            steps.append(["AutoAugment", {"policies": policies}])
        elif step.type == "PackDetInputs":
            steps += packing_steps(preprocessor)
        else:
            raise AssertionError(f"no translation for {step.type}")
    return steps


def packing_steps(preprocessor):
    assert preprocessor.type == "DetDataPreprocessor"
    assert preprocessor.pad_mask
    normalize = {k: list(preprocessor[k]) for k in ("mean", "std")}
    return [
        ["Normalize", normalize | {"to_rgb": preprocessor.bgr_to_rgb}],
        ["Pad", {"size_divisor": preprocessor.pad_size_divisor}],
        ["DefaultFormatBundle", {}],
        ["Collect", {"keys": ["img", "gt_bboxes", "gt_labels", "gt_masks"]}],
    ]


def test_form(steps):
    """mmdet 2 wraps the steps of testing; it reads the ground truth elsewhere."""
    (load, resize, annotations, normalize, pad, _, _) = steps
    assert annotations[0] == "LoadAnnotations"
    inner = [
        ["Resize", {"keep_ratio": resize[1]["keep_ratio"]}],
        ["RandomFlip", {}],
        normalize,
        pad,
        ["ImageToTensor", {"keys": ["img"]}],
        ["Collect", {"keys": ["img"]}],
    ]
    scale = resize[1]["img_scale"]
    augmentation = {"img_scale": scale, "flip": False, "transforms": inner}
    return [load, ["MultiScaleFlipAug", augmentation]]


test_form.__test__ = False


def translate_runtime(cfg):
    checkpoint = {k: v for k, v in cfg.default_hooks.checkpoint.items() if k != "type"}
    hook = CheckpointHook(**checkpoint)
    evaluator = cfg.val_evaluator
    assert cfg.test_evaluator == evaluator
    # "auto" takes the first metric; with class-wise results mmdet 3 puts those first.
    best = {"coco/bbox_mAP": "auto"}[checkpoint["save_best"]]
    # This project's own hook concerns the loading of checkpoints alone.
    types = [h.type for h in cfg.custom_hooks if h.type != "dcnv4_mm.StrictLoadHook"]
    return {
        "hooks.custom": [{"type": name} for name in types],
        "ema.type": next((name for name in types if "EMA" in name), None),
        "evaluation.interval": cfg.train_cfg.val_interval,
        "evaluation.metric": list(evaluator.metric),
        "evaluation.save_best": best,
        "evaluation.other": {"classwise": evaluator.classwise},
        "checkpoint.interval": hook.interval,
        "checkpoint.by_epoch": hook.by_epoch,
        "checkpoint.max_keep_ckpts": hook.max_keep_ckpts,
        "checkpoint.save_last": hook.save_last,
        "log.interval": cfg.default_hooks.logger.interval,
        "runtime.cudnn_benchmark": cfg.env_cfg.cudnn_benchmark,
        "runtime.find_unused_parameters": cfg.get("find_unused_parameters", False),
        "runtime.seed": cfg.get("randomness", {}).get("seed"),
        "runtime.sync_bn": bool(cfg.get("sync_bn", False)),
    }


def translate_backbone(cfg, model):
    backbone, arch = model.backbone, model.backbone.arch
    blocks = [block for level in backbone.levels for block in level.blocks]
    (scale,) = {float(v) for block in blocks for v in block.gamma1.detach().unique()}
    (activation,) = {type(block.mlp.act).__name__ for block in blocks}
    (norm,) = {type(block.norm1).__name__ for block in blocks}
    (core,) = {type(block.dcn).__name__ for block in blocks}
    rates = [cfg.model.backbone.drop_path_rate * i / (len(blocks) - 1) for i in range(len(blocks))]
    built_rates = [m.rate for m in backbone.modules() if isinstance(m, DropPath)]
    assert built_rates == pytest.approx(rates)
    url = cfg.model.backbone.init_cfg.checkpoint
    assert cfg.model.backbone.init_cfg.type == "Pretrained"
    return {
        "backbone.pretrained_url": url,
        "backbone.pretrained_file": url.rsplit("/", 1)[1],
        "backbone.channels": arch.channels,
        "backbone.depths": list(arch.depths),
        "backbone.groups": list(arch.groups),
        "backbone.mlp_ratio": arch.mlp_ratio,
        "backbone.drop_path_rate": cfg.model.backbone.drop_path_rate,
        "backbone.drop_path_type": "linear",
        "backbone.act_layer": activation,
        "backbone.norm_layer": {"LayerNorm": "LN"}[norm],
        "backbone.layer_scale": scale,
        "backbone.offset_scale": arch.offset_scale,
        "backbone.post_norm": arch.post_norm,
        "backbone.with_cp": backbone.with_cp,
        "backbone.dw_kernel_size": arch.dw_kernel_size,
        "backbone.center_feature_scale": arch.center_feature_scale,
        "backbone.out_indices": list(backbone.out_indices),
        "backbone.core_op": core,
        "backbone.dcn_output_bias": arch.dcn_output_bias,
        "backbone.mlp_fc2_bias": arch.mlp_fc2_bias,
    }


def translate_model(cfg, model):
    parts = ("type", "neck", "rpn_head", "roi_head", "train_cfg", "test_cfg")
    table = flatten({part: cfg.model[part] for part in parts}, "model.")
    assert table["model.neck.norm_cfg.type"] == "dcnv4_mm.LN2d"
    assert all(layer.conv.bias is None for layer in model.neck.lateral_convs)
    table["model.neck.type"] = {"FPN": "FPN_vitdet"}[table["model.neck.type"]]
    table["model.neck.norm_cfg.type"] = "LN"
    outside = [m for name, m in model.named_modules() if not name.startswith("backbone.")]
    dropouts = {type(m).__name__: m.p for m in outside if isinstance(m, nn.Dropout) and m.p}
    epsilons = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
    return table | {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "built.dropout_modules": dropouts,
        "built.norm_eps": {"LayerNorm": sorted(epsilons)},
    }


def flatten(tree, prefix):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def test_values_equal_the_originals(case):
    stem, values, cfg, model = case
    ours = json.loads(json.dumps(translate(cfg, model, stem)))
    compared = {k: v for k, v in values.items() if k not in NO_COUNTERPART}
    assert set(NO_COUNTERPART) <= set(values)
    assert set(compared) - set(ours) == set()
    assert {k: ours[k] for k in compared} == compared
    # Nothing in the model section that the original does not have.
    assert {k for k in ours if k.startswith("model.")} <= set(values)


def test_header_names_the_original(case):
    stem, _, cfg, _ = case
    first = Path(cfg.filename).read_text().splitlines()[0]
    assert first == f"# Reproduces {stem} of the original project."
    assert 10 <= len(Path(cfg.filename).read_text().splitlines()) <= 60


def test_learning_rate_follows_the_original_formula(case):
    """The rate at every iteration, with epochs of 700 iterations to see warm-up and steps."""
    _, values, cfg, _ = case
    epoch_length, lr = 700, values["optimizer.lr"]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = [
        PARAM_SCHEDULERS.build({"optimizer": optimizer, **scheduler})
        for scheduler in cfg.param_scheduler
    ]
    for iteration in range(values["schedule.max_epochs"] * epoch_length):
        epoch = iteration // epoch_length
        expected = lr * values["schedule.gamma"] ** sum(epoch >= s for s in values["schedule.step"])
        if iteration < 500:
            expected *= 1 - (1 - iteration / 500) * (1 - values["schedule.warmup_ratio"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6), iteration
        schedulers[0].step()
        if (iteration + 1) % epoch_length == 0:
            schedulers[1].step()


def test_optimizer_can_be_built(case):
    _, values, cfg, model = case
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in parameters) == values["num_parameters"]
