"""Makes the networks that are compared: ours and the hosts' own, with random weights.

In every model of a method only the backbone differs: the rest is that of our config.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from compare import Implementation, Settings
from measure import Call
from operators.cases import OFFSET_DEVIATION
from torch import Tensor, nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import offset_rows

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
POINTS = 9
OURS = "FlashInternImage"
# Family -> operator.
INTERNIMAGES = {OURS: "DCNv4", "InternImage": "DCNv3"}
FAMILIES = (*INTERNIMAGES, "Swin", "ConvNeXt")
SIZES = ("t", "s", "b", "l")
NAMES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
# Channels of the first stage of Swin and ConvNeXt alike; they double from stage to stage.
WIDTHS = {"t": 96, "s": 96, "b": 128, "l": 192}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A detector or segmentor.

    Attributes:
        host: Package that it is of.
        config: Our config, relative to ``configs``, without the size.
        size: Rows and columns of an image at the paper's scale, by size of model.
        small: The same where there is no GPU.
        fps: The paper's, on an A100 in float32 and float16, by family and size.
        accuracy: The paper's, AP or mIoU.
    """

    host: str
    config: str
    size: dict[str, tuple[int, int]]
    small: tuple[int, int]
    fps: dict[str, tuple[float, float]] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)

    def path(self, size: str) -> Path | None:
        """The config of a size of FlashInternImage, if there is such a model."""
        return next(iter(sorted(CONFIGS.glob(self.config.format(size)))), None)


def _columns(table: str, number: int) -> dict[str, tuple[float, ...]]:
    """Name -> the first values that follow it in a line."""
    lines = (line.split() for line in table.strip().splitlines())
    return {name: tuple(map(float, values[:number])) for name, *values in lines}


# Backbone, FPS in float32 and float16, AP or mIoU: the paper's supplement.
_DINO = """
Swin-t 37 50 51.1
ConvNeXt-t 39 54 51.0
InternImage-t 33 37 53.9
FlashInternImage-t 39 48 54.7
Swin-b 24 32 53.1
ConvNeXt-b 28 36 53.1
InternImage-b 24 26 54.8
FlashInternImage-s 33 41 55.3
FlashInternImage-b 28 35 56.0
Swin-l 17 24 56.1
ConvNeXt-l 20 27 55.9
InternImage-l 17 18 57.6
FlashInternImage-l 20 26 58.8
"""
_MASK2FORMER = """
Swin-t 96 146 49.6
ConvNeXt-t 111 155 49.6
InternImage-t 91 123 50.6
FlashInternImage-t 105 145 51.3
Swin-b 48 71 51.9
ConvNeXt-b 54 77 50.7
InternImage-b 45 58 52.1
FlashInternImage-s 60 80 52.6
FlashInternImage-b 55 75 53.4
Swin-l 37 55 56.1
ConvNeXt-l 41 60 55.7
InternImage-l 33 45 55.5
FlashInternImage-l 41 59 56.7
"""


def _paper(table: str) -> dict[str, dict]:
    rows = _columns(table, 3)
    return dict(
        fps={name: row[:2] for name, row in rows.items()},
        accuracy={name: row[2] for name, row in rows.items()},
    )


# 800 x 1333, padded as the detectors do.
_COCO = dict(host="mmdet", size=dict.fromkeys(SIZES, (800, 1344)), small=(320, 512))
_ADE20K = dict(host="mmseg", small=(256, 256))
METHODS = {
    "Mask R-CNN": Method(config="mask_rcnn/*-internimage-{}_fpn_8xb2-1x_coco.py", **_COCO),
    "DINO": Method(config="dino/*-internimage-{}_*_coco.py", **_COCO, **_paper(_DINO)),
    "UperNet": Method(
        config="upernet/*-internimage-{}_*.py",
        size=dict.fromkeys("tsb", (512, 512)) | {"l": (640, 640)},
        **_ADE20K,
    ),
    "Mask2Former": Method(
        config="mask2former/*-internimage-{}_*.py",
        size=dict.fromkeys("sbl", (640, 640)) | {"t": (512, 512)},
        **_ADE20K,
        **_paper(_MASK2FORMER),
    ),
}


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise NotImplementedError(f"{package} is not installed")


def backbone_config(family: str, size: str, hosts: tuple[str, ...]) -> dict:
    """Config of a backbone, whose class is that of the first host that has it."""
    if family in INTERNIMAGES:
        return dict(type="dcnv4_mm.FlashInternImage", arch=size, core_op=INTERNIMAGES[family])
    if family == "ConvNeXt":
        _need("mmpretrain")
        return dict(type="mmpretrain.ConvNeXt", arch=NAMES[size], gap_before_final_norm=False)
    host = next((host for host in hosts if importlib.util.find_spec(host)), hosts[-1])
    _need(host)
    if host == "mmpretrain":
        return dict(type="mmpretrain.SwinTransformer", arch=NAMES[size], pad_small_map=True)
    return dict(
        type=f"{host}.SwinTransformer",
        embed_dims=WIDTHS[size],
        depths=(2, 2, 6 if size == "t" else 18, 2),
        num_heads=[WIDTHS[size] // 32 * 2**stage for stage in range(4)],
    )


def make_backbone(family: str, size: str) -> nn.Module:
    """A backbone that gives the maps of all four stages; torchvision's gives the last alone."""
    if family in INTERNIMAGES:  # need torch alone
        return FlashInternImage(size, core_op=INTERNIMAGES[family])
    if importlib.util.find_spec("mmengine") is None:
        return _torchvision_backbone(family, size)
    config = backbone_config(family, size, ("mmpretrain", "mmdet", "mmseg"))
    from mmengine.registry import MODELS

    return MODELS.build(config | dict(out_indices=(0, 1, 2, 3)))


def _torchvision_backbone(family: str, size: str) -> nn.Module:
    _need("torchvision")
    from torchvision import models

    name = f"swin_{size}" if family == "Swin" else f"convnext_{NAMES[size]}"
    if name not in models.list_models():
        raise NotImplementedError(f"torchvision has no {name}, and no host is installed")
    return models.get_model(name).features


def missing_host(method: Method) -> str | None:
    """The package that the method's models need and that is not here."""
    needed = ("mmengine", "mmcv", method.host)
    return next((name for name in needed if importlib.util.find_spec(name) is None), None)


def make_model(method: Method, family: str, size: str) -> nn.Module:
    """A detector or segmentor of the method, on a backbone of the family."""
    backbone = backbone_config(family, size, (method.host,))
    from mmengine.config import Config
    from mmengine.registry import MODELS

    from dcnv4_mm.integrations import install

    install()
    utils = importlib.import_module(f"{method.host}.utils")
    utils.register_all_modules(init_default_scope=True)
    model = Config.fromfile(method.path(size)).model
    levels = model.backbone.get("out_indices", (0, 1, 2, 3))
    # No weights are fetched, and nothing is computed twice to save memory.
    model.backbone.update(init_cfg=None, with_cp=False, drop_path_rate=0.0)
    if family not in INTERNIMAGES:
        model.backbone = backbone | dict(out_indices=levels)
        channels = [WIDTHS[size] * 2**level for level in range(4)]
        where = model.neck if "neck" in model else model.decode_head
        where.in_channels = [channels[level] for level in levels]
        if "auxiliary_head" in model:
            model.auxiliary_head.in_channels = channels[2]
    elif family != OURS:
        model.backbone.update(backbone)
    model.type = model.type if "." in model.type else f"{method.host}.{model.type}"
    return MODELS.build(model)


def make_batch(method: Method, model: nn.Module, size: tuple[int, int], batch: int) -> dict:
    """Random images with random objects or labels, as the model takes them, on its device."""
    device = next(model.parameters()).device
    if method.host == "mmdet":
        from mmdet.testing import demo_mm_inputs

        objects = dict(num_items=[8] * batch, num_classes=80, with_mask=True, use_box_type=True)
        data = demo_mm_inputs(batch, [(3, *size)] * batch, **objects)
        return model.data_preprocessor(data, training=True)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    draw = torch.Generator().manual_seed(0)
    # Areas of 32 x 32 pixels, each of one class.
    coarse = torch.randint(0, 150, (batch, 1, *(-(-side // 32) for side in size)), generator=draw)
    labels = coarse.repeat_interleave(32, 2).repeat_interleave(32, 3)[..., : size[0], : size[1]]
    samples = []
    for one in labels.to(device):
        sample = SegDataSample(gt_sem_seg=PixelData(data=one))
        sample.set_metainfo(dict(img_shape=size, ori_shape=size, pad_shape=size))
        samples.append(sample)
    images = torch.randn(batch, 3, *size, generator=draw).to(device)
    return dict(inputs=images, data_samples=samples)


def forward_of(method: Method, model: nn.Module, data: dict) -> Callable[[], object]:
    """Everything up to a detector's heads, or to a segmentor's label map.

    What a detector does with its outputs depends on how many objects it finds, and random weights
    find none: with ``mode="tensor"`` its heads see as many proposals as at their busiest.
    """
    mode = "tensor" if method.host == "mmdet" else "predict"
    return lambda: model(**data, mode=mode)


def losses_of(model: nn.Module, data: dict) -> Tensor:
    """The sum of all losses."""
    return model.parse_losses(model(**data, mode="loss"))[0]


def without_gradients(function: Callable[..., object], *inputs: object) -> Call:
    def call() -> object:
        with torch.inference_mode():
            return function(*inputs)

    return call


def autocast(settings: Settings, dtype: str) -> torch.autocast:
    return torch.autocast(settings.device.type, getattr(torch, dtype), enabled=dtype != "float32")


def parameters_millions(model: nn.Module) -> float:
    return 1e-6 * sum(parameter.numel() for parameter in model.parameters())


def spread_offsets(network: nn.Module, images: Tensor) -> None:
    """Gives the offsets of all DCNv4 layers the deviation that they have in trained networks.

    Args:
        network: Any; only its DCNv4 layers are changed.
        images: Passed through it once, to find the magnitude of the layers' inputs.
    """

    def spread(projection: nn.Linear, inputs: tuple[Tensor], groups: int) -> None:
        size = inputs[0].std() * projection.in_features**0.5
        # Masks of moderate size keep the maps from growing.
        nn.init.normal_(projection.weight).mul_(0.3 / size)
        projection.weight[offset_rows(groups, POINTS)] *= OFFSET_DEVIATION / 0.3

    hooks = [
        layer.offset_mask.register_forward_pre_hook(partial(spread, groups=layer.groups))
        for layer in network.modules()
        if isinstance(layer, DCNv4) and isinstance(layer.offset_mask, nn.Linear)
    ]
    if hooks:
        with torch.no_grad():
            network(images)
    for hook in hooks:
        hook.remove()


def forward_of_network(
    network: nn.Module, image: int, batch: int, dtype: str, settings: Settings
) -> Implementation:
    """The forward of a network on random images."""
    network.to(settings.device).train(False)
    images = torch.randn(batch, 3, image, image, device=settings.device)
    spread_offsets(network, images[:1])

    def forward() -> object:
        with autocast(settings, dtype):
            return network(images)

    return Implementation(
        calls=[without_gradients(forward)],
        images=batch,
        figures=dict(parameters_millions=parameters_millions(network)),
    )
