"""Counts the floating-point operations and parameters of a config's model, module by module.

    python tools/analysis_tools/get_flops.py CONFIG [--size 800 1280] [--depth 2]

A multiplication and an addition are two operations; papers mostly report half the number, the
multiply-adds. Matrix products, convolutions, attention and this project's operators are counted;
elementwise work (norms, activations) is not.
"""

import argparse

from dcnv4_mm.cli.configs import add_cfg_options, read_config
from dcnv4_mm.cli.models import add_batch_arguments, build_model, make_batch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Count operations and parameters of a model.")
    parser.add_argument("config", help="config file, or the name of one of this package")
    add_batch_arguments(parser)
    parser.add_argument("--depth", type=int, default=2, help="of the listed modules, default 2")
    add_cfg_options(parser)
    return parser.parse_args()


def count(model, batch: dict) -> dict[str, int]:
    """Operations of a forward pass, without the host's post-processing.

    Args:
        model: The model; its hooks and gradients are left changed.
        batch: A batch of one sample.

    Returns:
        Operations by module name; "" is the model.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dcnv4_mm.integrations import swap_deformable_attention

    # mmcv's own attention is either no torch operator or plain grid_sample: neither is counted.
    if any(type(m).__name__ == "MultiScaleDeformableAttention" for m in model.modules()):
        swap_deformable_attention(model)
    counter = FlopCounterMode(display=False)
    own: dict[str, int] = {}
    # Stack of running modules: operations counted before, and in the modules called within.
    running: list[list[int]] = []

    def enter(*_) -> None:
        running.append([counter.get_total_flops(), 0])

    def leave(name: str) -> None:
        before, within = running.pop()
        spent = counter.get_total_flops() - before
        own[name] = own.get(name, 0) + spent - within
        if running:
            running[-1][1] += spent

    for name, module in model.named_modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(lambda *_, name=name: leave(name))
    # Otherwise the counter would also count the gradients that BEVFormerV2 turns on again.
    model.requires_grad_(False)
    data = model.data_preprocessor(batch, False)
    with torch.no_grad(), counter:
        model(**data, mode="tensor")
    return with_parents(own)


def with_parents(own: dict[str, int]) -> dict[str, int]:
    """Adds the operations of all submodules to every module; sorted by name."""
    total = {"": 0}
    for name, operations in own.items():
        parts = name.split(".") if name else []
        for depth in range(len(parts) + 1):
            part = ".".join(parts[:depth])
            total[part] = total.get(part, 0) + operations
    return dict(sorted(total.items()))


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg)
    found = count(model, make_batch(cfg, args, 1))
    sizes = {
        name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()
    }
    print(f"{'part':<40} {'parameters':>12} {'GFLOPs':>10} {'G multiply-adds':>16}")
    for name, total in found.items():
        if not name or (total and name.count(".") < args.depth):
            row = f"{sizes[name] / 1e6:>10.2f} M {total / 1e9:>10.2f} {total / 2e9:>16.2f}"
            print(f"{name or type(model).__name__:<40} {row}")


if __name__ == "__main__":
    main()
