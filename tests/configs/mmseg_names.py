"""Expresses a config of mmseg 1 in the flat names of the original's configs (mmseg 0, mmcv 1)."""

import json

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
from torch import nn

ENCODER_LAYER = "model.decode_head.pixel_decoder.encoder.transformerlayers"
DECODER_LAYER = "model.decode_head.transformer_decoder.transformerlayers"


def translate(cfg, model):
    """A config of this project in the flat names of the table."""
    return {
        **translate_optimizer(cfg, model),
        **translate_schedule(cfg),
        **translate_data(cfg),
        **translate_evaluation(cfg),
        **translate_backbone(cfg, model),
        **translate_model(cfg, model),
        **translate_built(model),
    }


def translate_schedule(cfg):
    (schedule,) = cfg.param_scheduler
    assert schedule.type == "dcnv4_mm.PolyWarmupLR"
    assert schedule.end == cfg.train_cfg.max_iters
    return {
        "schedule.policy": "poly",
        "schedule.step": None,
        "schedule.gamma": None,
        "schedule.power": schedule.get("power", 1.0),
        "schedule.min_lr": schedule.get("eta_min", 0.0),
        "schedule.by_epoch": schedule.by_epoch,
        "schedule.warmup": "linear",
        "schedule.warmup_iters": schedule.warmup_iters,
        "schedule.warmup_ratio": schedule.warmup_ratio,
        "schedule.warmup_by_epoch": False,
        "schedule.runner": {"IterBasedTrainLoop": "IterBasedRunner"}[cfg.train_cfg.type],
        "schedule.max_epochs": None,
        "schedule.max_iters": cfg.train_cfg.max_iters,
    }


def translate_data(cfg):
    sampler = cfg.train_dataloader.sampler
    assert (sampler.type, sampler.shuffle) == ("InfiniteSampler", True)
    table = translate_batches(cfg)
    targets = cfg.model.decode_head.type == "dcnv4_mm.Mask2FormerHead"
    for phase in ("train", "val", "test"):
        dataset = cfg[f"{phase}_dataloader"].dataset
        pipeline = translate_pipeline(dataset.pipeline, cfg.model.data_preprocessor, targets)
        table |= {
            f"data.{phase}.dataset": dataset.type,
            f"data.{phase}.data_root": dataset.data_root,
            f"data.{phase}.img_dir": dataset.data_prefix.img_path,
            f"data.{phase}.ann_dir": dataset.data_prefix.seg_map_path,
            f"data.{phase}.pipeline": pipeline
            if phase == "train"
            else wrapped_for_testing(pipeline),
        }
    return table


def translate_pipeline(pipeline, preprocessor, targets):
    """mmseg 1's steps as mmseg 0's; normalising and padding moved into the model since."""
    steps = []
    for step in pipeline:
        arguments = {k: v for k, v in step.items() if k != "type"}
        if step.type == "dcnv4_mm.LoadSegAnnotations":
            # It checks what it has loaded, and loads as mmseg's.
            assert arguments.pop("num_classes") == 150
            steps.append(["LoadAnnotations", arguments])
        elif step.type in ("RandomResize", "Resize"):
            sizes = {"img_scale": list(arguments.pop("scale"))}
            assert arguments.pop("keep_ratio")
            if step.type == "RandomResize":
                sizes["ratio_range"] = list(arguments.pop("ratio_range"))
            assert not arguments
            steps.append(["Resize", sizes])
        elif step.type == "RandomCrop":
            steps.append(["RandomCrop", arguments | {"crop_size": list(step.crop_size)}])
        elif step.type == "PackSegInputs":
            steps += packing_steps(preprocessor, targets)
        else:
            assert step.type in (
                *("LoadImageFromFile", "RandomFlip", "PhotoMetricDistortion", "ResizeToMultiple"),
            )
            steps.append([step.type, arguments])
    return steps


def packing_steps(preprocessor, targets):
    assert preprocessor.type == "SegDataPreProcessor"
    # Nothing is padded in testing.
    assert not preprocessor.get("test_cfg")
    normalize = {k: list(preprocessor[k]) for k in ("mean", "std")}
    pad = {"size": list(preprocessor.size), "pad_val": preprocessor.pad_val}
    keys = ["img", "gt_semantic_seg", *(["gt_masks", "gt_labels"] if targets else [])]
    return [
        ["Normalize", normalize | {"to_rgb": preprocessor.bgr_to_rgb}],
        ["Pad", pad | {"seg_pad_val": preprocessor.seg_pad_val}],
        # The head makes its own targets since.
        *([["ToMask", {}]] if targets else []),
        ["DefaultFormatBundle", {}],
        ["Collect", {"keys": keys}],
    ]


def wrapped_for_testing(steps):
    """mmseg 0 wraps the steps of testing; it reads the ground truth elsewhere."""
    names = [name for name, _ in steps]
    resize = steps[names.index("Resize")][1]
    multiple = [step for step in steps if step[0] == "ResizeToMultiple"]
    normalize = steps[names.index("Normalize")]
    order = ["LoadImageFromFile", "Resize", *(name for name, _ in multiple), "LoadAnnotations"]
    assert names[: len(order)] == order
    inner = [
        ["Resize", {"keep_ratio": True}],
        *multiple,
        ["RandomFlip", {}],
        normalize,
        ["ImageToTensor", {"keys": ["img"]}],
        ["Collect", {"keys": ["img"]}],
    ]
    augmentation = {"img_scale": resize["img_scale"], "flip": False, "transforms": inner}
    return [steps[0], ["MultiScaleFlipAug", augmentation]]


def translate_evaluation(cfg):
    (metric,) = cfg.val_evaluator.iou_metrics
    norms = json.dumps([cfg.model.decode_head, cfg.model.get("auxiliary_head")])
    return translate_runtime(cfg) | {
        "hooks.custom": [hook.type for hook in custom_hooks(cfg)],
        "ema.type": None,
        "evaluation.metric": metric,
        "evaluation.other": {},
        "runtime.sync_bn": "SyncBN" in norms,
    }


def translate_model(cfg, model):
    parts = ("type", "decode_head", "auxiliary_head", "train_cfg", "test_cfg")
    table = flatten({part: cfg.model[part] for part in parts if part in cfg.model}, "model.")
    if cfg.model.decode_head.type == "UPerHead":
        assert cfg.model.pretrained is None
        return {**table, "model.train_cfg": cfg.model.train_cfg}
    del table["model.decode_head.strides"]
    assert table.pop("model.decode_head.inference") == "original"
    assert table.pop("model.decode_head.align_corners") is False
    assert table.pop("model.decode_head.train_cfg.sampler.type") == "mmdet.MaskPseudoSampler"
    renamed = {}
    for name, value in table.items():
        name = name.replace("model.decode_head.train_cfg.", "model.train_cfg.")
        for index, cost in enumerate(("cls_cost", "mask_cost", "dice_cost")):
            name = name.replace(f".match_costs.{index}.", f".{cost}.")
        name = name.replace(".encoder.layer_cfg.self_attn_cfg.", ".encoder.layer_cfg.attn_cfgs.")
        name = name.replace(".layer_cfg.cross_attn_cfg.", ".layer_cfg.attn_cfgs.")
        name = name.replace(".ffn_cfg.", ".ffn_cfgs.").replace(".layer_cfg.", ".transformerlayers.")
        if ".self_attn_cfg." in name:
            # mmdet 3 configures the two attentions of a decoder layer separately.
            assert renamed.get(name.replace("self_attn_cfg", "attn_cfgs"), value) == value
            name = name.replace("self_attn_cfg", "attn_cfgs")
        if name.endswith("type"):
            value = value.removeprefix("mmdet.").replace(
                "HungarianAssigner", "MaskHungarianAssigner"
            )
        renamed[name] = value
    return renamed | translate_types(model)


def translate_types(model):
    """What the original's configs choose, and mmdet 3 fixes in its classes."""
    head, pixels = model.decode_head, model.decode_head.pixel_decoder
    encoder, decoder = pixels.encoder, head.transformer_decoder
    parts = {
        "model": model,
        "model.decode_head": head,
        "model.decode_head.positional_encoding": head.decoder_positional_encoding,
        "model.decode_head.pixel_decoder.positional_encoding": pixels.postional_encoding,
        "model.decode_head.pixel_decoder.encoder": encoder,
        ENCODER_LAYER: encoder.layers[0],
        f"{ENCODER_LAYER}.attn_cfgs": encoder.layers[0].self_attn,
        f"{ENCODER_LAYER}.ffn_cfgs": encoder.layers[0].ffn,
        "model.decode_head.transformer_decoder": decoder,
        DECODER_LAYER: decoder.layers[0],
        f"{DECODER_LAYER}.attn_cfgs": decoder.layers[0].cross_attn,
    }
    names = {
        "EncoderDecoder": "EncoderDecoderMask2Former",
        "Mask2FormerTransformerEncoder": "DetrTransformerEncoder",
        # mmcv's class on our operator.
        "DeformableAttention": "MultiScaleDeformableAttention",
        "DeformableDetrTransformerEncoderLayer": "BaseTransformerLayer",
        "Mask2FormerTransformerDecoder": "DetrTransformerDecoder",
        "Mask2FormerTransformerDecoderLayer": "DetrTransformerDecoderLayer",
    }
    types = {f"{name}.type": type(part).__name__ for name, part in parts.items()}
    return {name: names.get(kind, kind) for name, kind in types.items()}


def translate_built(model):
    outside = [(n, m) for n, m in model.named_modules() if not n.startswith("backbone.")]
    dropouts = {n: m.p for n, m in outside if isinstance(m, nn.Dropout | nn.Dropout2d) and m.p}
    table, head = translate_norms(model), model.decode_head
    if not hasattr(head, "pixel_decoder"):
        return table | {"built.dropout_modules": dropouts}
    # The original builds one in the head that it never applies.
    assert not dropouts
    encodings = (head.decoder_positional_encoding, head.pixel_decoder.postional_encoding)
    table |= {"built.dropout_modules": {"decode_head.dropout": 0.1}}
    return table | translate_transformer(model, *encodings)
