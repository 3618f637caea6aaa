"""Parameters and operations of a config's U-Nets, with DCNv4 and with convolutions.

    python examples/latent_diffusion/count.py examples/latent_diffusion/configs/imagenet-256.yaml

For one evaluation of one image or latent; a multiplication and an addition are two operations.
"""

import argparse
from pathlib import Path

import torch
from settings import build_unet, read_settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

KINDS = {
    "DCNv4": ("dcnv4", False),
    "convolutions, as wide": ("convolution", False),
    "convolutions, as many parameters": ("convolution", True),
}


def rows(config: Path, classes: int = 1000) -> list[str]:
    """Rows of a Markdown table: kind, widths, parameters in millions, GFLOP."""
    settings, found = read_settings(config), []
    for name, (operator, narrow) in KINDS.items():
        # On the meta device nothing is initialised or computed.
        with torch.device("meta"):
            unet = build_unet(settings, operator, classes, narrow=narrow)
        unet.to_empty(device="cpu")
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            sample = torch.empty(1, unet.config.in_channels, *[unet.config.sample_size] * 2)
            labels = torch.zeros(1, dtype=torch.long)
            with sdpa_kernel(SDPBackend.MATH):
                unet(sample, labels, labels)
        widths = ", ".join(map(str, unet.config.block_out_channels))
        found.append(
            f"| {name} | {widths} | {unet.num_parameters() / 1e6:.1f} M | "
            f"{counter.get_total_flops() / 1e9:.1f} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Count parameters and operations.")
    parser.add_argument("config", type=Path, help="a YAML file, such as those in configs/")
    parser.add_argument("--classes", type=int, default=1000)
    args = parser.parse_args()
    try:
        lines = rows(args.config, args.classes)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(["| | channels | parameters | GFLOP |", "| --- | --- | --- | --- |", *lines]))


if __name__ == "__main__":
    main()
