// The body of the forward kernel on the GPU. For each camera, first the block's threads locate the
// sampling points, each once per head; then each thread adds the samples of one vector of channels
// to its sums. These are in registers, and are written once.
//
// For phases see flash_deform_attn/forward_body.h.
#pragma once

#include "bev_cross_attn/tile.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

// `vector` channels per thread.
template <typename Storage, int vector, typename Team>
DCNV4_MM_DEVICE void forward_block(const Params& p, const Geometry& geometry, const Tiling& t,
                                   uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  typename Team::template PerThread<Sums<Real, vector>> all_sums(team);

  prepare_weights<Storage>(p, t.queries, tile, samples.shares, team);
  for (int32_t camera = 0; camera < p.cameras; ++camera) {
    if (!is_tile_hit(p, t.queries, tile, camera, team)) continue;
    for (int32_t first = 0; first < points; first += t.points) {
      team.phase([&](int32_t thread) {
        locate_tile<Storage>(p, geometry, t, tile, camera, samples.shares, thread, first, points,
                             [&](int32_t slot, const Place& place, const Point<Real>& point) {
                               samples.places[slot] = place;
                               samples.weights[slot] = reading_weights(point);
                             });
      });
      team.phase([&](int32_t thread) {
        const Item item = item_of<vector>(t, tile, thread);
        if (!item.exists) return;
        const Pair pair = pair_of(t.queries, tile, item.pair_index);
        if (!is_hit(p, pair, camera)) return;
        const Storage* image = image_of<Storage>(p, pair, camera) + item.channel;
        const int32_t slot = item.pair_index * sample_stride(t.points);
        const int32_t count = smaller(t.points, points - first);
#pragma unroll 4
        for (int32_t k = 0; k < count; ++k) {
          const Place place = samples.places[slot + k];
          if (place.pixel == kOutside) continue;
          const auto corners = corners_of(place, image, static_cast<int32_t>(p.value_pitches.row));
          add_sample<Storage>(corners, samples.weights[slot + k], &all_sums[thread]);
        }
      });
    }
  }
  team.phase([&](int32_t thread) {
    const Item item = item_of<vector>(t, tile, thread);
    if (!item.exists) return;
    const int64_t row = row_of(p, pair_of(t.queries, tile, item.pair_index));
    Storage* output = static_cast<Storage*>(p.output) + row * p.channels;
    write<vector>(output + item.channel, all_sums[thread].channel);
  });
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
