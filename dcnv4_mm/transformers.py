"""Hugging Face transformers: importing this module registers the model type ``flash_internimage``.

``AutoConfig``, ``AutoModel``, ``AutoBackbone`` and ``AutoModelForImageClassification`` then know
FlashInternImage and InternImage, and so do the models that take a backbone, such as Mask2Former and
UperNet. The state dicts have the keys of :class:`~dcnv4_mm.backbones.FlashInternImage`.

Example:
    >>> import dcnv4_mm.transformers  # doctest: +SKIP
    >>> from transformers import AutoModelForImageClassification  # doctest: +SKIP
    >>> AutoModelForImageClassification.from_pretrained("folder")  # doctest: +SKIP
"""

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.transformers", "transformers"):
    import transformers  # noqa: F401

# isort: split
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.backbones.archs import ARCHS, DCNV3_ARCHS, read_arch
from dcnv4_mm.backbones.blocks import Block
from dcnv4_mm.checkpoints import load_released
from dcnv4_mm.checkpoints.files import naming_file, read_file
from dcnv4_mm.checkpoints.flash_intern_image import is_dcnv3, is_layer_scale
from dcnv4_mm.checkpoints.identify import identify
from dcnv4_mm.checkpoints.key_mappings import FLASH_INTERN_IMAGE, convert_keys
from dcnv4_mm.checkpoints.loading import select_entry, strip_wrappers
from dcnv4_mm.layers import DCNv3, DCNv4, channels_first

__all__ = [
    "FlashInternImageBackbone",
    "FlashInternImageConfig",
    "FlashInternImageForImageClassification",
    "FlashInternImageModel",
    "from_released",
    "image_processor",
]


class FlashInternImageConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a FlashInternImage or InternImage.

    Attributes:
        arch: As for :class:`~dcnv4_mm.backbones.FlashInternImage`, as are the next four.
        core_op: ``"DCNv4"``, or ``"DCNv3"`` for InternImage.
        num_channels: Channels of the images.
        layer_scale: Initial layer scale, or ``None``.
        drop_path_rate: Stochastic depth of the last block.
        image_size: Size that the classifier was trained on, for the image processor.
    """

    model_type = "flash_internimage"

    arch: str | dict[str, Any] = "t"
    core_op: str = "DCNv4"
    num_channels: int = 3
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    image_size: int = 224

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks the arch and reads ``out_features`` and ``out_indices``."""
        channels = read_arch(self.arch, self.core_op).channels
        self.hidden_sizes = [channels * 2**stage for stage in range(4)]
        self.stage_names = ["stem", "stage1", "stage2", "stage3", "stage4"]
        self.set_output_features_output_indices(
            kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class FlashInternImagePreTrainedModel(PreTrainedModel):
    """The network, by which the three models differ in their outputs alone."""

    config_class = FlashInternImageConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)

    def __init__(self, config: FlashInternImageConfig, num_classes: int | None = None) -> None:
        super().__init__(config)
        network = FlashInternImage(
            config.arch,
            core_op=config.core_op,
            in_channels=config.num_channels,
            layer_scale=config.layer_scale,
            drop_path_rate=config.drop_path_rate,
            num_classes=num_classes,
        )
        # Under the same names, for the same state dict.
        self.patch_embed, self.levels = network.patch_embed, network.levels
        if network.head is not None:
            self.head = network.head
        self.gradient_checkpointing = False
        self.post_init()

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (N, H, W, C) of the stem and of every stage."""
        x = self.patch_embed(pixel_values)
        maps = [x]
        for stage in self.levels:
            output, x = stage(x, with_cp=self.gradient_checkpointing and self.training)
            maps.append(output)
        return maps

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # With custom code, transformers skips modules without parameters of their own.
        super()._initialize_weights(module, is_custom_code=False)

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes what a checkpoint lacks, children before parents, as our constructors do."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.Conv2d, DCNv3, DCNv4)):
            module.reset_parameters()
        elif isinstance(module, Block) and module.gamma1 is not None:
            for scale in (module.gamma1, module.gamma2):
                nn.init.constant_(scale, self.config.layer_scale)


class FlashInternImageModel(FlashInternImagePreTrainedModel):
    """The network without a head."""

    _keys_to_ignore_on_load_unexpected = (r"^head\.",)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The last feature map (N, C, H / 32, W / 32) and its mean over the image."""
        maps = self.stages(pixel_values)
        last = channels_first(maps[-1]).contiguous()
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=last.mean((2, 3)),
            hidden_states=_hidden_states(self.config, maps, output_hidden_states),
        )
        return _returned(self.config, output, return_dict)


class FlashInternImageForImageClassification(FlashInternImagePreTrainedModel):
    """The network with the released models' classification head."""

    accepts_loss_kwargs = False

    def __init__(self, config: FlashInternImageConfig) -> None:
        super().__init__(config, num_classes=config.num_labels)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits (N, num_labels), and the loss if there are labels."""
        maps = self.stages(pixel_values)
        logits = self.head(maps)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutputWithNoAttention(
            loss=loss,
            logits=logits,
            hidden_states=_hidden_states(self.config, maps, output_hidden_states),
        )
        return _returned(self.config, output, return_dict)


class FlashInternImageBackbone(BackboneMixin, FlashInternImagePreTrainedModel):
    """The network as a feature pyramid: the stages that the configuration's out_features name."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = (r"^head\.",)

    def __init__(self, config: FlashInternImageConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Contiguous feature maps (N, C, H, W)."""
        maps = self.stages(pixel_values)
        output = BackboneOutput(
            feature_maps=tuple(channels_first(maps[i]).contiguous() for i in self.out_indices),
            hidden_states=_hidden_states(self.config, maps, output_hidden_states),
        )
        return _returned(self.config, output, return_dict)


def _hidden_states(config: Any, maps: list[Tensor], wanted: bool | None) -> Any:
    wanted = config.output_hidden_states if wanted is None else wanted
    return tuple(map(channels_first, maps)) if wanted else None


def _returned(config: Any, output: Any, return_dict: bool | None) -> Any:
    return_dict = config.return_dict if return_dict is None else return_dict
    return output if return_dict else output.to_tuple()


def from_released(
    path: str | Path, *, image_size: int = 224
) -> FlashInternImageForImageClassification:
    """Makes a model of a released classification file; ``save_pretrained`` writes it.

    Args:
        path: The file, or one in our spelling; architecture and classes are read from its shapes.
        image_size: Size that it was trained on.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds no such classifier.
    """
    checkpoint = read_file(path)
    with naming_file(path):
        weights = strip_wrappers(select_entry(checkpoint, classifier=True)[1])
        config = _config_of(convert_keys(weights, [("", FLASH_INTERN_IMAGE)]), image_size)
        model = FlashInternImageForImageClassification(config)
        load_released(model, checkpoint)
    return model


def _config_of(weights: Mapping[str, Tensor], image_size: int) -> FlashInternImageConfig:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if not {"patch_embed.conv2.weight", "head.fc.weight"} <= set(shapes):
        raise ValueError(
            "expected the weights of a FlashInternImage or InternImage classifier, got those of "
            f"{identify(weights)}"
        )
    dcnv3 = any(map(is_dcnv3, weights))
    channels = shapes["patch_embed.conv2.weight"][0]
    names = {arch.channels: name for name, arch in (DCNV3_ARCHS if dcnv3 else ARCHS).items()}
    if channels not in names:
        raise ValueError(f"expected one of {sorted(names)} channels after the stem, got {channels}")
    scales = [tensor for name, tensor in weights.items() if is_layer_scale(name)]
    return FlashInternImageConfig(
        arch=names[channels],
        core_op="DCNv3" if dcnv3 else "DCNv4",
        num_channels=shapes["patch_embed.conv1.weight"][1],
        # Released classifiers start at this; the value that was learned is in the file.
        layer_scale=1e-5 if scales else None,
        num_labels=shapes["head.fc.weight"][0],
        image_size=image_size,
    )


def image_processor(config: FlashInternImageConfig) -> Any:
    """The released classifiers' preprocessing: shorter edge, center crop, ImageNet's statistics."""
    return BitImageProcessor(
        size={"shortest_edge": config.image_size},
        crop_size={"height": config.image_size, "width": config.image_size},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


AutoConfig.register(FlashInternImageConfig.model_type, FlashInternImageConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, FlashInternImageModel),
    (AutoBackbone, FlashInternImageBackbone),
    (AutoModelForImageClassification, FlashInternImageForImageClassification),
):
    _auto.register(FlashInternImageConfig, _model, exist_ok=True)
