// Which pairs a block of the GPU kernels has, and their sampling points: reading them, the softmax
// of their weights, locating them.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/gpu_samples.h"
#include "common/sums.h"
#include "flash_deform_attn/launch.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// A run of pairs of one image.
struct Tile {
  int64_t image;
  int32_t first, count;
  int32_t vector;  // the first of each pair
};

DCNV4_MM_DEVICE Tile tile_of(const Params& p, const Tiling& t, uint32_t block) {
  int32_t rest = static_cast<int32_t>(block);
  int32_t next = divide_off(&rest, t.tiles);
  Tile tile;
  tile.first = rest * t.pairs;
  tile.count = smaller(t.pairs, static_cast<int32_t>(p.queries * p.heads) - tile.first);
  tile.image = divide_off(&next, t.vector_slices);
  tile.vector = next * t.tile_vectors.value;
  return tile;
}

// One head of one query of one image.
struct Pair {
  int64_t image;
  int32_t head, query;
};

DCNV4_MM_DEVICE Pair pair_of(const Divisor& queries, const Tile& tile, int32_t index) {
  Pair pair;
  pair.image = tile.image;
  pair.query = tile.first + index;
  pair.head = divide_off(&pair.query, queries);
  return pair;
}

DCNV4_MM_DEVICE int64_t offset_of(const Pair& pair, const Pitches& pitches) {
  return pair.image * pitches.image + pair.query * pitches.row + pair.head * pitches.head;
}

// The row of a pair in a contiguous tensor (N, Q, G).
DCNV4_MM_DEVICE int64_t row_of(const Params& p, const Pair& pair) {
  return (pair.image * p.queries + pair.query) * p.heads + pair.head;
}

// A head of an image.
DCNV4_MM_DEVICE int64_t head_of(const Params& p, const Pair& pair) {
  return pair.image * p.heads + pair.head;
}

// The channels of a pair in the gradient of the output.
template <typename Storage>
DCNV4_MM_DEVICE const Storage* grad_output_of(const Params& p, const Pair& pair) {
  return static_cast<const Storage*>(p.grad_output) + offset_of(pair, p.grad_output_pitches);
}

// The first pixel of a pair's image and head in value.
template <typename Storage>
DCNV4_MM_DEVICE const Storage* image_of(const Params& p, const Pair& pair) {
  return static_cast<const Storage*>(p.value) + pair.image * p.value_pitches.image +
         pair.head * p.value_pitches.head;
}

// The numbers of locations or weights: in the storage type of value, or in float32.
template <typename Storage>
DCNV4_MM_DEVICE RealOf<Storage> read_number(const Params& p, const void* numbers, int64_t index) {
  if (sizeof(Storage) == 2 && p.float32_points)
    return read(static_cast<const float*>(numbers) + index);
  return read(static_cast<const Storage*>(numbers) + index);
}

template <typename Storage>
DCNV4_MM_DEVICE void write_number(const Params& p, void* numbers, int64_t index,
                                  RealOf<Storage> number) {
  if (sizeof(Storage) == 2 && p.float32_points) {
    return write(static_cast<float*>(numbers) + index, static_cast<float>(number));
  }
  write(static_cast<Storage*>(numbers) + index, number);
}

// What a softmax needs of a pair's logits, or of a part of them.
template <typename Real>
struct Share {
  Real largest;
  Real sum;  // of e^(logit - largest); in the end its inverse
};

// Sums the exponentials of the pairs of a tile, in `shares`: those of the pair with the index i are
// in shares[i * kShareParts] then.
template <typename Storage, typename Team>
DCNV4_MM_DEVICE void sum_exponentials(const Params& p, const Divisor& queries, const Tile& tile,
                                      Share<RealOf<Storage>>* shares, Team& team) {
  using Real = RealOf<Storage>;
  if (!p.softmax) return;
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < tile.count * kShareParts; i += team.threads()) {
      const Pair pair = pair_of(queries, tile, i / kShareParts);
      const int64_t logits = offset_of(pair, p.weight_pitches);
      const int32_t first = i % kShareParts;
      Share<Real> share{-Real(INFINITY), 0};
      for (int32_t k = first; k < points; k += kShareParts) {
        const Real logit = read_number<Storage>(p, p.weights, logits + k);
        if (logit > share.largest) share.largest = logit;
      }
      // Where all logits are -Inf, their exponentials are 0; NaN comes through.
      const Real base = share.largest > -Real(INFINITY) ? share.largest : Real(0);
      for (int32_t k = first; k < points; k += kShareParts) {
        share.sum += std::exp(read_number<Storage>(p, p.weights, logits + k) - base);
      }
      shares[i] = share;
    }
  });
  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < tile.count; i += team.threads()) {
      const Share<Real>* parts = shares + i * kShareParts;
      Share<Real> all{-Real(INFINITY), 0};
      for (int part = 0; part < kShareParts; ++part) {
        if (parts[part].largest > all.largest) all.largest = parts[part].largest;
      }
      for (int part = 0; part < kShareParts; ++part) {
        all.sum += parts[part].sum * std::exp(parts[part].largest - all.largest);
      }
      all.sum = 1 / all.sum;
      shares[i * kShareParts] = all;
    }
  });
}

// The point `k` of a pair, on its level.
template <typename Storage>
DCNV4_MM_DEVICE Point<RealOf<Storage>> locate_point(const Params& p, const LevelTable::Entry& level,
                                                    const Pair& pair,
                                                    const Share<RealOf<Storage>>* share,
                                                    int32_t k) {
  using Real = RealOf<Storage>;
  const Real height = Real(level.height), width = Real(level.width);
  const int64_t location = offset_of(pair, p.location_pitches) + 2 * k;
  const Real x = read_number<Storage>(p, p.locations, location) * width - Real(0.5);
  const Real y = read_number<Storage>(p, p.locations, location + 1) * height - Real(0.5);
  Real weight = read_number<Storage>(p, p.weights, offset_of(pair, p.weight_pitches) + k);
  if (p.softmax) weight = std::exp(weight - share->largest) * share->sum;
  return point_at(y, x, height, width, weight);
}

// Where the four pixels around a point are.
struct alignas(8) Place {
  uint32_t pixel;  // 2 * the first one's index in the image, plus 1 if there is a next column
  int32_t down;    // pixels to the next row, or 0 if there is none
};

constexpr uint32_t kOutside = ~uint32_t(0);

template <typename Real>
DCNV4_MM_DEVICE Place place_of(const LevelTable::Entry& level, const Point<Real>& point) {
  if (!point.inside) return {kOutside, 0};
  const int32_t row = static_cast<int32_t>(point.y.first);
  const int32_t pixel = level.start + row * level.width + static_cast<int32_t>(point.x.first);
  return {static_cast<uint32_t>(pixel) << 1 | static_cast<uint32_t>(point.x.step),
          point.y.step ? level.width : 0};
}

// `pitch` is the distance of pixels in bytes.
template <typename Element>
DCNV4_MM_DEVICE Corners<Element> corners_of(const Place& place, Element* image, uint32_t pitch) {
  using Byte = std::conditional_t<std::is_const_v<Element>, const char, char>;
  // Each a multiplication of 32-bit numbers with a 64-bit sum.
  const auto at = [&](uint32_t pixel) {
    return reinterpret_cast<Element*>(reinterpret_cast<Byte*>(image) +
                                      static_cast<uint64_t>(pixel) * pitch);
  };
  const uint32_t first = place.pixel >> 1, right = place.pixel & 1, below = first + place.down;
  return {at(first), at(first + right), at(below), at(below + right)};
}

template <typename Storage>
DCNV4_MM_DEVICE uint32_t pixel_bytes(const Params& p) {
  return static_cast<uint32_t>(p.value_pitches.row) * sizeof(Storage);
}

// Samples in a block's shared memory, and after them what the softmax needs.
template <typename Real>
struct Samples {
  Weights<Real>* weights;
  Place* places;
  Share<Real>* shares;
};

template <typename Real>
DCNV4_MM_DEVICE Samples<Real> samples_in(void* shared, int32_t pairs, int32_t points) {
  const int32_t capacity = pairs * sample_stride(points);
  Weights<Real>* weights = static_cast<Weights<Real>*>(shared);
  Place* places = reinterpret_cast<Place*>(weights + capacity);
  return {weights, places, reinterpret_cast<Share<Real>*>(places + capacity)};
}

// The vector of a thread, in the pair with the given index in the tile.
struct Item {
  int32_t pair_index;
  int32_t lane;     // the thread among those of the pair
  int32_t channel;  // the vector's first, of the pair's
  bool exists;
};

template <int vector>
DCNV4_MM_DEVICE Item item_of(const Tiling& t, const Tile& tile, int32_t thread) {
  Item item;
  item.pair_index = divide_off(&thread, t.tile_vectors);
  item.lane = thread;
  item.channel = (tile.vector + thread) * vector;
  item.exists = item.pair_index < tile.count && tile.vector + thread < t.vectors;
  return item;
}

// Where a thread's units of channels are, in a pair.
template <int unit, int units>
DCNV4_MM_DEVICE Units units_in(const Tiling& t, const Tile& tile, const Item& item) {
  const int32_t lanes = smaller(t.tile_vectors.value, t.vectors - tile.vector);
  return units_of<unit, units>(item.channel, item.lane, lanes);
}

template <typename Real, int width, int vectors>
struct AllSums {
  Sums<Real, width> vector[vectors];
};

// Locates the points [first, end) of a thread's pair, those that are not another thread's.
template <typename Storage, typename Store>
DCNV4_MM_DEVICE void locate_own(const Params& p, const LevelTable& levels, const Tiling& t,
                                const Tile& tile, const Share<RealOf<Storage>>* shares,
                                const Item& item, int32_t first, int32_t end, Store store) {
  if (item.pair_index >= tile.count) return;
  const Pair pair = pair_of(t.queries, tile, item.pair_index);
  const Share<RealOf<Storage>> share =
      p.softmax ? shares[item.pair_index * kShareParts] : Share<RealOf<Storage>>{};
  const int32_t count = smaller(t.points, end - first);
  for (int32_t k = item.lane; k < count; k += t.tile_vectors.value) {
    const LevelTable::Entry& level = levels.entries[divide(first + k, t.level_points)];
    const auto point = locate_point<Storage>(p, level, pair, &share, first + k);
    store(item.pair_index * sample_stride(t.points) + k, pair, place_of(level, point), point);
  }
}

// Adds `count` samples in shared memory, from the one at `slot` on. A thread has `vectors` vectors
// of `width` channels, which are `step` channels apart, in an image that starts at `image`.
template <typename Storage, int width, int vectors>
DCNV4_MM_DEVICE void add_samples(const Samples<RealOf<Storage>>& samples, int32_t slot,
                                 int32_t count, const Storage* image, uint32_t pitch, int32_t step,
                                 Sums<RealOf<Storage>, width>* sums) {
  const Storage* origins[vectors];
  for (int v = 0; v < vectors; ++v) origins[v] = whole(image + v * step);
#pragma unroll 4
  for (int32_t k = 0; k < count; ++k) {
    const Place place = samples.places[slot + k];
    if (place.pixel == kOutside) continue;
    const Weights<RealOf<Storage>> weights = samples.weights[slot + k];
    for (int v = 0; v < vectors; ++v) {
      add_sample<Storage>(corners_of(place, origins[v], pitch), weights, &sums[v]);
    }
  }
}

// The way back: adds the gradient of the output, of which `finite` says whether it is, to the
// pixels of samples, as Spread says. `image` is a part of `sums`.
template <int unit, int units, typename Real, typename Accumulator>
DCNV4_MM_DEVICE void spread_samples(const Samples<Real>& samples, int32_t slot, int32_t count,
                                    const Accumulator& sums, const Real* grad, bool finite,
                                    typename Accumulator::Number* image, int32_t pitch,
                                    int32_t step) {
  image = whole(image);
  for (int32_t k = 0; k < count; ++k) {
    const Place place = samples.places[slot + k];
    if (place.pixel == kOutside) continue;
    const auto corners = corners_of(place, image, pitch * sizeof(*image));
    const Weights<Real> weights = samples.weights[slot + k];
    for (int c = 0; c < 4; ++c) {
      if ((c & 1 && !(place.pixel & 1)) || (c & 2 && !place.down)) continue;
      sums.template add<unit, units>(corners.corner[c], step, weights.corner[c], grad, finite);
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
