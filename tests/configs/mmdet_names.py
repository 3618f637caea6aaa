"""Expresses a config of mmdet 3 in the flat names of the original's configs (mmdet 2, mmcv 1)."""

from configs.original_names import (
    custom_hooks,
    flatten,
    translate_backbone,
    translate_batches,
    translate_norms,
    translate_optimizer,
    translate_runtime,
    translate_transformer,
)
from mmdet.registry import MODELS
from torch import nn


def translate(cfg, model):
    """A config of this project in the flat names of the table."""
    return {
        **translate_optimizer(cfg, model),
        **translate_schedule(cfg),
        **translate_data(cfg),
        **translate_hooks(cfg),
        **translate_evaluation(cfg, model),
        **translate_backbone(cfg, model),
        **translate_model(cfg, model),
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


def translate_data(cfg):
    table = translate_batches(cfg)
    for phase in ("train", "val", "test"):
        dataset = cfg[f"{phase}_dataloader"].dataset
        pipeline = translate_pipeline(dataset.pipeline, cfg.model.data_preprocessor)
        assert pipeline[-1][0] == "Collect"
        if phase != "train":
            pipeline = wrapped_for_testing(pipeline)
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
        # The host notes its scope in the files that other hosts inherit.
        arguments = {k: v for k, v in step.items() if k not in ("type", "backend_args", "_scope_")}
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
            masks = next(a for name, a in steps if name == "LoadAnnotations").get("with_mask")
            steps += packing_steps(preprocessor, masks=bool(masks))
        else:
            raise AssertionError(f"no translation for {step.type}")
    return steps


def packing_steps(preprocessor, *, masks):
    assert preprocessor.type == "DetDataPreprocessor"
    assert preprocessor.get("pad_mask", False) == masks
    keys = ["img", "gt_bboxes", "gt_labels", *(["gt_masks"] if masks else [])]
    normalize = {k: list(preprocessor[k]) for k in ("mean", "std")}
    return [
        ["Normalize", normalize | {"to_rgb": preprocessor.bgr_to_rgb}],
        ["Pad", {"size_divisor": preprocessor.pad_size_divisor}],
        ["DefaultFormatBundle", {}],
        ["Collect", {"keys": keys}],
    ]


def wrapped_for_testing(steps):
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


def translate_hooks(cfg):
    hooks = custom_hooks(cfg)
    averaging = next((h for h in hooks if h.type == "EMAHook"), None)
    if averaging is not None:
        # The original that averages has no check of the classes.
        hooks = [averaging]
    table = {f"ema.{key}": None for key in ("type", "momentum", "total_iter", "priority")}
    table |= {"ema.skip_buffers": None, "ema.interval": None}
    if averaging is not None:
        average = build_average(averaging)
        table = {
            "ema.type": {"ExpMomentumEMA": "ExpMomentumEMAHook"}[averaging.ema_type],
            "ema.momentum": average.momentum,
            "ema.total_iter": average.gamma,
            "ema.priority": averaging.priority,
            "ema.skip_buffers": not average.update_buffers,
            "ema.interval": average.interval,
        }
    named = {
        "EMAHook": {
            "type": table["ema.type"],
            "resume_from": None,
            "momentum": table["ema.momentum"],
            "priority": table["ema.priority"],
        },
        "NumClassCheckHook": {"type": "NumClassCheckHook"},
    }
    return table | {"hooks.custom": [named[h.type] for h in hooks]}


def build_average(hook):
    """The averaged model that a config's EMAHook makes, of something small."""
    arguments = {k: v for k, v in hook.items() if k not in ("type", "ema_type", "priority")}
    return MODELS.build({"type": hook.ema_type, **arguments, "model": nn.Linear(1, 1)})


def translate_evaluation(cfg, model):
    runtime, evaluator = translate_runtime(cfg), cfg.val_evaluator
    metric = evaluator.metric
    # "auto" takes the first metric; with class-wise results mmdet 3 puts those first.
    assert runtime["evaluation.save_best"] == "coco/bbox_mAP"
    return runtime | {
        "evaluation.save_best": "auto",
        "evaluation.metric": metric if isinstance(metric, str) else list(metric),
        "evaluation.other": {"classwise": evaluator.classwise},
        "runtime.sync_bn": any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()),
    }


def translate_model(cfg, model):
    sections = translate_dino if cfg.model.type == "dcnv4_mm.DINO" else translate_rcnn
    outside = [m for name, m in model.named_modules() if not name.startswith("backbone.")]
    dropouts = {type(m).__name__: m.p for m in outside if isinstance(m, nn.Dropout) and m.p}
    return sections(cfg, model) | translate_norms(model) | {"built.dropout_modules": dropouts}


def translate_rcnn(cfg, model):
    parts = ("type", "neck", "rpn_head", "roi_head", "train_cfg", "test_cfg")
    table = flatten({part: cfg.model[part] for part in parts}, "model.")
    assert table["model.neck.norm_cfg.type"] == "dcnv4_mm.LN2d"
    assert all(layer.conv.bias is None for layer in model.neck.lateral_convs)
    table["model.neck.type"] = {"FPN": "FPN_vitdet"}[table["model.neck.type"]]
    table["model.neck.norm_cfg.type"] = "LN"
    return table


def translate_dino(cfg, model):
    config, head = cfg.model, cfg.model.bbox_head
    assert head.type == "dcnv4_mm.DINOHead"
    noise = config.dn_cfg
    costs = {cost.type: cost for cost in config.train_cfg.assigner.match_costs}
    table = {
        "type": config.type.removeprefix("dcnv4_mm."),
        "neck": config.neck,
        "bbox_head": {
            **{key: head[key] for key in ("loss_cls", "loss_bbox", "loss_iou")},
            "type": head.type.removeprefix("dcnv4_mm."),
            "num_query": config.num_queries,
            "num_classes": head.num_classes,
            "sync_cls_avg_factor": head.sync_cls_avg_factor,
            "as_two_stage": config.as_two_stage,
            "with_box_refine": config.with_box_refine,
            "dn_cfg": {
                "type": type(model.dn_query_generator).__name__,
                "noise_scale": {"label": noise.label_noise_scale, "box": noise.box_noise_scale},
                "group_cfg": noise.group_cfg,
            },
            "transformer": {
                "type": "DinoTransformer",
                "two_stage_num_proposals": model.num_queries,
                "encoder": translate_layers(config.encoder, model.encoder),
                "decoder": translate_layers(config.decoder, model.decoder),
            },
            "positional_encoding": {
                "type": type(model.positional_encoding).__name__,
                "num_feats": config.positional_encoding.num_feats,
                "temperature": config.positional_encoding.temperature,
                "normalize": config.positional_encoding.normalize,
            },
        },
        "train_cfg": {
            "assigner": {
                "type": config.train_cfg.assigner.type,
                "cls_cost": costs["FocalLossCost"],
                "reg_cost": costs["BBoxL1Cost"],
                "iou_cost": costs["IoUCost"],
            }
        },
        "test_cfg": config.test_cfg,
    }
    return flatten(table, "model.") | translate_transformer(model, model.positional_encoding)


def translate_layers(config, built):
    """Encoder or decoder; mmdet 3 fixes in classes what mmdet 2 configured."""
    layer, cfg = built.layers[0], config.layer_cfg
    decodes = hasattr(layer, "cross_attn")
    attentions = [(layer.self_attn, cfg.self_attn_cfg)]
    order = ["self_attn", "norm", "ffn", "norm"]
    if decodes:
        attentions.append((layer.cross_attn, cfg.cross_attn_cfg))
        order[2:2] = ["cross_attn", "norm"]
    assert len(layer.norms) == order.count("norm")
    tables = []
    for module, arguments in attentions:
        # mmcv's class on our operator.
        kind = type(module).__name__
        kind = {"DeformableAttention": "MultiScaleDeformableAttention"}.get(kind, kind)
        table = {"type": kind, "embed_dims": module.embed_dims}
        table["dropout"] = arguments.dropout
        if table["type"] == "MultiheadAttention":
            table["num_heads"] = arguments.num_heads
        tables.append(table)
    names = {"DeformableDetrTransformerEncoder": "DetrTransformerEncoder"}
    kind = type(built).__name__
    table = {
        "type": names.get(kind, kind),
        "num_layers": len(built.layers),
        "transformerlayers": {
            "type": "DetrTransformerDecoderLayer" if decodes else "BaseTransformerLayer",
            "attn_cfgs": tables if decodes else tables[0],
            "feedforward_channels": layer.ffn.feedforward_channels,
            "ffn_dropout": cfg.ffn_cfg.ffn_drop,
            "operation_order": order,
        },
    }
    if decodes:
        table["return_intermediate"] = built.return_intermediate
    return table
