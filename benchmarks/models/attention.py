"""Whole models with the deformable attention of their host, and with this package's operator.

Our own DINO and Mask2Former, whose host's attention is mmcv's, and models of transformers, with
random weights and their default backbones or ResNet-50.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product

import torch
from compare import Implementation, Settings, compare
from measure import Table
from models.networks import (
    METHODS,
    OURS,
    autocast,
    forward_of,
    make_batch,
    make_model,
    missing_host,
    parameters_millions,
    without_gradients,
)
from torch import nn

from dcnv4_mm.integrations import swap_deformable_attention

IMAGE = 640
# A model and its arguments beside the images.
Made = tuple[nn.Module, dict[str, torch.Tensor]]


def _detector(name: str) -> Made:
    import transformers

    return getattr(transformers, f"{name}ForObjectDetection")(
        getattr(transformers, f"{name}Config")()
    ), {}


def _grounding_dino() -> Made:
    model, _ = _detector("GroundingDino")
    # Four tokens between the special ones.
    return model, {"input_ids": torch.tensor([[101, 4937, 1012, 3899, 1012, 102]])}


def _omdet_turbo() -> Made:
    import transformers

    model = transformers.OmDetTurboForObjectDetection(
        transformers.OmDetTurboConfig(image_size=IMAGE)
    )
    tokens = torch.tensor([[49406, 2368, 49407], [49406, 1929, 49407]])
    text = {"classes": tokens, "tasks": tokens[:1]}
    ids = {f"{name}_input_ids": ids for name, ids in text.items()}
    masks = {f"{name}_attention_mask": torch.ones_like(ids) for name, ids in text.items()}
    return model, {**ids, **masks, "classes_structure": torch.tensor([2])}


def _segmentor(name: str) -> Made:
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = getattr(transformers, f"{name}Config")(
        backbone_config=transformers.ResNetConfig(out_features=stages)
    )
    arguments = {"task_inputs": torch.rand(1, 77)} if name == "OneFormer" else {}
    return getattr(transformers, f"{name}ForUniversalSegmentation")(config), arguments


TRANSFORMERS: dict[str, Callable[[], Made]] = {
    "RT-DETR R50": partial(_detector, "RTDetr"),
    "Deformable DETR R50": partial(_detector, "DeformableDetr"),
    "Mask2Former R50": partial(_segmentor, "Mask2Former"),
    "D-FINE": partial(_detector, "DFine"),
    "RT-DETRv2 R50": partial(_detector, "RTDetrV2"),
    "Grounding DINO Swin-T": _grounding_dino,
    "OneFormer R50": partial(_segmentor, "OneFormer"),
    "OmDet-Turbo Swin-T": _omdet_turbo,
}


def _spread(model: nn.Module) -> None:
    """Gives the offsets of the attention the deviation that they have in trained networks."""
    for name, parameter in model.named_parameters():
        if name.endswith("sampling_offsets.weight"):
            nn.init.normal_(parameter, std=2 / parameter.shape[1] ** 0.5)


def _size_of(name: str, settings: Settings) -> tuple[int, int]:
    side = settings.options.image
    if side or name not in METHODS:
        return (side or IMAGE,) * 2
    return METHODS[name].small


def _implementation(
    model: nn.Module, forward: Callable[[], object], dtype: str, settings: Settings
) -> Implementation:
    def call() -> object:
        with autocast(settings, dtype):
            return forward()

    figures = dict(parameters_millions=parameters_millions(model))
    return Implementation(calls=[without_gradients(call)], images=1, figures=figures)


def run(table: Table, settings: Settings) -> None:
    """The forward of one image, with either attention."""
    wanted = settings.options.methods

    def build_ours(name: str, dtype: str, swapped: bool) -> Implementation:
        torch.manual_seed(0)
        method = METHODS[name]
        model = make_model(method, OURS, "t").to(settings.device).eval()
        _spread(model)
        swap_deformable_attention(model)
        if not swapped:
            for module in model.modules():
                if type(module).__module__ == "dcnv4_mm.integrations._mmcv":
                    module.__class__ = type(module).__mro__[1]
        forward = forward_of(method, model, make_batch(method, model, _size_of(name, settings), 1))
        return _implementation(model, forward, dtype, settings)

    def build(name: str, dtype: str, swapped: bool) -> Implementation:
        torch.manual_seed(0)
        model, arguments = TRANSFORMERS[name]()
        model = model.to(settings.device).eval()
        _spread(model)
        if swapped and not swap_deformable_attention(model):
            raise AssertionError(f"{name} has no attention to swap")
        arguments = {key: value.to(settings.device) for key, value in arguments.items()}
        images = torch.rand(1, 3, *_size_of(name, settings), device=settings.device)
        return _implementation(model, lambda: model(images, **arguments), dtype, settings)

    builders: dict[str, Callable[..., Implementation]] = {}
    for name in ("DINO", "Mask2Former"):
        if missing_host(METHODS[name]) is None:
            builders[name] = build_ours
    if find_spec("transformers"):
        builders |= dict.fromkeys(TRANSFORMERS, build)
    else:
        print("transformers is not installed: see `make bench-transformers`", flush=True)
    for name, dtype in product(builders, settings.dtypes):
        if wanted is not None and name not in wanted:
            continue
        height, width = _size_of(name, settings)
        label = f"{name} FlashInternImage-T" if name in METHODS else name
        compare(
            table,
            settings,
            case=f"{label} 1x{height}x{width}",
            measured="forward",
            dtype=dtype,
            builders={
                "swapped": partial(builders[name], name, dtype, swapped=True),
                "the host's": partial(builders[name], name, dtype, swapped=False),
            },
            # CPU time of one thread: other work on the machine counts less.
            clock=time.process_time if max(settings.threads) == 1 else time.perf_counter,
        )
