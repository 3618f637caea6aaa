// The body of the forward kernel on the GPU. First the block's threads locate the sampling points,
// each once per group; then each thread sums the samples of one vector of channels.
//
// A body is a sequence of phases. `team.phase(f)` calls f(thread) for every thread of the block and
// ends with a barrier, so no thread may read in a phase what another one writes in it.
#pragma once

#include "dcnv4/tile.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// The fast way of float16 keeps other numbers in the weights' place: two words with the four
// bilinear weights in float16, and the mask.
struct FastWeights {
  uint32_t top, bottom;
  float mask;
};

DCNV4_MM_DEVICE Weights<float> fast_weights(Point<float> point) {
  const float mask = point.factor;
  point.factor = 1;
  const Weights<float> weights = reading_weights(point);
  Words<Half, 4> halves;
  pack(weights.corner, &halves);
  Weights<float> stored{};
  const FastWeights fast{halves.words[0], halves.words[1], mask};
  __builtin_memcpy(&stored, &fast, sizeof(fast));
  return stored;
}

// Adds one sample whose four pixels are summed in float16.
template <int vector>
DCNV4_MM_DEVICE void add_sample_fast(const Corners<const Half>& corners,
                                     const Weights<float>& weights, Sums<float, vector>* sums) {
  FastWeights fast;
  __builtin_memcpy(&fast, &weights, sizeof(fast));
  const uint32_t rows[2] = {fast.top, fast.bottom};
  Words<Half, vector> loaded[4], sample{};
  for (int c = 0; c < 4; ++c) loaded[c] = load_words<vector>(corners.corner[c]);
  for (int c = 0; c < 4; ++c) {
    const uint32_t weight = c % 2 ? rows[c / 2] >> 16 : rows[c / 2] & 0xffffu;
    for (int i = 0; i < vector / 2; ++i) {
      sample.words[i] =
          multiply_add_halves(loaded[c].words[i], weight | weight << 16, sample.words[i]);
    }
  }
  float numbers[vector];
  unpack(sample, numbers);
  for (int i = 0; i < vector; ++i) {
    sums->channel[i] = multiply_add(fast.mask, numbers[i], sums->channel[i]);
  }
}

// `vector` channels per thread; `special` as special_points() gives it.
template <typename Storage, int vector, int special, bool fast, typename Team>
DCNV4_MM_DEVICE void forward_block(const Params& p, const Tiling& t, uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(t, block);
  const int32_t points = point_count<special>(p);
  const int32_t step = special ? special : t.points;
  const Samples<Real> samples =
      samples_in<Real>(team.shared(), pair_count(t) * sample_stride(step));
  const int32_t row_pixels = static_cast<int32_t>(p.value_pitches.row / p.value_pitches.pixel);
  typename Team::template PerThread<Sums<Real, vector>> all_sums(team);

  for (int32_t first = 0; first < points; first += step) {
    team.phase([&](int32_t thread) {
      locate_tile<special, Storage>(p, t, tile, thread, first,
                                    [&](int32_t slot, const Point<Real>& point) {
                                      samples.places[slot] = place_of(point, row_pixels);
                                      if constexpr (fast) {
                                        samples.weights[slot] = fast_weights(point);
                                      } else {
                                        samples.weights[slot] = reading_weights(point);
                                      }
                                    });
    });
    team.phase([&](int32_t thread) {
      const Item item = item_of<vector>(p, t, tile, thread);
      if (!item.exists) return;
      const Storage* image =
          static_cast<const Storage*>(p.value) + tile.image * p.value_pitches.image + item.channel;
      Sums<Real, vector>& sums = all_sums[thread];
      const int32_t slot = item.pair_index * sample_stride(step);
      const int32_t count = special ? special : smaller(step, points - first);
#pragma unroll
      for (int32_t k = 0; k < count; ++k) {
        const uint32_t place = samples.places[slot + k];
        if (place == kOutside) continue;
        const auto corners = corners_of(place, image, p.value_pitches.pixel, p.value_pitches.row);
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

}  // namespace
}  // namespace dcnv4_mm::dcnv4
