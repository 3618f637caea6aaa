// The body of the forward kernel on the GPU. For each camera, first the block's threads locate the
// sampling points, each once per head; then each thread adds the samples of one vector of channels
// to its sums. These are in registers, and are written once.
//
// For phases see flash_deform_attn/forward_body.h.
#pragma once

#include "bev_cross_attn/tile.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

// `channels` per thread: one or two vectors.
template <typename Storage, int channels, typename Team>
DCNV4_MM_DEVICE void forward_block(const Params& p, const Geometry& geometry, const Tiling& t,
                                   uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  constexpr int width = load_width<Storage>(channels), vectors = channels / width;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  typename Team::template PerThread<AllSums<Real, width, vectors>> all_sums(team);

  prepare_weights<Storage>(p, t.queries, tile, samples.shares, team);
  for (int32_t camera = 0; camera < p.cameras; ++camera) {
    if (!is_tile_hit(p, t.queries, tile, camera, team)) continue;
    for (int32_t first = 0; first < points; first += t.points) {
      team.phase([&](int32_t thread) {
        locate_own<Storage>(
            p, geometry, t, tile, camera, samples.shares, item_of<channels>(t, tile, thread), first,
            points, [&](int32_t slot, const Pair&, const Place& place, const Point<Real>& point) {
              samples.places[slot] = place;
              samples.weights[slot] = reading_weights(point);
            });
      });
      team.phase([&](int32_t thread) {
        const Item item = item_of<channels>(t, tile, thread);
        if (!item.exists) return;
        const Pair pair = pair_of(t.queries, tile, item.pair_index);
        if (!is_hit(p, pair, camera)) return;
        const auto [channel, step] = units_in<width, vectors>(t, tile, item);
        add_samples<Storage, width, vectors>(
            samples, item.pair_index * sample_stride(t.points), smaller(t.points, points - first),
            image_of<Storage>(p, pair, camera) + channel, pixel_bytes<Storage>(p), step,
            all_sums[thread].vector);
      });
    }
  }
  last_phase(team, [&](int32_t thread) {
    const Item item = item_of<channels>(t, tile, thread);
    if (!item.exists) return;
    const auto [channel, step] = units_in<width, vectors>(t, tile, item);
    const int64_t row = row_of(p, pair_of(t.queries, tile, item.pair_index));
    Storage* output = static_cast<Storage*>(p.output) + row * p.channels + channel;
    for (int v = 0; v < vectors; ++v) {
      write<width>(output + v * step, all_sums[thread].vector[v].channel);
    }
  });
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
