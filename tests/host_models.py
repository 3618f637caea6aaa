"""Small models of every host: the quickstart's, with few layers and queries."""

from pathlib import Path

from mmengine.config import Config

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# By name: the config, and what makes it smaller still.
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
    config = Config.fromfile(_CONFIGS / path)
    config.merge_from_dict(options)
    return config
