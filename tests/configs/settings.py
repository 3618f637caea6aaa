"""Flat tables of what a config says, and of what the model has that is built from it."""

import copy
import dataclasses

import torch
from helpers import build_detector, build_segmentor, config_of
from mmengine.config import Config
from torch import nn

# Sections of a config that decide what is trained, and how.
SECTIONS = (
    *("model", "data_preprocessor", "optim_wrapper", "param_scheduler", "auto_scale_lr"),
    *("train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator", "test_evaluator"),
    *("train_cfg", "randomness", "find_unused_parameters", "tta_model", "tta_pipeline"),
)
# Attributes of modules that a host's classes may choose without the config.
ATTRIBUTES = (
    *("p", "rate", "eps", "num_heads", "num_levels", "num_points", "embed_dims", "dropout"),
    *("feedforward_channels", "num_feats", "temperature", "normalize", "scale", "offset"),
)


def build(original):
    """The model of the config that reproduces one of the original's, without memory, and that."""
    config = Config.fromfile(config_of(original))
    if config.default_scope != "mmpretrain":
        host = build_detector if config.default_scope == "mmdet" else build_segmentor
        return host(original, device="meta")
    from mmpretrain.registry import MODELS
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    settings = copy.deepcopy(config.model)
    settings.backbone.init_cfg = None
    settings.data_preprocessor = copy.deepcopy(config.data_preprocessor)
    with torch.device("meta"):
        return MODELS.build(settings), config


def settings_of(config):
    """The settings of a config by dotted key, but for hooks that change nothing."""
    sections = {name: config[name] for name in SECTIONS if name in config}
    hooks = config.default_hooks
    sections["default_hooks"] = {name: hooks[name] for name in ("checkpoint", "logger")}
    sections["cudnn_benchmark"] = config.env_cfg.cudnn_benchmark
    # Those of this package check checkpoints and data.
    sections["custom_hooks"] = [
        hook for hook in config.custom_hooks if not hook.type.startswith("dcnv4_mm.")
    ]
    return flatten(sections)


def flatten(tree, prefix=""):
    """Nested dictionaries, and lists of them, by dotted key."""
    flat = {}
    for key, value in tree.items():
        if key == "_scope_":
            # mmengine notes the host in files that are inherited.
            continue
        if isinstance(value, list | tuple) and any(isinstance(v, dict | list) for v in value):
            value = dict(enumerate(value))
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def built(model):
    """What the model has: sizes, classes outside of the backbone, settings of its modules."""
    backbone = model.backbone
    classes, settings = {}, {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if not name.startswith("backbone."):
            classes[kind] = classes.get(kind, 0) + 1
        for attribute in ATTRIBUTES:
            value = getattr(module, attribute, None)
            if isinstance(value, bool | int | float):
                settings.setdefault(f"{kind}.{attribute}", set()).add(value)
    return flatten(
        {
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "backbone": {
                **dataclasses.asdict(backbone.arch),
                "core_op": type(backbone.levels[0].blocks[0].dcn).__name__,
                "out_indices": backbone.out_indices,
                "with_cp": backbone.with_cp,
                "scales_layers": isinstance(backbone.levels[0].blocks[0].gamma1, nn.Parameter),
            },
            "classes": classes,
            "modules": {name: sorted(values) for name, values in settings.items()},
        },
        "built.",
    )
