"""Reads InternImage's recordings: arguments in this package's names, what is stored of arrays."""

import pytest
import torch
from helpers import load_json, normal

from dcnv4_mm.backbones import FlashInternImage


def backbone_arguments(kwargs):
    """This package's arguments for the original's; what only concerns training is left out."""
    arch = {
        **{name: kwargs[name] for name in ("channels", "offset_scale", "post_norm", "mlp_ratio")},
        **{name: tuple(kwargs[name]) for name in ("depths", "groups")},
        "dw_kernel_size": kwargs.get("dw_kernel_size"),
        "center_feature_scale": kwargs.get("center_feature_scale", False),
        "remove_center": kwargs.get("remove_center", False),
        "res_post_norm": kwargs.get("res_post_norm", False),
        "extra_norms": tuple(kwargs.get("level2_post_norm_block_ids") or ()),
        "attention_pooling": kwargs.get("use_clip_projector", False),
    }
    return {"arch": arch, "layer_scale": kwargs["layer_scale"], "core_op": "DCNv3"}


def build(kwargs, **arguments):
    return FlashInternImage(**backbone_arguments(kwargs), **arguments)


def models(kind):
    """Manifests of one kind by the original's name."""
    return load_json("internimage/manifests")["models"][kind]


def manifest(kind, stem):
    """Shapes by released name, in order, of one released model."""
    return load_json("internimage/manifests")["tensors"][models(kind)[stem]["tensors"]]


def numbered(shapes, buffers=()):
    """A state dict whose i-th tensor is full of i, without memory."""
    tensors = {n: torch.tensor(float(i)).expand(s) for i, (n, s) in enumerate(shapes.items())}
    for name in buffers:
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensors[name].long()
    return tensors


def picked(tensor, count):
    flat = tensor.detach().flatten()
    return flat[torch.arange(count) * flat.numel() // count]


def assert_stored(key, tensor, stored, tolerance):
    """Compares with a dot product with noise and samples, relative to the largest number."""
    expected = torch.from_numpy(stored)
    atol = tolerance * tensor.detach().abs().max().item()
    samples = picked(tensor, len(expected) - 1).double()
    torch.testing.assert_close(samples, expected[1:], rtol=0, atol=atol, msg=key)
    dot = tensor.detach().double().flatten() @ torch.from_numpy(normal(key, tensor.numel()))
    assert dot.item() == pytest.approx(expected[0].item(), abs=atol * tensor.numel() ** 0.5), key
