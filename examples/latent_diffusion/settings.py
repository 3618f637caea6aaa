"""Training settings in YAML, and the networks that they describe."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from dcnv4_unet import DCNv4UNet2DModel
from diffusers import UNet2DModel

__all__ = ["OPERATORS", "Settings", "Training", "build_unet", "read_settings"]

OPERATORS: dict[str, type[UNet2DModel]] = {"dcnv4": DCNv4UNet2DModel, "convolution": UNet2DModel}


@dataclass(frozen=True)
class Training:
    """Training settings of a U-Net.

    Args:
        steps: Number of optimizer steps.
        batch_size: Images per step and process.
        learning_rate: Learning rate after the warm-up.
        warmup_steps: Steps of linear warm-up from 0.
        schedule: Schedule after it, by diffusers' name: ``constant_with_warmup``, ``cosine``, ...
        weight_decay: Weight decay of AdamW.
        label_dropout: Fraction of images trained without their class, for guidance.
        ema_decay: Maximum decay of the averaged weights.
        max_grad_norm: Maximum norm of the gradient, by clipping.
        flip: Whether to flip images or latents horizontally at random.
        save_every: Steps between checkpoints.
        sample_every: Steps between grids of samples.
        sample_steps: Denoising steps of these samples.
        log_every: Steps between lines of the log.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    schedule: str = "constant_with_warmup"
    weight_decay: float = 0.0
    label_dropout: float = 0.1
    ema_decay: float = 0.9999
    max_grad_norm: float = 1.0
    flip: bool = True
    save_every: int = 10000
    sample_every: int = 10000
    sample_steps: int = 50
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "save_every",
            "sample_every",
            "sample_steps",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise ValueError(
                "training.learning_rate and training.max_grad_norm must be positive, got "
                f"{self.learning_rate} and {self.max_grad_norm}"
            )
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class Settings:
    """A config of train.py.

    Args:
        unet: Arguments of diffusers' ``UNet2DModel``.
        scheduler: Arguments of its ``DDIMScheduler``.
        training: The :class:`Training` settings.
        narrow: Arguments that make the convolutional U-Net as large as that with DCNv4.
        vae: Name or folder of the ``AutoencoderKL`` of the latents.
        guidance_scale: Guidance scale of the grids of samples.
    """

    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    training: Training
    narrow: Mapping[str, Any] = field(default_factory=dict)
    vae: str | None = None
    guidance_scale: float = 2.0

    def __post_init__(self) -> None:
        if missing := {"sample_size", "in_channels", "out_channels"} - self.unet.keys():
            raise ValueError(f"unet must set {', '.join(sorted(missing))}")
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale must be at least 1, got {self.guidance_scale}")


def read_settings(path: str | Path, changes: Mapping[str, str] | None = None) -> Settings:
    """Reads a config.

    Args:
        path: A YAML file with the fields of :class:`Settings`.
        changes: Fields of ``training`` to override, with values in YAML.

    Raises:
        ValueError: The file is missing or not YAML, or a field is unknown, missing or of another
            type.
    """
    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the config {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("training"), dict):
        raise ValueError(f"the config {path} must have the parts {_names(Settings)}")
    found["training"] |= {name: yaml.safe_load(text) for name, text in (changes or {}).items()}
    try:
        return _make(Settings, found | {"training": _make(Training, found["training"])})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def build_unet(
    settings: Settings, operator: str, classes: int, *, narrow: bool = True
) -> UNet2DModel:
    """Builds the U-Net for a number of classes, and one more for "unconditional".

    Args:
        settings: A config.
        operator: ``"dcnv4"`` or ``"convolution"``.
        classes: Number of classes.
        narrow: Whether convolutions get as many parameters as DCNv4, instead of as many channels.

    Raises:
        ValueError: An argument of the config is unknown, or does not fit the others.
    """
    arguments = dict(settings.unet)
    if narrow and operator == "convolution":
        arguments |= settings.narrow
    known = inspect.signature(UNet2DModel.__init__).parameters
    if unknown := sorted(arguments.keys() - known.keys()):
        raise ValueError(f"unet: unknown: {', '.join(unknown)}")
    return OPERATORS[operator](**arguments, num_class_embeds=classes + 1)


def _names(kind: type) -> str:
    return ", ".join(each.name for each in fields(kind))


def _make(kind: type, found: Mapping[str, Any]) -> Any:
    """An instance of a dataclass, with checked types."""
    if unknown := sorted(found.keys() - {each.name for each in fields(kind)}):
        raise ValueError(f"unknown: {', '.join(unknown)}; known are {_names(kind)}")
    for each in fields(kind):
        if each.name in found and each.type in (int, float, str, bool):
            value = found[each.name]
            wanted = (int, float) if each.type is float else each.type
            if not isinstance(value, wanted) or (isinstance(value, bool) and each.type is not bool):
                raise ValueError(f"{each.name} must be {each.type.__name__}, got {value!r}")
    return kind(**found)
