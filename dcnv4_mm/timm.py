"""timm models: importing this module registers FlashInternImage and InternImage.

The names are ``flash_internimage_{tiny,small,base,large}`` and
``internimage_{tiny,small,base,large,xlarge}``.

Example:
    >>> import timm  # doctest: +SKIP
    >>> import dcnv4_mm.timm  # doctest: +SKIP
    >>> model = timm.create_model("flash_internimage_tiny", features_only=True)  # doctest: +SKIP
"""

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.timm", "timm"):
    import timm  # noqa: F401

# isort: split
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.backbones.heads import ClassificationHead
from dcnv4_mm.checkpoints import load_released
from dcnv4_mm.checkpoints.key_mappings import FLASH_INTERN_IMAGE, convert_keys
from dcnv4_mm.layers import channels_first

__all__ = ["TimmFlashInternImage"]

_RELEASES = "https://huggingface.co/OpenGVLab/{}/resolve/main/"


class TimmFlashInternImage(FlashInternImage):
    """FlashInternImage with timm's interface; its keys are those of a classifier of this package.

    Args:
        arch: As for :class:`~dcnv4_mm.backbones.FlashInternImage`, but for InternImage's h and g.
        core_op: ``"DCNv4"``, or ``"DCNv3"`` for InternImage.
        num_classes: Number of classes; 0 returns the pooled features of the head.
        in_chans: Channels of the images.
        global_pool: ``"avg"``, or an empty str for no pooling.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Stochastic depth of the last block.
        layer_scale: Initial layer scale, or ``None``.

    Raises:
        ValueError: ``global_pool`` is neither of the two, the classifier pools by attention, or as
            for the backbone.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        *,
        core_op: str = "DCNv4",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__(
            arch,
            core_op=core_op,
            in_channels=in_chans,
            drop_path_rate=drop_path_rate,
            layer_scale=layer_scale,
            num_classes=1,
        )
        self.drop_rate = drop_rate
        self.num_features = self.out_channels[-1]
        if not isinstance(self.head, ClassificationHead):
            raise ValueError("arch: expected a classifier that pools by the mean, not h or g")
        self.head_hidden_size = self.head.fc.in_features
        self.feature_info = [
            dict(num_chs=channels, reduction=4 * 2**stage, module=f"levels.{stage}")
            for stage, channels in enumerate(self.out_channels)
        ]
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map (N, C, H / 32, W / 32), as the head takes it: not contiguous."""
        return channels_first(self._stage_maps(x, len(self.levels))[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last feature map, or with ``pre_logits`` the features before them."""
        x = self.head.act(self.head.norm(self.head.conv(x)))
        if self.global_pool:
            x = x.mean((2, 3))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head.fc(x)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes the stages after the last requested one, and the head if it is not needed."""
        wanted = self._stages(indices)
        pruned = wanted[-1] < len(self.levels) - 1
        self.levels = self.levels[: wanted[-1] + 1]
        self.levels[-1].downsample = nn.Identity()
        self.num_features = self.out_channels[wanted[-1]]
        if prune_head or pruned:
            self.head = None
            self.num_classes = 0
        return wanted

    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity without classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer by a new one for ``num_classes``."""
        if global_pool not in ("avg", "", None):
            raise ValueError(f"global_pool: expected 'avg' or an empty str, got {global_pool!r}")
        if global_pool is not None:
            self.global_pool = global_pool
        if num_classes and not self.global_pool:
            raise ValueError("global_pool: a classifier needs 'avg', got an empty str")
        self.num_classes = num_classes
        old = self.head.conv.weight
        self.head.fc = nn.Identity()
        if num_classes:
            fc = nn.Linear(self.head_hidden_size, num_classes, device=old.device, dtype=old.dtype)
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)
            self.head.fc = fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass, to save memory."""
        self.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups the parameters for layer-wise learning rates."""
        blocks = [
            (r"^levels\.(\d+)\.blocks\.(\d+)", None),
            (r"^levels\.(\d+)\.(?:norm|post_norms|downsample)", (99999,)),
        ]
        return dict(stem=r"^patch_embed", blocks=r"^levels\.(\d+)" if coarse else blocks)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides one-dimensional ones: none."""
        return set()

    def load_pretrained(self, path: str | Path) -> None:
        """Loads a released classification file, with the classifier if it has as many classes."""
        released = self.default_cfg["num_classes"] if hasattr(self, "default_cfg") else 1000
        load_released(self, path, allow=() if self.num_classes == released else ("head.fc.",))


def _filter(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Converts released keys; keys of this package are kept."""
    return convert_keys(weights, [("", FLASH_INTERN_IMAGE)])


def _cfg(file: str, size: int = 224, *, dcnv3: bool = False) -> dict[str, Any]:
    project = "InternImage" if dcnv3 else "DCNv4"
    return dict(
        url=_RELEASES.format(project) + file,
        custom_load=True,
        num_classes=1000,
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        crop_pct=1.0,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="patch_embed.conv1",
        classifier="head.fc",
        license="mit",
        paper_ids="arXiv:2211.05778" if dcnv3 else "arXiv:2401.06197",
        origin_url=f"https://github.com/OpenGVLab/{project}",
    )


default_cfgs = generate_default_cfgs(
    {
        "flash_internimage_tiny.in1k": _cfg("flash_intern_image_t_1k_224.pth"),
        "flash_internimage_small.in1k": _cfg("flash_intern_image_s_1k_224.pth"),
        "flash_internimage_base.in1k": _cfg("flash_intern_image_b_1k_224.pth"),
        "flash_internimage_large.in22k_ft_in1k_384": _cfg(
            "flash_internimage_l_22kto1k_384.pth", size=384
        ),
        "internimage_tiny.in1k": _cfg("internimage_t_1k_224.pth", dcnv3=True),
        "internimage_small.in1k": _cfg("internimage_s_1k_224.pth", dcnv3=True),
        "internimage_base.in1k": _cfg("internimage_b_1k_224.pth", dcnv3=True),
        "internimage_large.in22k_ft_in1k_384": _cfg(
            "internimage_l_22kto1k_384.pth", 384, dcnv3=True
        ),
        "internimage_xlarge.in22k_ft_in1k_384": _cfg(
            "internimage_xl_22kto1k_384.pth", 384, dcnv3=True
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        TimmFlashInternImage,
        variant,
        pretrained,
        pretrained_filter_fn=_filter,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
        **kwargs,
    )


@register_model
def flash_internimage_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FlashInternImage-T."""
    arguments = {"arch": "t", **kwargs}
    return _create("flash_internimage_tiny", pretrained, **arguments)


@register_model
def flash_internimage_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FlashInternImage-S."""
    arguments = {"arch": "s", "layer_scale": 1e-5, **kwargs}
    return _create("flash_internimage_small", pretrained, **arguments)


@register_model
def flash_internimage_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FlashInternImage-B."""
    arguments = {"arch": "b", "layer_scale": 1e-5, **kwargs}
    return _create("flash_internimage_base", pretrained, **arguments)


@register_model
def flash_internimage_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """FlashInternImage-L."""
    arguments = {"arch": "l", "layer_scale": 1e-5, **kwargs}
    return _create("flash_internimage_large", pretrained, **arguments)


@register_model
def internimage_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InternImage-T."""
    arguments = {"arch": "t", "core_op": "DCNv3", **kwargs}
    return _create("internimage_tiny", pretrained, **arguments)


@register_model
def internimage_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InternImage-S."""
    arguments = {"arch": "s", "core_op": "DCNv3", "layer_scale": 1e-5, **kwargs}
    return _create("internimage_small", pretrained, **arguments)


@register_model
def internimage_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InternImage-B."""
    arguments = {"arch": "b", "core_op": "DCNv3", "layer_scale": 1e-5, **kwargs}
    return _create("internimage_base", pretrained, **arguments)


@register_model
def internimage_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InternImage-L."""
    arguments = {"arch": "l", "core_op": "DCNv3", "layer_scale": 1e-5, **kwargs}
    return _create("internimage_large", pretrained, **arguments)


@register_model
def internimage_xlarge(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InternImage-XL."""
    arguments = {"arch": "xl", "core_op": "DCNv3", "layer_scale": 1e-5, **kwargs}
    return _create("internimage_xlarge", pretrained, **arguments)
