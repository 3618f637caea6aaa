"""Models of any host and batches for them, for the tools that count and measure."""

import argparse
from typing import TYPE_CHECKING

from dcnv4_mm.cli.configs import stop

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

# Default image size (height, width): what the papers measure with.
SIZES = {"mmdet": (800, 1280), "mmseg": (512, 512), "mmpretrain": (224, 224)}


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose the model's input."""
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of random images; default: 800 1280 (mmdet), 512 512 (mmseg), 224 224 (mmpretrain)",
    )
    parser.add_argument(
        "--from-dataset",
        action="store_true",
        help="take samples of the config's test set instead of random images; needed for mmdet3d",
    )


def build_model(cfg: "Config", checkpoint: str | None = None) -> "nn.Module":
    """Builds a config's model for inference, on the CPU.

    Args:
        cfg: The config.
        checkpoint: File of its weights, released or our own; initial weights without one.

    Returns:
        The model, in evaluation mode.
    """
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    from dcnv4_mm.checkpoints import load_released

    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    hooks = [hook["type"] for hook in cfg.get("custom_hooks", [])]
    if "dcnv4_mm.SwapDeformableAttentionHook" in hooks:
        from dcnv4_mm.integrations import swap_deformable_attention

        swap_deformable_attention(model)
    if checkpoint:
        try:
            load_released(model, checkpoint)
        except (ValueError, OSError) as error:
            stop(str(error))
    return model


def make_batch(cfg: "Config", args: argparse.Namespace, count: int) -> dict:
    """A batch as the host's data loader yields it, of random images or from the test set.

    Args:
        cfg: The config.
        args: The parsed arguments of :func:`add_batch_arguments`.
        count: Number of images or samples in the batch.

    Returns:
        ``inputs`` and ``data_samples``, for ``model.test_step`` or ``model.data_preprocessor``.
    """
    host = cfg.default_scope
    if args.from_dataset:
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import DATASETS

        from dcnv4_mm.cli.checks import check_data

        check_data(cfg, "test")
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        return pseudo_collate([dataset[index % len(dataset)] for index in range(count)])
    if host not in SIZES:
        stop(f"random images do not make a sample of {host}: add --from-dataset")
    import torch

    height, width = args.size or SIZES[host]
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (height, width))
    sample = sample_class(host)
    samples = [sample(metainfo={**meta, "scale_factor": (1.0, 1.0)}) for _ in range(count)]
    return {"inputs": list(images), "data_samples": samples}


def sample_class(host: str) -> type:
    """The host's data-sample class."""
    if host == "mmdet":
        from mmdet.structures import DetDataSample as Sample
    elif host == "mmseg":
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmpretrain.structures import DataSample as Sample
    return Sample
