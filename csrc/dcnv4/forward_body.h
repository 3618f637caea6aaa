// The body of the forward kernel on the GPU. First the block's threads locate the sampling points,
// each once per group; then each thread sums the samples of one vector of channels.
//
// A body is a sequence of phases. `team.phase(f)` calls f(thread) for every thread of the block and
// ends with a barrier, so no thread may read in a phase what another one writes in it.
#pragma once

#include "dcnv4/forward_window.h"
#include "dcnv4/instances.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// Kernels of any size.
template <typename Storage, int vector, bool fast, typename Team>
DCNV4_MM_DEVICE void forward_any_block(const Params& p, const Tiling& t, uint32_t block,
                                       Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(t, block);
  const int32_t points = point_count<0>(p), step = t.points;
  const Samples<Real> samples =
      samples_in<Real>(team.shared(), pair_count(t) * sample_stride(step));
  const int32_t row_pixels = static_cast<int32_t>(p.value_pitches.row / p.value_pitches.pixel);
  typename Team::template PerThread<Sums<Real, vector>> all_sums(team);

  for (int32_t first = 0; first < points; first += step) {
    team.phase([&](int32_t thread) {
      locate_tile<0, Storage>(p, t, tile, thread, first,
                              [&](int32_t slot, const Pair&, const Point<Real>& point) {
                                samples.pixels[slot] = pixels_of(point, row_pixels);
                                if constexpr (fast) {
                                  samples.weights[slot] = fast_weights(point);
                                } else {
                                  samples.weights[slot] = reading_weights(point);
                                }
                              });
    });
    team.phase([&](int32_t thread) {
      const Item item = item_of<vector>(t, tile, thread);
      if (!item.exists) return;
      const Storage* image =
          static_cast<const Storage*>(p.value) + tile.image * p.value_pitches.image + item.channel;
      Sums<Real, vector>& sums = all_sums[thread];
      const int32_t slot = item.pair_index * sample_stride(step);
      const int32_t count = smaller(step, points - first);
      for (int32_t k = 0; k < count; ++k) {
        const uint32_t pixels = samples.pixels[slot + k];
        if (pixels == kOutside) continue;
        const auto corners = corners_of(pixels, image, p.value_pitches.pixel, p.value_pitches.row);
        if constexpr (fast) {
          add_sample_fast(corners, samples.weights[slot + k], &sums);
        } else {
          add_sample<Storage>(corners, samples.weights[slot + k], &sums);
        }
      }
      if (first + step < points) return;
      const int64_t pixel =
          (tile.image * p.out_height + item.pair.row) * p.out_width + item.pair.column;
      Storage* output = static_cast<Storage*>(p.output) + pixel * p.groups * p.group_channels;
      write<vector>(output + item.channel, sums.channel);
    });
  }
}

// `vector` channels per thread; `special` as special_points() gives it, `way` of ForwardWay.
template <typename Storage, int vector, int special, int way, typename Team>
DCNV4_MM_DEVICE void forward_block(const Params& p, const Tiling& t, uint32_t block, Team& team) {
  constexpr bool fast = way & kFast;
  if constexpr (special == 0) {
    forward_any_block<Storage, vector, fast>(p, t, block, team);
  } else if constexpr (way & kAlone) {
    forward_alone_block<Storage, vector, special, fast>(p, t, block, team);
  } else {
    forward_window_block<Storage, vector, special, fast>(p, t, block, team);
  }
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
