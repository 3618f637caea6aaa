"""Class-conditional generation pipeline of a U-Net and, for latents, a VAE."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from dcnv4_unet import DCNv4UNet2DModel
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor

__all__ = ["ClassConditionalPipeline", "load_pipeline"]


class ClassConditionalPipeline(DiffusionPipeline):
    """Generates images of classes with classifier-free guidance.

    Args:
        unet: Denoises images or latents, with the prediction type of ``scheduler``; the last of
            its ``num_class_embeds`` classes is the unconditional one.
        scheduler: The noise scheduler.
        vae: Decodes latents to images; ``None`` if the U-Net works on pixels.
        class_names: Names of the classes, in the order of their labels.

    Example:
        >>> pipeline = load_pipeline("work_dirs/mini_dcnv4/pipeline")
        >>> pipeline(["ring", "cross"], generator=torch.manual_seed(0)).images
        [<PIL.Image.Image ...>, <PIL.Image.Image ...>]
    """

    _optional_components: ClassVar[list[str]] = ["vae"]
    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        vae: AutoencoderKL | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(class_names=list(class_names))

    def labels(self, classes: Sequence[str | int]) -> list[int]:
        """Labels of classes given by name or label.

        Raises:
            ValueError: There is no such class.
        """
        names = list(self.config.class_names)
        count = self.unet.config.num_class_embeds - 1
        found = [names.index(each) if each in names else each for each in classes]
        if not found or not all(isinstance(each, int) and 0 <= each < count for each in found):
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(
                f"classes must be labels from 0 to {count - 1} or names ({shown}), got {classes}"
            )
        return found

    @torch.no_grad()
    def __call__(
        self,
        classes: Sequence[str | int],
        *,
        guidance_scale: float = 2.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Generates one image for each of ``classes``.

        Args:
            classes: Names or labels, N of them.
            guidance_scale: Scale of classifier-free guidance; 1 turns it off, more needs a second
                evaluation in each step.
            num_inference_steps: Number of denoising steps, at least 1.
            generator: Source of the noise; one on the CPU gives the same on all devices.
            output_type: ``"pil"``, ``"np"`` (N, H, W, 3) or ``"pt"`` (N, 3, H, W), in [0, 1].

        Returns:
            The images, as ``images``.

        Raises:
            ValueError: A class is unknown, or a number is out of its range.
        """
        if guidance_scale < 1 or num_inference_steps < 1 or output_type not in ("pil", "np", "pt"):
            raise ValueError(
                "guidance_scale and num_inference_steps must be at least 1, output_type one of "
                f"pil, np, pt; got {guidance_scale}, {num_inference_steps}, {output_type!r}"
            )
        device, config = self._execution_device, self.unet.config
        labels = torch.tensor(self.labels(classes), device=device)
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for step in self.progress_bar(self.scheduler.timesteps):
            sample = self.scheduler.step(
                self._predict(sample, step, labels, guidance_scale), step, sample
            ).prev_sample
        if self.vae is not None:
            latents = sample.to(self.vae.dtype) / self.vae.config.scaling_factor
            sample = self.vae.decode(latents).sample
        self.maybe_free_model_hooks()
        images = (sample.float() / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(self.numpy_to_pil(images) if output_type == "pil" else images)

    def _predict(
        self, sample: torch.Tensor, step: torch.Tensor, labels: torch.Tensor, guidance_scale: float
    ) -> torch.Tensor:
        if guidance_scale == 1:
            return self.unet(sample, step, labels).sample
        any_class = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
        both = self.unet(torch.cat([sample] * 2), step, torch.cat([labels, any_class])).sample
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)


def load_pipeline(folder: str | Path) -> ClassConditionalPipeline:
    """Loads a pipeline of ``train.py``; weights from safetensors only.

    Raises:
        ValueError: The folder holds no such pipeline.
    """
    folder = Path(folder)
    # diffusers would import any module that the file names.
    kinds = {kind.__name__: kind for kind in (UNet2DModel, DCNv4UNet2DModel)}
    try:
        index = json.loads((folder / "model_index.json").read_text())
        kind, classes = kinds[index["unet"][1]], index["class_names"]
        has_vae = index["vae"][0] is not None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no pipeline of train.py ({type(error).__name__}: {error}): give the "
            "folder `pipeline` that it has saved"
        ) from error
    return ClassConditionalPipeline(
        kind.from_pretrained(folder / "unet", use_safetensors=True),
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True) if has_vae else None,
        classes,
    )
