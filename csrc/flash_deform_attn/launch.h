// How the GPU kernels of deformable attention divide a problem among blocks and threads: pure
// functions of the problem and the device's limits. Any shape has a launch.
//
// A pair is one head of one query of an image. Pairs are counted with the queries of a head next to
// each other: neighbours in an encoder sample the same pixels of the same channels.
#pragma once

#include <algorithm>

#include "common/fixed_point.h"
#include "common/spread.h"
#include "common/vectorized.h"
#include "flash_deform_attn/params.h"

namespace dcnv4_mm::flash_deform_attn {

// The levels travel in the kernels' arguments: no memory of the device is needed for them.
constexpr int32_t kMaxLevels = 256;

struct LevelTable {
  struct Entry {
    float height, width;  // both are exact
    int32_t start;        // its first pixel among the pixels of all levels
  } entries[kMaxLevels];
};

inline LevelTable geometry_of(const Params& p) {
  LevelTable table{};
  for (int64_t i = 0; i < p.num_levels; ++i) {
    const Level& level = p.levels[i];
    table.entries[i] = {static_cast<float>(level.height), static_cast<float>(level.width),
                        static_cast<int32_t>(level.start)};
  }
  return table;
}

// A query samples the one image of its own.
inline int64_t images_per_query(const Params&) { return 1; }

// The kernels index the elements of an image of value in 32 bits.
constexpr int64_t kMostElements = (int64_t(1) << 32) - 1;

// Whether they can index images whose pixels are `pitch` elements apart.
inline bool is_indexable(int64_t pixels, int64_t pitch) {
  return pitch <= kMostElements && pixels * pitch <= kMostElements;
}

// Why the kernels cannot index a problem, or null.
inline const char* why_too_large(const Params& p) {
  constexpr int64_t limit = int64_t(1) << 30;
  if (p.num_levels > kMaxLevels) return "more than 256 levels";
  if (p.num_points >= limit / p.num_levels) return "2^30 points of a query and head";
  if (p.queries >= limit / p.heads) return "2^30 queries and heads of an image";
  if (p.channels >= limit / 2 / p.heads) return "2^29 channels of a pixel";
  if (!is_indexable(p.pixels, p.heads * p.channels)) return "2^32 elements of an image";
  return nullptr;
}

inline bool is_aligned(const void* data, const Pitches& pitches, int64_t batch, int64_t rows,
                       int64_t heads, int32_t element, int32_t bytes) {
  const auto fits = [=](int64_t size, int64_t pitch) {
    return size == 1 || pitch * element % bytes == 0;
  };
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && fits(batch, pitches.image) &&
         fits(rows, pitches.row) && fits(heads, pitches.head);
}

// Channels that a thread loads at once: as many as the tensors' alignment allows, at most 16 bytes.
inline int32_t vector_channels(const Params& p) {
  const int32_t element = element_bytes(p.dtype);
  int32_t bytes = kWidestLoad;
  const auto fits = [&] {
    return p.channels * element % bytes == 0 &&
           (!p.value ||
            is_aligned(p.value, p.value_pitches, p.batch, p.pixels, p.heads, element, bytes)) &&
           (!p.grad_output || is_aligned(p.grad_output, p.grad_output_pitches, p.batch, p.queries,
                                         p.heads, element, bytes));
  };
  while (bytes > element && !fits()) bytes /= 2;
  return bytes / element;
}

// Channels of a vector in threads that have so many.
template <typename Storage>
DCNV4_MM_HOST_DEVICE constexpr int load_width(int channels) {
  constexpr int widest = kWidestLoad / int(sizeof(Storage));
  return channels < widest ? channels : widest;
}

// Calls function(channels of a thread of the forward) with a constant. Two vectors of the full
// width halve the work for addresses, where four threads or more are left to locate a pair's
// points.
template <typename Storage, typename Function>
void with_forward_channels(const Params& p, int32_t vector, Function function) {
  constexpr int widest = kWidestLoad / int(sizeof(Storage));
  if constexpr (sizeof(Storage) < sizeof(double)) {
    if (vector == widest && p.channels % (2 * widest) == 0 && p.channels >= 8 * widest &&
        p.channels <= 256 * widest) {
      return function(Constant<2 * widest>{});
    }
  }
  with_vector<widest>(vector, function);
}

// A sample in shared memory: four weights, and four offsets of pixels.
inline int32_t sample_bytes(DType dtype) { return 4 * real_bytes(dtype) + 16; }

// Samples of neighbouring pairs are an odd number of samples apart: no bank conflicts.
DCNV4_MM_HOST_DEVICE int32_t sample_stride(int32_t points) { return points | 1; }

// A softmax over the points of a pair is summed in so many parts, by as many threads. The number is
// the same for every launch, and so are the bits of the sum.
constexpr int32_t kSoftmaxParts = 4;

// Of a part, its largest logit and sum of exponentials, and in the backward a part of the sum of
// the gradient: `count` numbers.
inline int32_t softmax_bytes(const Params& p, int32_t count) {
  return p.softmax ? kSoftmaxParts * count * real_bytes(p.dtype) : 0;
}

// A block owns a run of pairs of one image, and some vectors of channels of each of them.
struct Tiling {
  int32_t threads;
  int32_t pairs;   // of a block
  int32_t points;  // of each pair in shared memory at a time
  int32_t shared_bytes;
  int64_t blocks;
  int32_t vectors;  // of a pair
  Divisor tiles;    // of an image
  Divisor vector_slices, tile_vectors, tile_points;
  Divisor queries, level_points;
};

inline int64_t pairs_of(const Params& p) { return p.queries * p.heads; }

inline void set_blocks(const Params& p, int64_t vector_slices, Tiling* t) {
  const int64_t tiles = ceil_div<int64_t>(pairs_of(p), t->pairs);
  t->blocks = tiles * vector_slices * p.batch;
  t->tiles = divisor_of(std::max<int64_t>(1, tiles));
  t->vector_slices = divisor_of(vector_slices);
  t->tile_points = divisor_of(t->points);
  t->queries = divisor_of(std::max<int64_t>(1, p.queries));
  t->level_points = divisor_of(p.num_points);
}

// How many pairs of `vectors` threads a block takes, at most `most` and not much fewer: so many
// that few threads are without work.
inline int32_t choose_pairs(int64_t pairs, int32_t vectors, int32_t most) {
  int32_t best = 1;
  double best_use = 0;
  for (int32_t count = most; count >= std::max(1, most / 2); --count) {
    const double threads =
        double(ceil_div<int64_t>(pairs, count)) * round_up(count * vectors, kWarp);
    const double use = double(pairs) * vectors / threads;
    if (use > best_use) best = count, best_use = use;
  }
  return best;
}

// For blocks of about `threads` threads, each of which takes `vector` channels of a pair.
inline Tiling tiling_of_threads(const Params& p, int32_t vector, int32_t threads, int32_t budget) {
  constexpr int32_t max_vectors = 256, min_points = 8;
  const int64_t vectors = p.channels / vector;
  const int64_t vector_slices = ceil_div<int64_t>(vectors, max_vectors);
  const int32_t slice_vectors = static_cast<int32_t>(ceil_div(vectors, vector_slices));
  const int64_t pairs = std::max<int64_t>(1, pairs_of(p));
  const int64_t wanted = std::clamp<int64_t>(threads / slice_vectors, 1, pairs);

  // Fewer points at a time rather than fewer pairs, as long as these are not few.
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const int32_t sample = sample_bytes(p.dtype), softmax = softmax_bytes(p, 2);
  const int32_t fitting = static_cast<int32_t>((budget / wanted - softmax) / sample - 1);
  const int32_t most = std::clamp(fitting, smaller(points, min_points), points);
  Tiling t{};
  t.points = ceil_div(points, ceil_div(points, most));
  const int32_t pair_bytes = sample_stride(t.points) * sample + softmax;
  t.pairs = choose_pairs(pairs, slice_vectors,
                         static_cast<int32_t>(std::min<int64_t>(wanted, budget / pair_bytes)));
  t.threads = round_up(t.pairs * slice_vectors, kWarp);
  t.shared_bytes = t.pairs * pair_bytes;
  t.vectors = static_cast<int32_t>(vectors);
  t.tile_vectors = divisor_of(slice_vectors);
  set_blocks(p, vector_slices, &t);
  return t;
}

// Several blocks are to fit into a multiprocessor, and to leave room for the L1 cache.
inline int32_t shared_budget(const DeviceLimits& limits) {
  return std::min(kSharedByDefault, limits.shared_per_multiprocessor / 5);
}

// The fraction of a launch's threads that have work.
inline double used_threads(const Params& p, const Tiling& t) {
  return double(pairs_of(p)) * double(p.batch) * t.vectors / (double(t.blocks) * t.threads);
}

// `vector` channels are loaded at once. Large blocks unless they leave multiprocessors idle, and
// smaller ones would not leave threads idle instead.
inline Tiling choose_tiling(const Params& p, int32_t vector, const DeviceLimits& limits) {
  const int32_t budget = shared_budget(limits);
  Tiling t = tiling_of_threads(p, vector, 256, budget);
  for (int32_t threads : {128, 64, 32}) {
    if (t.blocks >= 2 * limits.multiprocessors) break;
    const Tiling small = tiling_of_threads(p, vector, threads, budget);
    if (used_threads(p, small) >= 0.9 * used_threads(p, t)) t = small;
  }
  return t;
}

// For the gradients of locations and weights: a thread takes one point at a time, with all channels
// of its head. With a softmax, a point has two numbers in shared memory.
inline Tiling choose_point_tiling(const Params& p, int32_t vector, const DeviceLimits& limits) {
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const int32_t softmax = softmax_bytes(p, 3);
  const int32_t point_bytes = p.softmax ? 2 * real_bytes(p.dtype) : 0;
  const int64_t pairs = std::max<int64_t>(1, pairs_of(p));
  Tiling t{};
  t.points = points;
  if (p.softmax) t.points = smaller(points, (shared_budget(limits) - softmax) / point_bytes);
  for (int32_t threads : {256, 128, 64, 32}) {
    t.pairs = static_cast<int32_t>(std::clamp<int64_t>(threads / points, 1, pairs));
    t.threads = smaller(threads, round_up(t.pairs * t.points, kWarp));
    set_blocks(p, 1, &t);
    if (t.blocks >= 2 * limits.multiprocessors) break;
  }
  t.shared_bytes = t.pairs * (t.points * point_bytes + softmax);
  t.vectors = static_cast<int32_t>(p.channels / vector);
  return t;
}

// For fixed-point sums: at most so many products are added to an element of the gradient of value,
// which is of one level.
inline int64_t most_products(const Params& p) { return p.queries * p.num_points; }

// The weights of a softmax are at most 1.
inline Magnitudes magnitudes_of(const Params& p) {
  const auto numbers = [](const void* data, const Pitches& pitches, int64_t count,
                          bool is_float32) {
    return Magnitudes::Numbers{data,         pitches.image,     0,         pitches.row,
                               pitches.head, divisor_of(count), is_float32};
  };
  return magnitudes_of(p.batch, 1, p.queries, p.heads,
                       numbers(p.grad_output, p.grad_output_pitches, p.channels, false),
                       p.softmax ? numbers(nullptr, {}, 1, false)
                                 : numbers(p.weights, p.weight_pitches, p.num_levels * p.num_points,
                                           p.float32_points));
}

}  // namespace dcnv4_mm::flash_deform_attn
