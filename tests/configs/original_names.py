"""What mmdet_names.py and mmseg_names.py share: the parts of a config that all hosts have."""

import re

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.hooks import CheckpointHook
from torch import nn

from dcnv4_mm.layers import DropPath

NO_COUNTERPART = {
    "family": "the table's own grouping",
    "optimizer_config.type": "mmcv's hook around the step; here the optimizer wrapper",
    "data.num_nodes_commented": "a comment about the original cluster",
    "backbone.drop_rate": "a dropout that the original builds and never applies",
    "backbone.level2_post_norm": "InternImage's options, off in every published DCNv4 model",
    "backbone.level2_post_norm_block_ids": "InternImage's options, off",
    "backbone.res_post_norm": "InternImage's options, off",
    "backbone.other_arguments": "none in the original; unknown arguments are an error here",
}


def translate_optimizer(cfg, model):
    wrapper = cfg.optim_wrapper
    paramwise = wrapper.paramwise_cfg
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = {k: v for k, v in wrapper.optimizer.items() if k != "type"}
    built = getattr(torch.optim, wrapper.optimizer.type)([parameter], **optimizer).defaults
    names = {"dcnv4_mm.LayerDecayOptimWrapperConstructor": "CustomLayerDecayOptimizerConstructor"}
    decays = "constructor" in wrapper
    depths = list(model.backbone.arch.depths) if decays else None
    clip = wrapper.get("clip_grad") or {}
    return {
        "optimizer.type": wrapper.optimizer.type,
        **{f"optimizer.{name}": built[name] for name in ("lr", "weight_decay", "eps")},
        "optimizer.betas": list(built["betas"]),
        "optimizer.constructor": names[wrapper.constructor] if decays else None,
        "optimizer.layer_decay.num_layers": sum(depths) if decays else None,
        "optimizer.layer_decay.depths": depths,
        "optimizer.layer_decay.layer_decay_rate": paramwise.get("layer_decay_rate"),
        "optimizer.layer_decay.offset_lr_scale": paramwise.get("offset_lr_scale"),
        "optimizer.custom_keys": paramwise.get("custom_keys"),
        "grad_clip.max_norm": clip.get("max_norm"),
        "grad_clip.norm_type": clip.get("norm_type"),
        "fp16.enabled": wrapper.type == "AmpOptimWrapper",
    }


def translate_batches(cfg):
    gpus, images = map(int, re.search(r"_(\d+)xb(\d+)-", cfg.filename).groups())
    assert images == cfg.train_dataloader.batch_size
    return {
        "data.images_per_gpu": images,
        "data.workers_per_gpu": cfg.train_dataloader.num_workers,
        "data.total_batch_commented": cfg.auto_scale_lr.base_batch_size,
        "data.num_gpus_commented": gpus,
        "data.auto_scale_lr": cfg.auto_scale_lr.enable,
    }


def translate_runtime(cfg):
    checkpoint = {k: v for k, v in cfg.default_hooks.checkpoint.items() if k != "type"}
    hook = CheckpointHook(**checkpoint)
    assert cfg.test_evaluator == cfg.val_evaluator
    return {
        "evaluation.interval": cfg.train_cfg.val_interval,
        "evaluation.save_best": checkpoint["save_best"],
        "checkpoint.interval": hook.interval,
        "checkpoint.by_epoch": hook.by_epoch,
        "checkpoint.max_keep_ckpts": hook.max_keep_ckpts,
        "checkpoint.save_last": hook.save_last,
        "log.interval": cfg.default_hooks.logger.interval,
        "runtime.cudnn_benchmark": cfg.env_cfg.cudnn_benchmark,
        "runtime.find_unused_parameters": cfg.get("find_unused_parameters", False),
        "runtime.seed": cfg.get("randomness", {}).get("seed"),
    }


def custom_hooks(cfg):
    # This project's own hooks check checkpoints and data, and change nothing.
    return [hook for hook in cfg.custom_hooks if not hook.type.startswith("dcnv4_mm.")]


def translate_backbone(cfg, model):
    backbone, arch = model.backbone, model.backbone.arch
    blocks = [block for level in backbone.levels for block in level.blocks]
    # The model has no memory, hence no values; the backbone's tests check them.
    scale = cfg.model.backbone.layer_scale
    assert all(isinstance(block.gamma1, nn.Parameter) for block in blocks)
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


def translate_norms(model):
    epsilons = {}
    for kind in (nn.LayerNorm, nn.GroupNorm, nn.SyncBatchNorm):
        if found := {m.eps for m in model.modules() if isinstance(m, kind)}:
            epsilons[kind.__name__] = sorted(found)
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "built.norm_eps": epsilons,
    }


def translate_transformer(model, *encodings):
    """Settings of the modules of a transformer, which must be the same in all of a kind."""
    modules = list(model.modules())
    deformable = [m for m in modules if isinstance(m, MultiScaleDeformableAttention)]
    plain = [m for m in modules if isinstance(m, nn.MultiheadAttention)]
    ffns = [m for m in modules if isinstance(m, FFN)]
    rates = [d.p for m in ffns for d in m.modules() if isinstance(d, nn.Dropout)]
    sizes = ("num_feats", "temperature", "normalize", "scale", "eps", "offset")
    table = {
        "deformable_attention": {
            **same(deformable, "num_heads", "num_levels", "num_points", "embed_dims"),
            "count": len(deformable),
            "dropout": max(m.dropout.p for m in deformable),
        },
        "multihead_attention": {**same(plain, "num_heads", "dropout"), "count": len(plain)},
        "ffn": {
            "widths": sorted({m.feedforward_channels for m in ffns}),
            "max_dropout": max(rates, default=0.0),
            "activations": sorted({type(m.layers[0][1]).__name__ for m in ffns}),
        },
        "positional_encoding": same(encodings, *sizes),
    }
    return flatten(table, "built.")


def same(modules, *names):
    """Attributes that all modules have alike."""
    values = {name: {getattr(module, name) for module in modules} for name in names}
    return {name: found for name, (found,) in values.items()}


def flatten(tree, prefix):
    """Nested dictionaries and lists of them as dotted keys."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
