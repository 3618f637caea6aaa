"""Trains a class-conditional diffusion U-Net on images or latents.

    accelerate launch examples/latent_diffusion/train.py CONFIG DATA --out-dir work_dirs/mine

Writes checkpoints (for ``--resume``), grids of samples, a log, and finally the pipeline with the
averaged weights.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from data import open_data
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from pipeline import ClassConditionalPipeline
from settings import OPERATORS, Settings, build_unet, read_settings
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

# Columns of the grids of samples.
COLUMNS = 8
# File of a checkpoint beside accelerate's own.
PROGRESS = "progress.pt"


class Trainer:
    """Model, data, optimizer and progress of a training run.

    Args:
        settings: The config.
        operator: ``"dcnv4"`` or ``"convolution"``.
        data: Folder of the training data.
        out_dir: Folder to write to.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        seed: Seed of weights, order and noise.
        workers: Data-loading processes.
    """

    def __init__(
        self,
        settings: Settings,
        operator: str,
        data: str,
        out_dir: Path,
        *,
        mixed_precision: str = "no",
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.settings, self.out_dir = settings, out_dir
        plan = settings.training
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            # The order of an epoch depends only on the seed and its number, also after a resume.
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
        )
        size, channels = settings.unet["sample_size"], settings.unet["in_channels"]
        dataset, self.classes = open_data(data, channels, size)
        set_seed(seed)
        # DCNv4 needs channels last; if all layers use it, nothing is copied.
        unet = build_unet(settings, operator, len(self.classes))
        unet.to(memory_format=torch.channels_last)
        set_seed(seed, device_specific=True)
        self.scheduler = DDIMScheduler(**settings.scheduler)
        self.vae = (
            AutoencoderKL.from_pretrained(settings.vae, use_safetensors=True)
            if settings.vae
            else None
        )
        optimizer = torch.optim.AdamW(
            unet.parameters(), plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.rate = get_scheduler(
            plan.schedule,
            optimizer,
            num_warmup_steps=plan.warmup_steps,
            num_training_steps=plan.steps,
        )
        self.ema = EMAModel(unet.parameters(), plan.ema_decay, foreach=True)
        self.ema.to(self.accelerator.device)
        self.step = 0
        loader = DataLoader(
            dataset,
            plan.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            # A new epoch must not draw from the generator of the noise.
            generator=torch.Generator().manual_seed(seed),
        )
        if len(loader) < self.accelerator.num_processes:
            raise ValueError(
                f"{data} must hold at least a batch of {plan.batch_size} for each of "
                f"{self.accelerator.num_processes} processes, got {len(dataset)} images"
            )
        self.unet, self.optimizer, self.loader = self.accelerator.prepare(unet, optimizer, loader)

    def loss(self, sample: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the U-Net's prediction for noisy images or latents."""
        plan, steps = self.settings.training, self.scheduler.config.num_train_timesteps
        if plan.flip:
            mirrored = torch.rand(len(sample), 1, 1, 1, device=sample.device) < 0.5
            sample = torch.where(mirrored, sample.flip(-1), sample)
        dropped = torch.rand(len(labels), device=labels.device) < plan.label_dropout
        labels = labels.masked_fill(dropped, len(self.classes))
        noise = torch.randn_like(sample)
        times = torch.randint(steps, (len(sample),), device=sample.device)
        target = {
            "epsilon": lambda: noise,
            "sample": lambda: sample,
            "v_prediction": lambda: self.scheduler.get_velocity(sample, noise, times),
        }[self.scheduler.config.prediction_type]()
        predicted = self.unet(self.scheduler.add_noise(sample, noise, times), times, labels).sample
        return (predicted.float() - target).square().mean()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The remaining batches of the current epoch, then those of further epochs."""
        epoch, done = divmod(self.step, len(self.loader))
        while True:
            self.loader.set_epoch(epoch)
            yield from self.accelerator.skip_first_batches(self.loader, done)
            epoch, done = epoch + 1, 0

    def train(self) -> None:
        """Runs the remaining steps."""
        plan, main = self.settings.training, self.accelerator.is_main_process
        bar = tqdm(total=plan.steps, initial=self.step, disable=not main)
        total, since, seconds = torch.zeros((), device=self.accelerator.device), 0, 0.0
        for sample, labels in self.batches():
            if self.step >= plan.steps:
                break
            start = time.perf_counter()
            loss = self.loss(sample, labels)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.unet.parameters(), plan.max_grad_norm)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
            self.ema.step(self.unet.parameters())
            self.step = step = self.step + 1
            total, since = total + loss.detach(), since + 1
            seconds += time.perf_counter() - start
            bar.update()
            if step % plan.log_every == 0 or step == plan.steps:
                mean = self.accelerator.reduce(total / since, "mean").item()
                if not math.isfinite(mean):
                    raise ValueError(
                        f"the loss is {mean} after {step} steps: lower training.learning_rate or "
                        "use --mixed-precision no"
                    )
                if main:
                    self.log(step, mean, seconds / since)
                bar.set_postfix(loss=f"{mean:.4f}")
                total, since, seconds = torch.zeros_like(total), 0, 0.0
            if step % plan.save_every == 0 or step == plan.steps:
                self.save()
            if main and (step % plan.sample_every == 0 or step == plan.steps):
                self.draw(step)
        bar.close()
        self.accelerator.wait_for_everyone()

    def log(self, step: int, loss: float, seconds: float) -> None:
        """Appends a line to the log."""
        line = {
            "step": step,
            "loss": round(loss, 5),
            "learning_rate": self.rate.get_last_lr()[0],
            "seconds_per_step": round(seconds, 4),
        }
        with (self.out_dir / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Writes a checkpoint, then removes the previous one."""
        name = f"checkpoint-{self.step:08d}"

        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                state = {"step": self.step, "ema": self.ema.state_dict()}
                torch.save({**state, "rate": self.rate.state_dict()}, folder / PROGRESS)

        self.write_atomically(self.out_dir / name, write)
        if self.accelerator.is_main_process:
            for old in self.out_dir.glob("checkpoint-*"):
                if old.name != name:
                    shutil.rmtree(old)

    def resume(self) -> None:
        """Resumes from the last checkpoint, if there is one.

        Raises:
            ValueError: It is damaged, or of another network.
        """
        # Unfinished ones have another name.
        found = sorted(self.out_dir.glob("checkpoint-" + "[0-9]" * 8))
        if not found:
            return
        try:
            # Not with accelerate, which would unpickle anything.
            state = torch.load(found[-1] / PROGRESS, map_location="cpu", weights_only=True)
            self.accelerator.load_state(str(found[-1]))
            self.rate.load_state_dict(state["rate"])
            self.ema.load_state_dict(state["ema"])
            self.step = state["step"]
        except Exception as error:
            raise ValueError(
                f"{found[-1]} is damaged, or of another network than the config's: {error}"
            ) from error
        self.ema.to(self.accelerator.device)

    def averaged(self) -> ClassConditionalPipeline:
        """The pipeline with the averaged weights."""
        trained: UNet2DModel = self.accelerator.unwrap_model(self.unet)
        # The noise of the next update must not depend on whether this was called.
        with torch.random.fork_rng(devices=()):
            unet = type(trained).from_config(trained.config).to(self.accelerator.device)
        self.ema.copy_to(unet.parameters())
        return ClassConditionalPipeline(unet.eval(), self.scheduler, self.vae, self.classes)

    def finish(self) -> None:
        """Writes the pipeline with the averaged weights."""

        def write(folder: Path) -> None:
            if self.accelerator.is_main_process:
                self.averaged().save_pretrained(folder)

        self.write_atomically(self.out_dir / "pipeline", write)
        self.accelerator.end_training()

    def write_atomically(self, folder: Path, write: Callable[[Path], None]) -> None:
        """Writes a folder that appears under its name only when it is complete."""
        partial, accelerator = folder.with_name(f".{folder.name}.part"), self.accelerator
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        write(partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        accelerator.wait_for_everyone()

    def draw(self, step: int) -> None:
        """Writes a grid of samples of all classes."""
        pipeline = self.averaged()
        pipeline.set_progress_bar_config(disable=True)
        labels = [row % len(self.classes) for row in range(4) for _ in range(COLUMNS)]
        images = pipeline(
            labels,
            guidance_scale=self.settings.guidance_scale,
            num_inference_steps=self.settings.training.sample_steps,
            generator=torch.Generator().manual_seed(0),
        ).images
        path = self.out_dir / "samples" / f"{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".part.png")
        make_image_grid(images, rows=4, cols=COLUMNS).save(partial)
        partial.replace(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a class-conditional diffusion U-Net.")
    parser.add_argument("config", type=Path, help="a YAML file, such as those in configs/")
    parser.add_argument("data", help="a folder per class, or the latents of encode.py")
    parser.add_argument("--out-dir", type=Path, required=True, help="folder to write to")
    parser.add_argument("--operator", choices=OPERATORS, default="dcnv4")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="data-loading processes")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="other values for `training`"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if wrong := [pair for pair in args.set if "=" not in pair]:
        raise SystemExit(f"error: --set takes NAME=VALUE, got {wrong[0]!r}")
    try:
        settings = read_settings(args.config, dict(pair.split("=", 1) for pair in args.set))
        if not args.resume and any(args.out_dir.glob("checkpoint-*")):
            raise ValueError(
                f"{args.out_dir} holds a training run: add --resume, or give another --out-dir"
            )
        trainer = Trainer(
            settings,
            args.operator,
            args.data,
            args.out_dir,
            mixed_precision=args.mixed_precision,
            seed=args.seed,
            workers=args.workers,
        )
        args.out_dir.mkdir(parents=True, exist_ok=True)
        trainer.resume()
        trainer.train()
        trainer.finish()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
