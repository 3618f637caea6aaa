"""One layer of BEVFormerV2's encoder: fused attention to the cameras, against lists of hits.

    python benchmarks/bev_cross_attn.py --threads 2

The contender does the same with ``ms_deform_attn``: offsets are predicted once per query, then each
camera samples for the list of queries that it sees. The rest of the layer is the same for both.
Times are of the forward in inference, and of forward and backward. Memory is what the forward keeps
for the backward pass beside its inputs and parameters, as autograd counts it and as the process
grows, in relation to the plain path of ``dcnv4_mm/bev/layers/reference.py``.
"""

import argparse
import copy
import statistics
import time

import torch
from bev_encoder import kept_bytes, make_encoder, make_inputs
from measure import held_bytes
from torch import Tensor, nn

from dcnv4_mm.bev.layers import reference
from dcnv4_mm.bev.layers.attention import CameraHits, SpatialCrossAttention
from dcnv4_mm.bev.layers.encoder import BEVEncoder
from dcnv4_mm.ops.functional import backend_info, ms_deform_attn


class ListedCrossAttention(nn.Module):
    """What the operator replaces, with the parameters of an attention that uses it."""

    def __init__(self, attention: SpatialCrossAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, bev: Tensor, *, maps: Tensor, shapes: list[tuple[int, int]], hits: CameraHits
    ) -> Tensor:
        sampling = self.attention.deformable_attention
        offsets, logits = sampling.unpack(sampling.predict_packed(bev))
        weights = logits.flatten(-2).softmax(-1).view_as(logits)
        value = sampling.value(maps)
        sizes = offsets.new_tensor(shapes).flip(-1)[:, None]
        slots = value.new_zeros(bev.shape)
        for sample, camera in torch.cartesian_prod(*map(torch.arange, hits.seen.shape[:2])):
            queries = hits.seen[sample, camera].nonzero()[:, 0]
            pillars = hits.references[sample, camera, queries]
            # [hits, P, 2], the pillar's points varying fastest
            pillars = pillars.repeat(1, sampling.num_points // pillars.shape[1], 1)
            locations = torch.addcmul(pillars[:, None, None], offsets[sample, queries], 1 / sizes)
            output = ms_deform_attn(
                value[sample, camera].unsqueeze(0),
                shapes,
                locations.unsqueeze(0),
                weights[sample, queries].unsqueeze(0),
            )
            slots[sample].index_add_(0, queries, output[0])
        counts = hits.seen.sum(1).clamp(min=1).unsqueeze(-1)
        return bev + self.attention.output_proj(slots / counts)


def with_lists(encoder: BEVEncoder) -> BEVEncoder:
    """A copy of an encoder for evaluation that does not use the operator."""
    encoder = copy.deepcopy(encoder)
    for layer in encoder.layers:
        layer.attentions[1] = ListedCrossAttention(layer.attentions[1])
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-training", action="store_true", help="measure inference alone")
    parser.add_argument("--small", action="store_true", help="a quarter of the picture's size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fused, inputs = make_encoder(), make_inputs(4 if arguments.small else 1)
    encoders = {"lists": with_lists(fused), "fused": fused}
    print(f"bev_cross_attn on the CPU: {backend_info()['bev_cross_attn']['cpu']}")

    with torch.inference_mode():
        expected = encoders["lists"](**inputs)
        torch.testing.assert_close(fused(**inputs), expected, rtol=1e-3, atol=1e-3)

    def infer(encoder: BEVEncoder) -> None:
        with torch.inference_mode():
            encoder(**inputs)

    def train(encoder: BEVEncoder) -> None:
        encoder(**inputs).sum().backward()

    measured = {"forward": infer} | ({} if arguments.no_training else {"training": train})
    for name, function in measured.items():
        times: dict[str, list[float]] = {contender: [] for contender in encoders}
        for _ in range(arguments.turns):
            for contender, encoder in encoders.items():
                start = time.perf_counter()
                function(encoder)
                times[contender].append(time.perf_counter() - start)
        lists, ours = (statistics.median(times[contender]) for contender in encoders)
        ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
        print(f"{name}: lists {lists:.2f} s, fused {ours:.2f} s, {ratio:.2f} times as fast")

    given = [x for x in inputs.values() if isinstance(x, Tensor)] + list(fused.parameters())
    layers = {name: lambda e=encoder: e(**inputs) for name, encoder in encoders.items()}
    layers["plain"] = lambda: reference.encode(fused, **inputs)
    kept = {name: kept_bytes(forward, given) for name, forward in layers.items()}
    held = {name: held_bytes(forward) for name, forward in layers.items()}
    for name in layers:
        print(
            f"{name} keeps {kept[name] / 2**20:.0f} MiB, {kept[name] / kept['plain']:.3f} of the "
            f"plain path; the process grows by {held[name] / 2**20:.0f} MiB, "
            f"{held[name] / held['plain']:.3f}"
        )


if __name__ == "__main__":
    main()
