"""Draws the sampling points of DCNv4 for one pixel, in the last layer of every stage.

    python tools/visualization/visualize_offsets.py IMAGE CONFIG CHECKPOINT --at 0.5 0.5 --out FILE

The config may be of any host: only its FlashInternImage is built. Each circle is a sampling point
of one group; its size shows the mask, red if positive and blue if negative.

With --receptive-field a second row shows the pixel's effective receptive field in every stage: the
magnitude of the gradient of its features with respect to the image.
"""

import argparse
from pathlib import Path

from dcnv4_mm.cli.configs import ENV_HINT, find_config, install_hosts, naming_missing, stop

# Normalisation of all configs of FlashInternImage, in RGB order.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the sampling points of DCNv4.")
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("config", help="config file with FlashInternImage, or the name of one")
    parser.add_argument("checkpoint", type=Path, help="its checkpoint, released or our own")
    parser.add_argument(
        "--at",
        type=float,
        nargs=2,
        default=(0.5, 0.5),
        metavar=("X", "Y"),
        help="the pixel, as fractions of width and height in [0, 1]; default: the centre",
    )
    parser.add_argument(
        "--receptive-field", action="store_true", help="add the effective receptive fields"
    )
    parser.add_argument("--out", type=Path, default=Path("offsets.jpg"), help="image to write")
    args = parser.parse_args()
    if not all(0 <= value <= 1 for value in args.at):
        parser.error(f"--at takes two fractions in [0, 1], got {args.at[0]} {args.at[1]}")
    return args


def build_backbone(config: Path, checkpoint: Path):
    """The config's FlashInternImage with the checkpoint's weights."""
    install_hosts()
    from mmengine.config import Config
    from mmengine.registry import MODELS

    from dcnv4_mm.checkpoints import load_released

    try:
        settings = Config.fromfile(config).model.backbone
    except ImportError as error:
        stop(f"{config} needs a library that is missing: {error} ({ENV_HINT})")
    except (AttributeError, KeyError):
        stop(f"{config} has no model.backbone")
    if settings.type != "dcnv4_mm.FlashInternImage":
        stop(f"{config} has the backbone {settings.type}; expected dcnv4_mm.FlashInternImage")
    backbone = MODELS.build({**settings, "init_cfg": None})
    # The receptive fields need the outputs of all stages.
    everything = {"init_cfg": None, "out_indices": tuple(range(len(backbone.levels)))}
    backbone = MODELS.build({**settings, **everything}).eval()
    try:
        load_released(backbone, checkpoint)
    except (ValueError, OSError) as error:
        stop(str(error))
    return backbone


def sampling_points(backbone, image, at: tuple[float, float]) -> list[tuple]:
    """Sampling points of one pixel in the last layer of every stage.

    Args:
        backbone: A FlashInternImage.
        image: (1, 3, H, W), normalised.
        at: The pixel, as fractions of width and height.

    Returns:
        For every stage the pixel's centre (x, y) and, for each of its P points, x, y (P, 2) and
        the mask (P,); x and y are fractions of width and height, and may lie outside [0, 1].
    """
    import torch

    from dcnv4_mm.ops.dcnv4.layout import kernel_points, num_points, unpack

    predicted: list = []
    layers = [level.blocks[-1].dcn for level in backbone.levels]
    handles = [
        layer.offset_mask.register_forward_hook(lambda *call: predicted.append(call[-1]))
        for layer in layers
    ]
    with torch.inference_mode():
        backbone(image)
    for handle in handles:
        handle.remove()
    stages = []
    for layer, offset_mask in zip(layers, predicted, strict=True):
        size = torch.tensor(offset_mask.shape[1:3]).flip(0)
        column, row = (min(int(a * n), n - 1) for a, n in zip(at, size.tolist(), strict=True))
        points = num_points(layer.kernel_size, layer.remove_center)
        offsets, masks = unpack(offset_mask[:, row : row + 1, column : column + 1], layer.groups,
                                points)  # fmt: skip
        grid = torch.tensor([(j - 1, i - 1) for i, j in kernel_points((3, 3), layer.remove_center)])
        centre = torch.tensor([column, row]) + 0.5
        locations = centre + (grid + offsets[0, 0, 0]) * layer.offset_scale
        stages.append((centre / size, (locations / size).flatten(0, 1), masks.flatten()))
    return stages


def receptive_fields(backbone, image, at: tuple[float, float]) -> list:
    """Effective receptive fields of one pixel in every stage.

    Args:
        backbone: A FlashInternImage that outputs all stages.
        image: (1, 3, H, W), normalised.
        at: The pixel, as fractions of width and height.

    Returns:
        For every stage a map (H, W): the norm of the gradient of the pixel's features with respect
        to each image pixel, estimated with four random directions among the channels. (Their sum
        would not do: behind a norm it is constant.)
    """
    import torch

    image = image.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    fields = []
    for features in backbone(image):
        height, width = features.shape[2:]
        row, column = min(int(at[1] * height), height - 1), min(int(at[0] * width), width - 1)
        of_pixel = features[0, :, row, column]
        squares = torch.zeros(image.shape[2:])
        for direction in torch.randn(4, len(of_pixel), generator=generator):
            (gradient,) = torch.autograd.grad(of_pixel, image, direction, retain_graph=True)
            squares += gradient[0].square().sum(0) / 4
        fields.append(squares.sqrt())
    return fields


def point_panels(image, stages: list[tuple]) -> list:
    """The image once per stage, with its sampling points."""
    import cv2
    import numpy as np

    panels = []
    size = np.array(image.shape[1::-1])
    unit = max(1.0, size.max() / 160)
    for centre, locations, masks in stages:
        panel = image.copy()
        strengths = masks.abs() / masks.abs().max().clamp(min=1e-12)
        for location, mask, strength in zip(locations, masks, strengths, strict=True):
            x, y = (location.numpy() * size).round().astype(int).tolist()
            color = (40, 40, 230) if mask > 0 else (230, 90, 30)
            radius = max(1, round(unit * 2.5 * float(strength) ** 0.5))
            cv2.circle(panel, (x, y), radius, color, -1, cv2.LINE_AA)
        x, y = (centre.numpy() * size).round().astype(int).tolist()
        cross = (255, 255, 255), cv2.MARKER_CROSS, round(8 * unit), max(1, round(unit))
        cv2.drawMarker(panel, (x, y), *cross)
        panels.append(panel)
    return panels


def field_panels(image, fields: list) -> list:
    """The image once per stage, dark where the gradient is small."""
    import cv2
    import numpy as np

    panels = []
    for field in fields:
        # A few pixels have gradients far above all others; the root shows the small ones too.
        top = max(float(np.quantile(field.numpy(), 0.999)), 1e-12)
        brightness = (field / top).clamp(max=1).sqrt().numpy()
        heat = cv2.applyColorMap((255 * brightness).astype(np.uint8), cv2.COLORMAP_INFERNO)
        heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        panels.append(cv2.addWeighted(image, 0.3, heat, 0.7, 0))
    return panels


def main() -> None:
    args = parse_args()
    args.config = find_config(args.config)
    for path in (args.image, args.checkpoint):
        if not path.is_file():
            stop(f"{path} does not exist")
    if not args.out.resolve().parent.is_dir():
        stop(f"the folder of {args.out} does not exist; give another --out")
    import cv2
    import torch

    image = cv2.imread(str(args.image))
    if image is None:
        stop(f"{args.image} is damaged or not an image")
    backbone = build_backbone(args.config, args.checkpoint)
    rgb = torch.from_numpy(image[..., ::-1].copy()).float()
    inputs = ((rgb - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    # Small images are enlarged, so that the points can be distinguished.
    scale = max(1, 448 // max(image.shape[:2]))
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    rows = [point_panels(canvas, sampling_points(backbone, inputs, args.at))]
    if args.receptive_field:
        rows.append(field_panels(canvas, receptive_fields(backbone, inputs, args.at)))
    if not cv2.imwrite(str(args.out), cv2.vconcat([cv2.hconcat(row) for row in rows])):
        stop(f"cannot write {args.out}")
    print(args.out)


if __name__ == "__main__":
    with naming_missing():
        main()
