"""Small models of every host: those of configs/quickstart, with fewer layers and queries."""

from helpers import ROOT
from mmengine.config import Config

# Name -> config, and options that make it smaller.
_MODELS = {
    "classifier": ("quickstart/flash-internimage-nano_1xb32-40e_mini-imagenet.py", {}),
    "mask_rcnn": ("quickstart/mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco.py", {}),
    "upernet": ("quickstart/upernet_flash-internimage-nano_1xb8-500it_mini-ade20k.py", {}),
    "mask2former": (
        "quickstart/mask2former_flash-internimage-nano_1xb4-300it_mini-ade20k.py",
        {
            "model.decode_head.pixel_decoder.encoder.num_layers": 1,
            "model.decode_head.transformer_decoder.num_layers": 1,
        },
    ),
    "dino": (
        "quickstart/dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco.py",
        {"model.num_queries": 10, "model.encoder.num_layers": 1, "model.decoder.num_layers": 1},
    ),
    "bevformerv2": (
        "bevformerv2/bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d.py",
        {"model.pts_bbox_head.bev_shape": (16, 16), "model.pts_bbox_head.encoder.num_layers": 1},
    ),
}


def small_config(name):
    """The config of a small model, whose host is ``default_scope``."""
    path, options = _MODELS[name]
    config = Config.fromfile(ROOT / "configs" / path)
    config.merge_from_dict(options)
    return config
