"""Parameter groups whose learning rate falls off towards the stem of the backbone."""

from contextlib import nullcontext
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from dcnv4_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ["LayerDecayOptimWrapperConstructor"]

_DEFAULTS: dict[str, Any] = {
    "layer_decay_rate": 1.0,
    "offset_lr_scale": 1.0,
    "offset_prefix": "",
    "first_layer_names": ("level_embeds",),
    "custom_keys": {},
    "recipe": "dense",
}
_NO_DECAY = ("norm", "relative_position", "sampling_offsets")
_OFFSETS = ("sampling_offsets", "reference_points")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Groups a model's parameters as the original project does.

    A parameter of layer ``i`` out of ``n`` learns at ``lr * layer_decay_rate ** (n - 1 - i)``.
    The layers are those of the backbone's ``get_layer_depth``; what lies outside of the backbone
    is in layer ``n - 1``. Biases and other vectors, norms, and the sampling offsets of deformable
    attention have no weight decay.

    Args:
        optim_wrapper_cfg: Settings of the wrapper; its ``optimizer`` must have an ``lr``.
        paramwise_cfg: Any of

            * ``layer_decay_rate``: in (0, 1]; 1 by default.
            * ``offset_lr_scale``: factor for the parameters that make sampling points: the linear
              offset layers of DCNv4 (not their depthwise convolution) and of deformable
              attention; 1 by default.
            * ``offset_prefix``: only parameters whose names begin so have this factor, such as
              ``"backbone."``, the rule of the original in segmentation; any by default.
            * ``first_layer_names``: a parameter that has one of these in its name is in layer 0;
              ``["level_embeds"]`` by default, a peculiarity of the original.
            * ``custom_keys``: factors ``lr_mult`` by part of a name; the alphabetically first
              that matches counts.
            * ``recipe``: ``"dense"``, as above, or ``"classification"``, by which the original
              trains classifiers: the stem is in the layer of the first block and what lies outside
              of the backbone in that of the last one, which learns at ``lr``; all that has
              ``offset`` in its name is an offset layer, the depthwise convolution too; groups are
              named by rate and decay, such as ``lr2e-05_wd0.05``.

    Raises:
        ValueError: An option is unknown or out of its range, the optimizer has no ``lr``, or no
            part of the model has a ``get_layer_depth``.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, released code. Other than there,
        depths are read from the backbone, wherever in the model it is.

    Example:
        >>> optim_wrapper = dict(
        ...     type="OptimWrapper",
        ...     optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
        ...     constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
        ...     paramwise_cfg=dict(layer_decay_rate=0.9),
        ... )
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the optimizer of a model.

        Args:
            model: The model, which may be wrapped for distributed training.

        Returns:
            The optimizer in its wrapper.
        """
        # FSDP holds shards of the parameters as vectors; here they are complete for a while.
        sharded = isinstance(model, FullyShardedDataParallel)
        full = FullyShardedDataParallel.summon_full_params(model, writeback=False)
        with full if sharded else nullcontext():
            return super().__call__(model)

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        if unknown := sorted(set(self.paramwise_cfg) - set(_DEFAULTS)):
            raise ValueError(
                f"paramwise_cfg has the unknown options {unknown}; known are {sorted(_DEFAULTS)}. "
                "The number of layers is read from the backbone"
            )
        self.paramwise_cfg = {**_DEFAULTS, **self.paramwise_cfg}
        if not 0 < (rate := self.paramwise_cfg["layer_decay_rate"]) <= 1:
            raise ValueError(f"layer_decay_rate must be above 0 and at most 1, got {rate}")
        if not (scale := self.paramwise_cfg["offset_lr_scale"]) >= 0:
            raise ValueError(f"offset_lr_scale must be at least 0, got {scale}")
        if (recipe := self.paramwise_cfg["recipe"]) not in ("dense", "classification"):
            raise ValueError(f'recipe must be "dense" or "classification", got {recipe!r}')
        for key, multipliers in self.paramwise_cfg["custom_keys"].items():
            if set(multipliers) - {"lr_mult"}:
                raise ValueError(f"custom_keys[{key!r}] takes lr_mult alone, got {multipliers}")
        if self.base_lr is None:
            raise ValueError("the optimizer needs an lr, from which those of the layers follow")

    def add_params(self, params: list[dict], module: nn.Module, **_: Any) -> None:
        """Adds the groups of a model's trainable parameters.

        Args:
            params: List of groups, filled in place. Beside what the optimizer reads, each has
                its ``name``, such as ``layer_3_no_decay``, and ``lr_scale``, its factor on lr.
            module: The model.
        """
        backbone, prefix = _find_backbone(module)
        classification = self.paramwise_cfg["recipe"] == "classification"
        groups: dict[str, dict] = {}
        for name, parameter in module.named_parameters():
            name = _plain(name)
            if not parameter.requires_grad:
                continue
            layer, num_layers = backbone.get_layer_depth(name, prefix)
            if any(part in name for part in self.paramwise_cfg["first_layer_names"]):
                layer = 0
            if classification:
                # Stem and head have no layers of their own.
                layer, num_layers = min(max(layer, 1), num_layers - 2), num_layers - 1
            decays = _decays(name, parameter)
            key = f"layer_{layer}_{'decay' if decays else 'no_decay'}"
            scale = self.paramwise_cfg["layer_decay_rate"] ** (num_layers - 1 - layer)
            in_scope = name.startswith(self.paramwise_cfg["offset_prefix"])
            samples = _makes_sampling_points(name) or (classification and "offset" in name)
            if in_scope and samples:
                key += "_offset_lr_scale"
                scale *= self.paramwise_cfg["offset_lr_scale"]
            for part in sorted(self.paramwise_cfg["custom_keys"]):
                if part in name:
                    key += f"_{part}"
                    scale *= self.paramwise_cfg["custom_keys"][part].get("lr_mult", 1.0)
                    break
            if classification:
                decay = (self.base_wd or 0.0) if decays else 0.0
                key = f"lr{self.base_lr * scale:g}_wd{decay:g}"
            if key not in groups:
                groups[key] = self._new_group(key, scale, decays=decays)
            groups[key]["params"].append(parameter)
        params.extend(groups.values())

    def _new_group(self, name: str, scale: float, *, decays: bool) -> dict:
        group = {"name": name, "params": [], "lr": self.base_lr * scale, "lr_scale": scale}
        if not decays:
            group["weight_decay"] = 0.0
        return group


def _find_backbone(model: nn.Module) -> tuple[nn.Module, str]:
    """Finds the module that knows its layers, and what its names in the model begin with."""
    found = [
        (module, _plain(f"{name}.") if name else "")
        for name, module in model.named_modules()
        if hasattr(module, "get_layer_depth")
    ]
    if not found:
        raise ValueError(
            f"no part of this {type(model).__name__} has a get_layer_depth method, which the "
            "backbones of dcnv4_mm have: use mmengine's default constructor for other backbones"
        )
    # A classifier may pass the question on to its backbone: ask the innermost.
    return max(found, key=lambda item: item[1].count("."))


def _plain(name: str) -> str:
    """A name without the wrappers that FSDP and its activation checkpointing put in."""
    return name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    vector = parameter.ndim == 1 or name.endswith(".bias")
    return not vector and not any(part in name for part in _NO_DECAY)


def _makes_sampling_points(name: str) -> bool:
    return (
        ("offset_mask" in name and "offset_mask_dw" not in name)
        or any(part in name for part in _OFFSETS)
        or name.endswith("offset")
    )
