// Which pairs a block of the GPU kernels of the attention operators has, and their sampling points:
// reading them, the softmax of their weights, locating them.
//
// All operators share the bodies of the kernels. A Sampling, of each operator its own, says where
// the points of a query lie: in the one image of deformable attention, or in those of the cameras
// that see the query. It has
//   p, a problem
//   kOneImage, whether a query samples one image alone
//   kNormalized, whether locations are fractions of an image: 1 is its size
//   cameras(), the number of images that a query may sample
//   sees(pair, camera), whether it does; count(pair), how many it samples
//   sees_tile(t, tile, camera, team), whether a query of a tile samples a camera
//   image(pair, camera), the index of the image in value
//   point(t, k), the level of the point with the index k
//   origins<Real>(pair, camera), what the points are relative to
//   coordinates(point, origins, x, y), a Position in pixels from x and y in locations
#pragma once

#include <cmath>

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

DCNV4_MM_DEVICE Pair pair_of(const Tiling& t, const Tile& tile, int32_t index) {
  Pair pair;
  pair.image = tile.image;
  pair.query = tile.first + index;
  pair.head = divide_off(&pair.query, t.queries);
  return pair;
}

DCNV4_MM_DEVICE int64_t offset_of(const Pair& pair, const Pitches& pitches) {
  return pair.image * pitches.image + pair.query * pitches.row + pair.head * pitches.head;
}

// The index of a pair in a contiguous tensor (N, Q, G).
DCNV4_MM_DEVICE int64_t index_of(const Params& p, const Pair& pair) {
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

// The first pixel of a pair's head in an image of value.
template <typename Storage, typename Sampling>
DCNV4_MM_DEVICE const Storage* image_of(const Sampling& s, const Pair& pair, int32_t camera) {
  return static_cast<const Storage*>(s.p.value) + s.image(pair, camera) * s.p.value_pitches.image +
         pair.head * s.p.value_pitches.head;
}

// Calls function with a number of the type of locations and weights, for its type alone.
template <typename Storage, typename Function>
DCNV4_MM_DEVICE void with_point_type(const Params& p, Function function) {
  if constexpr (sizeof(Storage) == 2) {
    if (p.float32_points) return function(float{});
  }
  function(Storage{});
}

template <typename Number>
DCNV4_MM_DEVICE const Number* weights_of(const Params& p, const Pair& pair) {
  return whole(static_cast<const Number*>(p.weights) + offset_of(pair, p.weight_pitches));
}

template <typename Number>
DCNV4_MM_DEVICE const Number* locations_of(const Params& p, const Pair& pair) {
  return whole(static_cast<const Number*>(p.locations) + offset_of(pair, p.location_pitches));
}

template <typename Storage>
DCNV4_MM_DEVICE void write_number(const Params& p, void* numbers, int64_t index,
                                  RealOf<Storage> number) {
  if (sizeof(Storage) == 2 && p.float32_points) {
    return write(static_cast<float*>(numbers) + index, static_cast<float>(number));
  }
  write(static_cast<Storage*>(numbers) + index, number);
}

// e^number of a softmax, where number <= 0. An error of 2^-21 is small beside the rounding of 16
// bits; that of a large number is small beside the largest exponential, 1.
template <typename Storage>
DCNV4_MM_DEVICE RealOf<Storage> exponential(RealOf<Storage> number) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Storage) == 2) return __expf(number);
#endif
  return std::exp(number);
}

// What a softmax needs of a pair's logits, or of a part of them.
template <typename Real>
struct Softmax {
  Real largest;
  Real sum;  // of e^(logit - largest); in the end what these are multiplied by
};

template <typename Storage>
DCNV4_MM_DEVICE RealOf<Storage> softmax_weight(const Softmax<RealOf<Storage>>& softmax,
                                               RealOf<Storage> logit) {
  return exponential<Storage>(logit - softmax.largest) * softmax.sum;
}

template <typename Storage, typename Number>
DCNV4_MM_DEVICE Softmax<RealOf<Storage>> softmax_part(const Number* logits, int32_t first,
                                                      int32_t points) {
  using Real = RealOf<Storage>;
  Softmax<Real> part{-Real(INFINITY), 0};
#pragma unroll 4
  for (int32_t k = first; k < points; k += kSoftmaxParts) {
    part.largest = std::fmax(part.largest, Real(read(logits + k)));
  }
  // Where all logits are -Inf, their exponentials are 0; NaN comes through.
  const Real base = part.largest > -Real(INFINITY) ? part.largest : Real(0);
#pragma unroll 4
  for (int32_t k = first; k < points; k += kSoftmaxParts) {
    part.sum += exponential<Storage>(Real(read(logits + k)) - base);
  }
  return part;
}

// Prepares the softmax of the pairs of a tile: the pair with the index i has
// softmax[i * kSoftmaxParts]. A query's weights are divided by the number of images it samples.
template <typename Storage, typename Sampling, typename Team>
DCNV4_MM_DEVICE void prepare_softmax(const Sampling& s, const Tiling& t, const Tile& tile,
                                     Softmax<RealOf<Storage>>* softmax, Team& team) {
  using Real = RealOf<Storage>;
  if (!s.p.softmax) return;
  const int32_t points = static_cast<int32_t>(s.p.num_levels * s.p.num_points);
  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < tile.count * kSoftmaxParts; i += team.threads()) {
      const Pair pair = pair_of(t, tile, i / kSoftmaxParts);
      with_point_type<Storage>(s.p, [&](auto number) {
        const auto* logits = weights_of<decltype(number)>(s.p, pair);
        softmax[i] = softmax_part<Storage>(logits, i % kSoftmaxParts, points);
      });
    }
  });
  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < tile.count; i += team.threads()) {
      const Softmax<Real>* parts = softmax + i * kSoftmaxParts;
      Softmax<Real> all{-Real(INFINITY), 0};
      for (int part = 0; part < kSoftmaxParts; ++part) {
        all.largest = std::fmax(all.largest, parts[part].largest);
      }
      for (int part = 0; part < kSoftmaxParts; ++part) {
        all.sum += parts[part].sum * exponential<Storage>(parts[part].largest - all.largest);
      }
      all.sum = 1 / all.sum;
      if (const int32_t count = s.count(pair_of(t, tile, i)); count > 1) all.sum /= Real(count);
      softmax[i * kSoftmaxParts] = all;
    }
  });
}

// A point's level, and what an operator knows of it besides.
struct LevelPoint {
  const LevelTable::Entry& level;
  int32_t number;
};

// A sampling point's coordinates in pixels.
template <typename Real>
struct Position {
  Real y, x;
};

template <typename Real>
DCNV4_MM_DEVICE Point<Real> point_at(const LevelTable::Entry& level, const Position<Real>& position,
                                     Real weight) {
  return dcnv4_mm::point_at(position.y, position.x, Real(level.height), Real(level.width), weight);
}

// Where the four pixels around a point are: distances from the image's first pixel in units of some
// channels.
struct alignas(16) Offsets {
  uint32_t corner[4];
};

constexpr uint32_t kNone = ~uint32_t(0);

// For reading; the first is kNone where the point does not count. `step` is the distance of pixels.
template <typename Real>
DCNV4_MM_DEVICE Offsets reading_offsets(const LevelTable::Entry& level, const Point<Real>& point,
                                        uint32_t step) {
  const uint32_t width = static_cast<uint32_t>(level.width);
  const uint32_t row = static_cast<uint32_t>(point.y.first);
  const uint32_t pixel = level.start + row * width + static_cast<uint32_t>(point.x.first);
  const uint32_t first = pixel * step;
  const uint32_t right = point.x.step ? step : 0, down = point.y.step ? width * step : 0;
  return {point.inside ? first : kNone, first + right, first + down, first + down + right};
}

// For adding, once to each pixel: kNone where there is no further one.
template <typename Real>
DCNV4_MM_DEVICE Offsets adding_offsets(const LevelTable::Entry& level, const Point<Real>& point,
                                       uint32_t step) {
  Offsets offsets = reading_offsets(level, point, step);
  const bool right = point.inside && point.x.step, down = point.inside && point.y.step;
  if (!right) offsets.corner[1] = kNone;
  if (!down) offsets.corner[2] = kNone;
  if (!right || !down) offsets.corner[3] = kNone;
  return offsets;
}

template <int unit, typename Element>
DCNV4_MM_DEVICE Element* element_at(Element* image, uint32_t offset) {
#if defined(__CUDA_ARCH__)
  // One instruction.
  Element* element;
  asm("mad.wide.u32 %0, %1, %2, %3;"
      : "=l"(element)
      : "r"(offset), "n"(unit * sizeof(Element)), "l"(image));
  return element;
#else
  return image + static_cast<uint64_t>(offset) * unit;
#endif
}

template <int unit, typename Element>
DCNV4_MM_DEVICE Corners<Element> corners_at(Element* image, const Offsets& offsets) {
  return {element_at<unit>(image, offsets.corner[0]), element_at<unit>(image, offsets.corner[1]),
          element_at<unit>(image, offsets.corner[2]), element_at<unit>(image, offsets.corner[3])};
}

// The distance of pixels of value in vectors.
template <int vector>
DCNV4_MM_DEVICE uint32_t pixel_vectors(const Params& p) {
  return static_cast<uint32_t>(p.value_pitches.row) / vector;
}

// Samples in a block's shared memory, and after them what the softmax needs.
template <typename Real>
struct Samples {
  Weights<Real>* weights;
  Offsets* offsets;
  Softmax<Real>* softmax;
};

template <typename Real>
DCNV4_MM_DEVICE Samples<Real> samples_in(void* shared, int32_t pairs, int32_t points) {
  const int32_t capacity = pairs * sample_stride(points);
  Weights<Real>* weights = static_cast<Weights<Real>*>(shared);
  Offsets* offsets = reinterpret_cast<Offsets*>(weights + capacity);
  return {weights, offsets, reinterpret_cast<Softmax<Real>*>(offsets + capacity)};
}

// The vector of a thread, in the pair with the given index in the tile.
struct Item {
  int32_t pair_index;
  Pair pair;
  int32_t lane;     // the thread among those of the pair
  int32_t channel;  // the vector's first, of the pair's
  bool exists;
};

template <int vector>
DCNV4_MM_DEVICE Item item_of(const Tiling& t, const Tile& tile, int32_t thread) {
  Item item;
  item.pair_index = divide_off(&thread, t.tile_vectors);
  item.pair = pair_of(t, tile, item.pair_index);
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

// Locates the points [first, end) of a thread's pair in a camera, those that are not another
// thread's; store(slot, level, point) keeps one.
template <typename Storage, typename Sampling, typename Store>
DCNV4_MM_DEVICE void locate_own(const Sampling& s, const Tiling& t, const Tile& tile,
                                const Softmax<RealOf<Storage>>* softmaxes, const Item& item,
                                int32_t camera, int32_t first, int32_t end, Store store) {
  using Real = RealOf<Storage>;
  if (item.pair_index >= tile.count || !s.sees(item.pair, camera)) return;
  const Softmax<Real> softmax =
      s.p.softmax ? softmaxes[item.pair_index * kSoftmaxParts] : Softmax<Real>{};
  const auto origins = s.template origins<Real>(item.pair, camera);
  const int32_t slot = item.pair_index * sample_stride(t.points);
  const int32_t count = smaller(t.points, end - first);
  with_point_type<Storage>(s.p, [&](auto number) {
    const auto* locations = locations_of<decltype(number)>(s.p, item.pair);
    const auto* weights = weights_of<decltype(number)>(s.p, item.pair);
    for (int32_t k = item.lane; k < count; k += t.tile_vectors.value) {
      const int32_t index = first + k;
      const LevelPoint at = s.point(t, index);
      const Real x = read(locations + 2 * index), y = read(locations + 2 * index + 1);
      const Real weight = read(weights + index);
      store(slot + k, at.level,
            point_at(at.level, s.coordinates(at, origins, x, y),
                     s.p.softmax ? softmax_weight<Storage>(softmax, weight) : weight));
    }
  });
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
