"""BEVFormerV2's encoder: fused attention to the cameras, against lists of hits.

    python benchmarks/bev_cross_attn.py

The contender is the encoder as it was without the operator, with ``ms_deform_attn``: all queries go
through a layer at a time, doubled for the attention to the BEV; offsets are predicted once per
query, then each camera samples for the list of queries that it sees. Times are of the forward of
six layers in inference, and of forward and backward of one. Memory is what the forward of one keeps
for the backward pass beside its inputs and parameters, as autograd counts it and as the process
grows, in relation to the plain path of ``tests/bev/encoder_oracle.py``.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bev_encoder import encoder_oracle, kept_bytes, make_encoder, make_inputs
from measure import RESULTS, Record, held_bytes, ratio
from torch import Tensor, nn

from dcnv4_mm.bev.layers.attention import (
    DeformableSampling,
    SpatialCrossAttention,
    TemporalSelfAttention,
)
from dcnv4_mm.bev.layers.encoder import BEVEncoder, BEVEncoderLayer
from dcnv4_mm.ops.functional import backend_info, ms_deform_attn

FUSED, LISTS, PLAIN = "bev_cross_attn", "lists of hits", "plain path"

Shapes = list[tuple[int, int]]


class ListedLayer(nn.Module):
    """A layer for evaluation that does not use the operator, with the parameters of one that does.

    Takes the arguments of :meth:`BEVEncoderLayer.forward`, but for the position.

    Args:
        layer: Whose parameters it has.
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


def by_turns(functions: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Milliseconds of long calls."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            # The first turn is for the allocator and the caches.
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--no-training", action="store_true", help="measure inference alone")
    parser.add_argument("--small", action="store_true", help="a quarter of the picture's size")
    parser.add_argument("--out", type=Path, default=RESULTS / "bev_cross_attn", help="for the CSV")
    arguments = parser.parse_args()
    record = Record(kernels=backend_info()["bev_cross_attn"]["cpu"])
    shrink = 4 if arguments.small else 1
    inputs = make_inputs(shrink)
    pictures = f"6x{640 // shrink}x{1600 // shrink}"

    def make_contenders(num_layers: int) -> dict[str, BEVEncoder]:
        fused = make_encoder(num_layers)
        return {FUSED: fused, LISTS: with_lists(fused, inputs["bev_pos"])}

    whole, layer = make_contenders(6), make_contenders(1)
    row = dict(benchmark="bev_encoder", dtype="float32")

    @torch.inference_mode()
    def infer(encoder: BEVEncoder) -> Tensor:
        return encoder(**inputs)

    def train(encoder: BEVEncoder) -> None:
        encoder(**inputs).sum().backward()

    torch.testing.assert_close(infer(whole[FUSED]), infer(whole[LISTS]), rtol=1e-3, atol=1e-3)
    measured = [("forward", f"{pictures}, six layers", infer, whole)]
    if not arguments.no_training:
        measured.append(("forward+backward", f"{pictures}, one layer", train, layer))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name, case, run, encoders in measured:
            calls = {contender: lambda e=e, run=run: run(e) for contender, e in encoders.items()}
            times = by_turns(calls, arguments.turns)
            speed = ratio(times[LISTS], times[FUSED])
            target = 1.5 if name == "forward" else None
            for contender, more in ((FUSED, {}), (LISTS, dict(ratio=speed, target=target))):
                record.add(
                    **row,
                    case=case,
                    measured=name,
                    threads=threads,
                    contender=contender,
                    times=times[contender],
                    **more,
                )

    given = [x for x in inputs.values() if isinstance(x, Tensor)]
    given += [*inputs["bev_pos"], *layer[FUSED].parameters()]
    layers = {name: lambda e=encoder: e(**inputs) for name, encoder in layer.items()}
    layers[PLAIN] = lambda: encoder_oracle.encode(layer[FUSED], **inputs)
    for name, count in (
        ("kept by autograd", lambda forward: kept_bytes(forward, given)),
        ("held by the process", held_bytes),
    ):
        counts = {contender: count(forward) for contender, forward in layers.items()}
        for contender, bytes_ in counts.items():
            print(f"{name}, {contender}: {bytes_ / 2**20:.0f} MiB")
        record.add(
            **row,
            case=f"{pictures}, one layer",
            measured=name,
            threads=torch.get_num_threads(),
            contender=FUSED,
            ratio=counts[FUSED] / counts[PLAIN],
            target=0.25,
            at_most=True,
        )
    print(f"saved {record.save(arguments.out)}")


if __name__ == "__main__":
    main()
