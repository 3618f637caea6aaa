"""One layer of BEVFormerV2's encoder at six pictures of 640 x 1600, against the plain path.

    python benchmarks/bev_encoder.py --threads 2

The plain path is ``tests/bev/encoder_oracle.py``, whose sampling is grid_sample. One of the
six layers is measured, without a gradient for the time and with one for what it keeps for the
backward pass, its inputs among that; without a gradient six share the memory that one asks for.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from dcnv4_mm.bev.layers.encoder import BEVEncoder
from dcnv4_mm.ops.functional import backend_info

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from bev import encoder_oracle

RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
IMAGE_SIZE = (640, 1600)
STRIDES = (8, 16, 32, 64)
# Of nuScenes' six cameras: yaw in degrees, focal length in pixels.
CAMERAS = ((0, 1266), (-56.5, 1260), (55.5, 1272), (180, 809), (108.5, 1256), (-110.5, 1259))


def camera_matrices() -> torch.Tensor:
    """LiDAR to pixels, (1, 6, 4, 4), for a rig like that of nuScenes."""
    matrices = []
    for degrees, focal in CAMERAS:
        yaw = math.radians(degrees)
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor(
            [
                [math.cos(yaw), math.sin(yaw), 0.0],
                [0.0, 0.0, -1.0],
                [-math.sin(yaw), math.cos(yaw), 0.0],
            ]
        )
        pose[1, 3] = -0.3
        intrinsics = torch.eye(4)
        intrinsics[:2, :3] = torch.tensor([[focal, 0, 816.0], [0, focal, 231.0]])
        matrices.append(intrinsics @ pose)
    return torch.stack(matrices)[None]


def make_encoder(num_layers: int = 1) -> BEVEncoder:
    """An encoder for evaluation."""
    torch.manual_seed(0)
    return BEVEncoder(point_cloud_range=RANGE, num_layers=num_layers).eval()


def make_inputs(shrink: int = 1) -> dict[str, object]:
    """What an encoder takes for one sample; the maps may be of smaller pictures."""
    sides = [side // shrink for side in IMAGE_SIZE]
    shapes = [(math.ceil(sides[0] / s), math.ceil(sides[1] / s)) for s in STRIDES]
    return dict(
        bev_queries=torch.randn(1, 40000, 256),
        bev_pos=(torch.randn(200, 128), torch.randn(200, 128)),
        features=torch.randn(1, 6, sum(h * w for h, w in shapes), 256),
        spatial_shapes=shapes,
        lidar_to_image=camera_matrices(),
        image_size=IMAGE_SIZE,
    )


def make_contenders() -> dict[str, Callable[[], torch.Tensor]]:
    encoder, inputs = make_encoder(), make_inputs()
    return {
        "plain": lambda: encoder_oracle.encode(encoder, **inputs),
        "ours": lambda: encoder(**inputs),
    }


def kept_bytes(forward: Callable[[], torch.Tensor], given: Iterable[torch.Tensor] = ()) -> int:
    """What autograd keeps for the backward pass, each storage counted once, but for ``given``."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    for tensor in given:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    contenders = make_contenders()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    outputs = {}
    with torch.inference_mode():
        for _ in range(arguments.turns):
            for name, forward in contenders.items():
                start = time.perf_counter()
                outputs[name] = forward()
                times[name].append(time.perf_counter() - start)
    torch.testing.assert_close(outputs["ours"], outputs["plain"], rtol=1e-3, atol=1e-3)
    kept = {name: kept_bytes(forward) for name, forward in contenders.items()}
    print(f"bev_cross_attn on the CPU: {backend_info()['bev_cross_attn']['cpu']}")
    for name in contenders:
        median = statistics.median(times[name])
        print(f"{name}: {median:.2f} s, keeps {kept[name] / 2**20:.0f} MiB")
    speed = statistics.median(times["plain"]) / statistics.median(times["ours"])
    print(f"{speed:.1f} times as fast, {kept['ours'] / kept['plain']:.2f} of the memory")


if __name__ == "__main__":
    main()
