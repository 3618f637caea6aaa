// How the kernels of DCNv4 divide a problem among blocks and threads: pure functions of the problem
// and the device's limits. Any shape has a launch; the common ones have a good one.
#pragma once

#include <algorithm>

#include "common/fixed_point.h"
#include "common/spread.h"
#include "common/vectorized.h"
#include "dcnv4/params.h"

namespace dcnv4_mm::dcnv4 {

// Whether the kernels can index the pixels of value where they are.
inline bool is_indexable(const Pitches& value, int64_t height) {
  return value.pixel < (int64_t(1) << 31) && value.row / value.pixel < (int64_t(1) << 30) / height;
}

// Why the kernels' 32-bit indices inside one image do not suffice, or null.
inline const char* why_too_large(const Params& p) {
  constexpr int64_t limit = (int64_t(1) << 31) - 1;
  for (int i = 0; i < 2; ++i) {
    const int64_t size = i == 0 ? p.height : p.width;
    if (size + 2 * p.padding[i] > limit) return "a padded image of 2^31 rows or columns";
  }
  if (p.height * p.width >= (int64_t(1) << 30)) return "an image of 2^30 pixels";
  if (p.out_height * p.out_width >= (int64_t(1) << 30)) return "an output image of 2^30 pixels";
  if (p.groups * p.group_channels > limit) return "a pixel of 2^31 channels";
  if (p.offset_mask_channels > limit) return "a pixel of 2^31 offsets and masks";
  return nullptr;
}

// Whether every pixel of a tensor [batch, rows, columns, ...] starts at a multiple of so many
// bytes.
inline bool is_aligned(const void* data, const Pitches& pitches, int64_t batch, int64_t rows,
                       int64_t columns, int32_t element, int32_t bytes) {
  const auto fits = [=](int64_t size, int64_t pitch) {
    return size == 1 || pitch * element % bytes == 0;
  };
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && fits(batch, pitches.image) &&
         fits(rows, pitches.row) && fits(columns, pitches.pixel);
}

// Channels that a thread loads at once: as many as the tensors' alignment allows, at most 16 bytes.
inline int32_t vector_channels(const Params& p) {
  const int32_t element = element_bytes(p.dtype);
  int32_t bytes = kWidestLoad;
  const auto fits = [&] {
    return p.group_channels * element % bytes == 0 &&
           (!p.value ||
            is_aligned(p.value, p.value_pitches, p.batch, p.height, p.width, element, bytes)) &&
           (!p.grad_output || is_aligned(p.grad_output, p.grad_output_pitches, p.batch,
                                         p.out_height, p.out_width, element, bytes));
  };
  while (bytes > element && !fits()) bytes /= 2;
  return bytes / element;
}

// The points of the 3x3 kernel, for which there is code of its own, or 0 for any other.
inline int32_t special_points(const Params& p) {
  return p.kernel[0] == 3 && p.kernel[1] == 3 ? static_cast<int32_t>(p.points) : 0;
}

// What the code of the 3x3 kernels takes from a problem, in the types that it computes with. Of
// pairs the first is for rows. Distances in value are in halves of vectors of the full width, those
// in offset_mask in elements.
struct Window {
  float scale, size[2], dilation[2];
  int32_t stride[2], start[2];  // the centre of a window is at output * stride + start
  int32_t row_halves, pixel_halves;
  uint32_t result_vectors, offset_row, offset_pixel;
};

inline Window window_of(const Params& p) {
  const int32_t element = element_bytes(p.dtype);
  Window w{};
  w.scale = static_cast<float>(p.offset_scale);
  w.row_halves = static_cast<int32_t>(p.value_pitches.row * element / (kWidestLoad / 2));
  w.pixel_halves = static_cast<int32_t>(p.value_pitches.pixel * element / (kWidestLoad / 2));
  w.result_vectors = static_cast<uint32_t>(p.groups * p.group_channels * element / kWidestLoad);
  w.offset_row = static_cast<uint32_t>(p.offset_mask_pitches.row);
  w.offset_pixel = static_cast<uint32_t>(p.offset_mask_pitches.pixel);
  for (int i = 0; i < 2; ++i) {
    w.size[i] = static_cast<float>(i == 0 ? p.height : p.width);
    w.dilation[i] = static_cast<float>(p.dilation[i]);
    w.stride[i] = static_cast<int32_t>(p.stride[i]);
    w.start[i] = static_cast<int32_t>(p.dilation[i] - p.padding[i]);
  }
  return w;
}

// Whether a Window can hold a problem whose pixels are whole vectors apart: 32 bits, less two for
// flags, suffice for all vectors of an image, and float32 for all rows and columns.
inline bool has_window(const Params& p) {
  constexpr int64_t pitches = int64_t(1) << 32, vectors = int64_t(1) << 30, side = 1 << 24;
  const int32_t width = kWidestLoad / element_bytes(p.dtype);
  const int64_t last = (p.height - 1) * p.value_pitches.row + p.width * p.value_pitches.pixel;
  const int64_t output = p.out_height * p.out_width * p.groups * p.group_channels;
  return last / width < vectors && output / width < vectors && p.height <= side &&
         p.width <= side && p.offset_mask_pitches.row < pitches &&
         p.offset_mask_pitches.pixel < pitches;
}

// A sample in shared memory: four weights, and a word for its pixels.
inline int32_t sample_bytes(DType dtype) { return 4 * real_bytes(dtype) + 4; }

// Samples of neighbouring items are an odd number of samples apart: no bank conflicts.
DCNV4_MM_HOST_DEVICE int32_t sample_stride(int32_t points) { return points | 1; }

// The samples of an item of the 3x3 kernels: first the weights, then the pixels. An odd number of
// 16 bytes: no bank conflicts.
DCNV4_MM_HOST_DEVICE constexpr int32_t window_samples_bytes(int32_t points) {
  return (ceil_div(points * 20, 16) | 1) * 16;
}

// A block owns a tile of output pixels of one image, of some groups, and some vectors of channels
// of each of them. An item is one vector of one group of one pixel; each has a thread.
struct Tiling {
  int32_t threads;
  int32_t points;  // samples of each group and pixel in shared memory at a time
  int32_t shared_bytes;
  int64_t blocks;
  int32_t vectors;  // of a group
  // Sizes of the problem, in 32 bits.
  int32_t out_height, out_width, groups, group_channels;
  // Divisors by the sizes of a tile and by the numbers of tiles.
  Divisor tile_height, tile_width, tile_groups, tile_vectors;
  Divisor tiles_down, tiles_across, group_slices, vector_slices;
  Divisor tile_points, kernel_points, kernel_rows;
  Window window;
};

// How many groups a block takes: enough for a cache line per pixel, or up to twice that if they
// divide all groups better.
inline int64_t choose_groups(int64_t groups, int64_t group_bytes) {
  const int64_t enough = std::min<int64_t>(groups, ceil_div<int64_t>(128, group_bytes));
  int64_t best = enough;
  const auto covered = [groups](int64_t slice) { return ceil_div(groups, slice) * slice; };
  for (int64_t slice = enough; slice <= std::min(groups, 2 * enough); ++slice) {
    if (covered(slice) < covered(best)) best = slice;
  }
  return best;
}

constexpr int32_t kMostThreads = 256;

struct TileSize {
  int32_t height, width;
};

// The tile of output pixels that uses most threads, and reads few pixels that other tiles read too.
inline TileSize choose_tile(const Params& p, int32_t pixel_items, int32_t min_items,
                            int32_t max_pixels) {
  TileSize best{1, 1};
  double best_score = -1;
  const int32_t most = std::max(1, std::min(max_pixels, kMostThreads / pixel_items));
  for (int32_t height = 1; height <= std::min<int64_t>({16, most, p.out_height}); ++height) {
    for (int32_t width = 1; width <= std::min<int64_t>({32, most / height, p.out_width}); ++width) {
      const int32_t items = height * width * pixel_items;
      if (items < min_items && height * width < most) continue;
      const double tiles = double(ceil_div<int64_t>(p.out_height, height)) *
                           double(ceil_div<int64_t>(p.out_width, width));
      const double used = double(p.out_height) * double(p.out_width) * pixel_items /
                          (tiles * round_up(items, kWarp));
      const double halo = double((height + 3) * (width + 3)) / (height * width);
      const double score = used / (1 + 0.05 * halo);
      if (score > best_score) best = {height, width}, best_score = score;
    }
  }
  return best_score < 0 ? TileSize{0, 0} : best;
}

// What the kernels keep in shared memory.
enum class Shared {
  kSamples,  // of each item, so many samples at a time as fit
  kWindow,   // all samples of a 3x3 kernel
  kNothing,
};

// Vectors of a group that a block can have.
constexpr int32_t kMostVectors = 256;

// A thread has `vector` channels.
inline Tiling choose_tiling(const Params& p, int32_t vector, const DeviceLimits& limits,
                            Shared shared = Shared::kSamples) {
  const int64_t vectors = p.group_channels / vector;
  const int64_t vector_slices = ceil_div<int64_t>(vectors, kMostVectors);
  const int64_t slice_vectors = ceil_div(vectors, vector_slices);
  int64_t groups = 1;
  if (vector_slices == 1) {
    groups = choose_groups(p.groups, p.group_channels * element_bytes(p.dtype));
    groups = std::min<int64_t>(groups, kMostVectors / slice_vectors);
  }
  // Several blocks are to fit into a multiprocessor, and to leave room for the L1 cache.
  const int32_t budget = std::min(kSharedByDefault, limits.shared_per_multiprocessor / 5);
  const int32_t sample = sample_bytes(p.dtype);
  Tiling t{};
  t.points = static_cast<int32_t>(p.points);
  if (shared == Shared::kWindow) {
    groups = std::clamp<int64_t>(budget / window_samples_bytes(t.points), 1, groups);
  } else if (shared == Shared::kSamples) {
    const int64_t most_points = budget / sample / groups - 1;
    t.points = static_cast<int32_t>(std::clamp<int64_t>(most_points, 1, p.points));
  }
  const int32_t pixel_items = static_cast<int32_t>(groups * slice_vectors);
  const int32_t pair_bytes =
      shared == Shared::kWindow ? window_samples_bytes(t.points) : sample_stride(t.points) * sample;
  const int32_t pixel_bytes = static_cast<int32_t>(groups * pair_bytes);
  const int32_t max_pixels =
      shared == Shared::kNothing ? kMostThreads : std::max(1, budget / pixel_bytes);

  // Large blocks unless they leave multiprocessors idle; images smaller than these fill any tile.
  TileSize tile{0, 0};
  for (int32_t min_items : {192, 96, 32, 1}) {
    const TileSize candidate = choose_tile(p, pixel_items, min_items, max_pixels);
    if (candidate.height == 0) continue;
    tile = candidate;
    break;
  }
  const auto blocks_of = [&](const TileSize& size) {
    return ceil_div<int64_t>(p.out_height, size.height) *
           ceil_div<int64_t>(p.out_width, size.width) * ceil_div(p.groups, groups) * vector_slices *
           p.batch;
  };
  for (int32_t max_items : {192, 96}) {
    if (blocks_of(tile) >= 2 * limits.multiprocessors) break;
    const TileSize smaller = choose_tile(
        p, pixel_items, max_items / 2, std::min(max_pixels, std::max(1, max_items / pixel_items)));
    if (smaller.height != 0) tile = smaller;
  }

  const int32_t pixels = tile.height * tile.width;
  t.threads = round_up(pixels * pixel_items, kWarp);
  t.shared_bytes = shared == Shared::kNothing ? 0 : pixels * pixel_bytes;
  t.blocks = blocks_of(tile);
  t.vectors = static_cast<int32_t>(vectors);
  t.out_height = static_cast<int32_t>(p.out_height);
  t.out_width = static_cast<int32_t>(p.out_width);
  t.groups = static_cast<int32_t>(p.groups);
  t.group_channels = static_cast<int32_t>(p.group_channels);
  t.tile_height = divisor_of(tile.height);
  t.tile_width = divisor_of(tile.width);
  t.tile_groups = divisor_of(groups);
  t.tile_vectors = divisor_of(slice_vectors);
  t.tiles_down = divisor_of(ceil_div<int64_t>(p.out_height, tile.height));
  t.tiles_across = divisor_of(ceil_div<int64_t>(p.out_width, tile.width));
  t.group_slices = divisor_of(ceil_div(p.groups, groups));
  t.vector_slices = divisor_of(vector_slices);
  t.tile_points = divisor_of(t.points);
  t.kernel_points = divisor_of(p.points);
  t.kernel_rows = divisor_of(p.kernel[0]);
  t.window = window_of(p);
  return t;
}

// Points that a thread of the gradient of offset_mask takes at a time in code for so many points:
// they need the same gradient of the output.
DCNV4_MM_HOST_DEVICE constexpr int points_together(int special) {
  return special == 9 ? 3 : special == 8 ? 2 : 1;
}

// For the gradient of offset_mask: a thread takes whole points. No block takes only some of a
// group's channels, and none needs shared memory. Large blocks unless they leave multiprocessors
// idle.
template <int special>
Tiling choose_point_tiling(const Params& p, int32_t vector, const DeviceLimits& limits) {
  Tiling t = choose_tiling(p, vector, limits, Shared::kNothing);
  const int64_t slices = t.group_slices.value * p.batch;
  const int64_t pixel_items = t.tile_groups.value * p.points / points_together(special);
  for (int32_t threads : {128, 64, 32}) {
    const int32_t items = static_cast<int32_t>(std::min<int64_t>(pixel_items, threads));
    const TileSize tile = choose_tile(p, items, 1, threads / items);
    t.threads = static_cast<int32_t>(std::min<int64_t>(
        threads, round_up<int64_t>(tile.height * tile.width * pixel_items, kWarp)));
    t.tile_height = divisor_of(tile.height);
    t.tile_width = divisor_of(tile.width);
    t.tiles_down = divisor_of(ceil_div<int64_t>(p.out_height, tile.height));
    t.tiles_across = divisor_of(ceil_div<int64_t>(p.out_width, tile.width));
    t.blocks = int64_t(t.tiles_down.value) * t.tiles_across.value * slices;
    if (t.blocks >= 2 * limits.multiprocessors) break;
  }
  t.vector_slices = divisor_of(1);
  return t;
}

// How a thread adds the channels of a group that it spreads.
inline Spread choose_spread(const Params& p, bool fixed, const DeviceLimits& limits) {
  return choose_spread(p.group_channels, p.dtype, vector_channels(p), fixed, limits);
}

// For fixed-point sums: at most so many products are added to an element of the gradient of value.
inline int64_t most_products(const Params& p) { return p.out_height * p.out_width * p.points; }

inline Magnitudes magnitudes_of(const Params& p) {
  const auto numbers = [](const void* data, const Pitches& pitches, int64_t group, int64_t count) {
    return Magnitudes::Numbers{data,  pitches.image,     pitches.row, pitches.pixel,
                               group, divisor_of(count), false};
  };
  const char* masks =
      static_cast<const char*>(p.offset_mask) + 2 * p.points * element_bytes(p.dtype);
  return magnitudes_of(
      p.batch, p.out_height, p.out_width, p.groups,
      numbers(p.grad_output, p.grad_output_pitches, p.group_channels, p.group_channels),
      numbers(masks, p.offset_mask_pitches, 3 * p.points, p.points));
}

}  // namespace dcnv4_mm::dcnv4
