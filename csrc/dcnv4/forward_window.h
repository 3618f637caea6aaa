// The forward of 3x3 kernels on the GPU. A thread has one or two vectors of channels of a group.
#pragma once

#include "dcnv4/window.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// The four bilinear weights in float16, and the mask: instead of the float32 weights where corners
// are summed in float16.
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

template <bool fast, typename Real>
DCNV4_MM_DEVICE Weights<Real> forward_weights(const Point<Real>& point) {
  if constexpr (fast) return fast_weights(point);
  if constexpr (!fast) return reading_weights(point);
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

template <bool fast, typename Storage, int vector>
DCNV4_MM_DEVICE void add_forward(const Corners<const Storage>& corners,
                                 const Weights<RealOf<Storage>>& weights,
                                 Sums<RealOf<Storage>, vector>* sums) {
  if constexpr (fast) {
    add_sample_fast(corners, weights, sums);
  } else {
    add_sample<Storage>(corners, weights, sums);
  }
}

// A vector in the output, by its index in the image: one register rather than two for its address.
template <typename Storage>
DCNV4_MM_DEVICE uint32_t result_of(const Tiling& t, const Pair& pair, uint32_t channel) {
  constexpr uint32_t width = kWidestLoad / sizeof(Storage);
  const uint32_t pixel = pair.row * t.out_width + pair.column;
  return pixel * t.window.result_vectors + channel / width;
}

template <typename Storage>
DCNV4_MM_DEVICE Storage* result_at(const Params& p, const Tiling& t, const Tile& tile,
                                   uint32_t result) {
  const uint64_t image = static_cast<uint64_t>(static_cast<uint32_t>(t.out_height * t.out_width)) *
                         t.window.result_vectors;
  return static_cast<Storage*>(p.output) +
         (tile.image * image + result) * (kWidestLoad / sizeof(Storage));
}

// A group has one thread, with two vectors of channels: the thread locates the group's points
// itself.
template <typename Storage, int vector, int points, bool fast, typename Team>
DCNV4_MM_DEVICE void forward_alone_block(const Params& p, const Tiling& t, uint32_t block,
                                         Team& team) {
  constexpr int width = kWidestLoad / int(sizeof(Storage));
  static_assert(vector == 2 * width, "");
  const Tile tile = tile_of(t, block);
  own_phase(team, [&](int32_t thread) {
    const Item item = item_of<vector>(t, tile, thread);
    if (!item.exists) return;
    const Center center = center_of(t.window, item.pair);
    const Storage* numbers = numbers_of<points, Storage>(p, t, tile, item.pair);
    // Half of the threads take their second vector first, so that eight neighbours together, whose
    // loads are one transaction, take 16 bytes of each bank.
    const uint32_t channel = item.channel + (thread & 4 ? width : 0);
    const int32_t other = thread & 4 ? -1 : 1;
    const Storage* origin = whole(image_of<Storage>(p, tile) + channel);
    // The other vector is counted from an address of its own where there are registers for it.
    const Storage* origins[2] = {origin, fast ? whole(origin + other * width) : origin};
    const int32_t shifts[2] = {0, fast ? 0 : other};
    const uint32_t result = whole(result_of<Storage>(t, item.pair, channel));
    Sums<float, width> sums[2];
#pragma unroll
    for (int32_t k = 0; k < points; ++k) {
      const Point<float> point = window_point<points>(t.window, center, numbers, k);
      if (!point.inside) continue;
      const PixelOffsets at = pixels_of(t.window, point);
      const Weights<float> weights = forward_weights<fast>(point);
      for (int half = 0; half < 2; ++half) {
        add_forward<fast>(corners_at(origins[half], at, shifts[half]), weights, &sums[half]);
      }
    }
    write<width>(result_at<Storage>(p, t, tile, result), sums[0].channel);
    // The vectors of a pair are an even number: the other one's index differs in the last bit.
    write<width>(result_at<Storage>(p, t, tile, result ^ 1), sums[1].channel);
  });
}

template <int points>
DCNV4_MM_DEVICE Samples<float> samples_of(void* shared, int32_t pair) {
  char* first = static_cast<char*>(shared) + pair * window_samples_bytes(points);
  return {reinterpret_cast<Weights<float>*>(first),
          reinterpret_cast<uint32_t*>(first + points * sizeof(Weights<float>))};
}

// The threads of a group locate its points, each some, and share them. A thread has one or two
// vectors of channels.
template <typename Storage, int vector, int points, bool fast, typename Team>
DCNV4_MM_DEVICE void forward_window_block(const Params& p, const Tiling& t, uint32_t block,
                                          Team& team) {
  constexpr int width = kWidestLoad / int(sizeof(Storage)), vectors = vector / width;
  const Tile tile = tile_of(t, block);
  const int32_t lanes = t.tile_vectors.value;
  typename Team::template PerThread<Item> items(team);

  team.phase([&](int32_t thread) {
    const Item item = items[thread] = item_of<vector>(t, tile, thread);
    if (item.pair_index >= pair_count(t) || !item.pair.exists) return;
    const Center center = center_of(t.window, item.pair);
    const Storage* numbers = numbers_of<points, Storage>(p, t, tile, item.pair);
    const Samples<float> samples = samples_of<points>(team.shared(), item.pair_index);
    for (int32_t k = thread - item.pair_index * lanes; k < points; k += lanes) {
      const Point<float> point = window_point<points>(t.window, center, numbers, k);
      samples.pixels[k] = point.inside ? word_of(t.window, point) : kOutside;
      samples.weights[k] = forward_weights<fast>(point);
    }
  });
  own_phase(team, [&](int32_t thread) {
    const Item item = items[thread];
    if (!item.exists) return;
    // Neighbouring threads load and store adjacent vectors.
    const int32_t lane = thread - item.pair_index * lanes;
    const auto [channel, step] = units_of<width, vectors>(item.channel, lane, lanes);
    const uint32_t result = whole(result_of<Storage>(t, item.pair, channel));
    const Storage* origins[vectors];
    for (int v = 0; v < vectors; ++v) {
      origins[v] = whole(image_of<Storage>(p, tile) + channel + v * step);
    }
    const Samples<float> samples = samples_of<points>(team.shared(), item.pair_index);
    Sums<float, width> sums[vectors];
#pragma unroll
    for (int32_t k = 0; k < points; ++k) {
      const uint32_t word = samples.pixels[k];
      if (word == kOutside) continue;
      const PixelOffsets at = pixels_in(t.window, word);
      const Weights<float> weights = samples.weights[k];
      for (int v = 0; v < vectors; ++v) {
        add_forward<fast>(corners_at(origins[v], at), weights, &sums[v]);
      }
    }
    for (int v = 0; v < vectors; ++v) {
      write<width>(result_at<Storage>(p, t, tile, result + v * lanes), sums[v].channel);
    }
  });
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
