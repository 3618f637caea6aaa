"""BEVFormerV2's encoder: fused attention to the cameras, against lists of hits.

The alternative is the encoder as it was without the operator, with ``ms_deform_attn``: all queries
go through a layer at a time, doubled for the attention to the BEV; offsets are predicted once per
query, then each camera samples for the list of queries that it sees. Times are of the forward of
six layers in inference, and of forward and backward of one. Memory is what the forward of one keeps
for the backward pass beside its inputs and parameters, as autograd counts it and as the process
grows, in relation to the plain path of ``tests/bev/encoder_oracle.py``, whose sampling is
``grid_sample``.
"""

# ruff: noqa: E402 - mmdet3d needs what mmcv-lite lacks before it is imported.

import copy
import math
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from compare import Implementation, Settings, compare
from measure import Call, Table, held_bytes, saved_bytes
from torch import Tensor, nn

from dcnv4_mm.integrations import install

install()

from dcnv4_mm.bev.layers.attention import (
    DeformableSampling,
    SpatialCrossAttention,
    TemporalSelfAttention,
)
from dcnv4_mm.bev.layers.encoder import BEVEncoder, BEVEncoderLayer
from dcnv4_mm.ops.functional import ms_deform_attn

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from bev import encoder_oracle

FUSED, LISTS, PLAIN = "bev_cross_attn", "lists of hits", "plain path"
RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
IMAGE_SIZE = (640, 1600)
STRIDES = (8, 16, 32, 64)
# nuScenes' six cameras: yaw in degrees, focal length in pixels.
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
    """Inputs of an encoder for one sample; ``shrink`` divides the size of the images."""
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


Shapes = list[tuple[int, int]]


class ListedLayer(nn.Module):
    """A layer for evaluation without the operator, with the parameters of one that uses it.

    Takes the arguments of :meth:`BEVEncoderLayer.forward`, but for the position.

    Args:
        layer: The layer that has the parameters.
        position: Positional encoding of the cells, (Q, C).
    """

    def __init__(self, layer: BEVEncoderLayer, position: Tensor) -> None:
        super().__init__()
        self.layer, self.position = layer, position

    def forward(
        self,
        bev_queries: Tensor,
        bev_pos: tuple[Tensor, Tensor],
        reference_points: Tensor,
        bev_shape: tuple[int, int],
        features: Tensor,
        spatial_shapes: Shapes,
        reference_points_cam: Tensor,
        bev_mask: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        self_attn, cross_attn = self.layer.attentions
        norms = self.layer.norms
        x = norms[0](
            _self_attention(self_attn, bev_queries, self.position, reference_points, bev_shape)
        )
        x = norms[1](
            _cross_attention(
                cross_attn, x, features, spatial_shapes, reference_points_cam, bev_mask
            )
        )
        return norms[2](self.layer.ffns[0](x))


def _self_attention(
    attention: TemporalSelfAttention,
    bev: Tensor,
    position: Tensor,
    references: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    packed = F.linear(torch.cat((bev, bev + position), dim=-1), *attention.packed_linear())
    offsets, logits = attention.unpack(packed.unflatten(-1, (attention.num_heads, -1)))
    weights = logits.softmax(-1) / attention.num_queues
    # The two maps of the queue are the same: [B, Q, G, 1, 2 * P, ...].
    offsets, weights = offsets.flatten(3, 4).unsqueeze(3), weights.flatten(3, 4).unsqueeze(3)
    locations = _locations(references[:, None, None, None], offsets, [shape])
    output = ms_deform_attn(attention.project_value(bev), [shape], locations, weights)
    return bev + attention.output_proj(output)


def _cross_attention(
    attention: SpatialCrossAttention,
    bev: Tensor,
    maps: Tensor,
    shapes: Shapes,
    reference_points_cam: Tensor,
    bev_mask: Tensor,
) -> Tensor:
    sampling: DeformableSampling = attention.deformable_attention
    offsets, logits = sampling.unpack(sampling.predict_packed(bev))
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    value = sampling.project_value(maps)
    slots = value.new_zeros(bev.shape)
    for sample, camera in torch.cartesian_prod(*map(torch.arange, bev_mask.shape[:2])):
        queries = bev_mask[sample, camera].nonzero()[:, 0]
        pillars = reference_points_cam[sample, camera, queries]
        # [hits, P, 2], the pillar's points varying fastest
        pillars = pillars.repeat(1, sampling.num_points // pillars.shape[1], 1)
        output = ms_deform_attn(
            value[sample, camera].unsqueeze(0),
            shapes,
            _locations(pillars[:, None, None], offsets[sample, queries], shapes).unsqueeze(0),
            weights[sample, queries].unsqueeze(0),
        )
        slots[sample].index_add_(0, queries, output[0])
    counts = bev_mask.sum(1).clamp(min=1).unsqueeze(-1)
    return bev + attention.output_proj(slots / counts)


def _locations(references: Tensor, offsets: Tensor, shapes: Shapes) -> Tensor:
    sizes = offsets.new_tensor(shapes).flip(-1)[:, None]
    return torch.addcmul(references, offsets, 1 / sizes)


def with_lists(encoder: BEVEncoder, position: tuple[Tensor, Tensor]) -> BEVEncoder:
    """A copy of an encoder for evaluation that does not use the operator."""
    encoder, cells = copy.deepcopy(encoder), encoder_oracle.cell_encodings(*position)
    encoder.layers = nn.ModuleList(ListedLayer(layer, cells) for layer in encoder.layers)
    return encoder


def _compare_encoders(
    table: Table,
    settings: Settings,
    inputs: dict[str, object],
    *,
    case: str,
    num_layers: int,
    training: bool,
) -> None:
    fused = make_encoder(num_layers)
    encoders = {FUSED: fused, LISTS: with_lists(fused, inputs["bev_pos"])}
    if num_layers == 1:
        encoders[PLAIN] = partial(encoder_oracle.encode, fused)

    def build(name: str) -> Implementation:
        def forward() -> Tensor:
            with torch.inference_mode():
                return encoders[name](**inputs)

        def train() -> None:
            encoders[name](**inputs).sum().backward()

        if name != FUSED:
            right = encoders[FUSED](**inputs)
            torch.testing.assert_close(forward(), right, rtol=1e-3, atol=1e-3)
        return Implementation(calls=[train if training else forward])

    compare(
        table,
        settings,
        case=case,
        measured="forward+backward" if training else "forward",
        dtype="float32",
        builders={name: partial(build, name) for name in encoders},
        targets={} if training else {(LISTS, count): ">= 1.5" for count in settings.threads},
    )


def run(table: Table, settings: Settings) -> None:
    """Time and memory at six images of 640 x 1600 pixels."""
    shrink = 4 if settings.options.tiny else 1
    inputs = make_inputs(shrink)
    images = f"6x{640 // shrink}x{1600 // shrink}"
    cases = [
        (f"{images}, six layers", 6, False),
        (f"{images}, one layer", 1, False),
        (f"{images}, one layer", 1, True),
    ]
    for case, num_layers, training in cases[1:] if settings.options.tiny else cases:
        _compare_encoders(
            table, settings, inputs, case=case, num_layers=num_layers, training=training
        )
    _measure_memory(table, inputs, f"{images}, one layer")


def _measure_memory(table: Table, inputs: dict[str, object], case: str) -> None:
    encoder = make_encoder(1)
    given = [x for x in inputs.values() if isinstance(x, Tensor)]
    given += [*inputs["bev_pos"], *encoder.parameters()]
    calls: dict[str, Call] = {
        PLAIN: lambda: encoder_oracle.encode(encoder, **inputs),
        FUSED: lambda: encoder(**inputs),
    }
    row = dict(case=case, dtype="float32", threads=torch.get_num_threads())
    for measured, count in (
        ("kept by autograd", partial(saved_bytes, given=given)),
        ("held by the process", held_bytes),
    ):
        if not table.has(**row, measured=measured, implementation=FUSED):
            kept = {name: count(call) for name, call in calls.items()}
            table.add(
                **row,
                measured=measured,
                implementation=FUSED,
                ratio=kept[FUSED] / kept[PLAIN],
                target="<= 0.25",
            )
