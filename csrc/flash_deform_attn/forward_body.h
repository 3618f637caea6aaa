// The body of the forward kernel on the GPU. First the block's threads locate the sampling points,
// each once per head, and make their weights; then each thread sums the samples of one vector of
// channels.
//
// A body is a sequence of phases. `team.phase(f)` calls f(thread) for every thread of the block and
// ends with a barrier, so no thread may read in a phase what another one writes in it.
#pragma once

#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// `channels` per thread: one or two vectors.
template <typename Storage, int channels, typename Team>
DCNV4_MM_DEVICE void forward_block(const Params& p, const LevelTable& levels, const Tiling& t,
                                   uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  constexpr int width = load_width<Storage>(channels), vectors = channels / width;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  typename Team::template PerThread<AllSums<Real, width, vectors>> all_sums(team);

  sum_exponentials<Storage>(p, t.queries, tile, samples.shares, team);
  for (int32_t first = 0; first < points; first += t.points) {
    team.phase([&](int32_t thread) {
      locate_own<Storage>(
          p, levels, t, tile, samples.shares, item_of<channels>(t, tile, thread), first, points,
          [&](int32_t slot, const Pair&, const Place& place, const Point<Real>& point) {
            samples.places[slot] = place;
            samples.weights[slot] = reading_weights(point);
          });
    });
    team.phase([&](int32_t thread) {
      const Item item = item_of<channels>(t, tile, thread);
      if (!item.exists) return;
      const Pair pair = pair_of(t.queries, tile, item.pair_index);
      const auto [channel, step] = units_in<width, vectors>(t, tile, item);
      Sums<Real, width>* sums = all_sums[thread].vector;
      add_samples<Storage, width, vectors>(
          samples, item.pair_index * sample_stride(t.points), smaller(t.points, points - first),
          image_of<Storage>(p, pair) + channel, pixel_bytes<Storage>(p), step, sums);
      if (first + t.points < points) return;
      Storage* output = static_cast<Storage*>(p.output) + row_of(p, pair) * p.channels + channel;
      for (int v = 0; v < vectors; ++v) write<width>(output + v * step, sums[v].channel);
    });
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
