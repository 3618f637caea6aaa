// Which part of a problem a block and its threads have, in kernels that divide it by a Tiling.
#pragma once

#include "dcnv4/points.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// The first output pixel, group and vector of a block.
struct Tile {
  int64_t image;
  int32_t row, column, group, vector;
};

DCNV4_MM_DEVICE Tile tile_of(const Tiling& t, uint32_t block) {
  // Tiles of one image and slice follow each other: those at work together share pixels.
  int32_t rest = static_cast<int32_t>(block);
  int32_t next = divide_off(&rest, t.tiles_across);
  Tile tile;
  tile.column = rest * t.tile_width.value;
  rest = divide_off(&next, t.tiles_down);
  tile.row = next * t.tile_height.value;
  next = divide_off(&rest, t.vector_slices);
  tile.vector = rest * t.tile_vectors.value;
  tile.image = divide_off(&next, t.group_slices);
  tile.group = next * t.tile_groups.value;
  return tile;
}

// One group of one output pixel of a tile. `exists` is false beyond the output or the last group.
struct Pair {
  int32_t row, column, group;
  bool exists;
};

DCNV4_MM_DEVICE Pair pair_of(const Tiling& t, const Tile& tile, int32_t index) {
  Pair pair;
  int32_t pixel = divide_off(&index, t.tile_groups);
  pair.group = tile.group + index;
  pair.row = tile.row + divide_off(&pixel, t.tile_width);
  pair.column = tile.column + pixel;
  pair.exists = pair.row < t.out_height && pair.column < t.out_width && pair.group < t.groups;
  return pair;
}

DCNV4_MM_DEVICE int32_t pair_count(const Tiling& t) {
  return t.tile_height.value * t.tile_width.value * t.tile_groups.value;
}

// The vector of a thread, in the pair with the given index in the tile.
struct Item {
  int32_t pair_index;
  Pair pair;
  int32_t channel;  // the vector's first
  bool exists;
};

template <int vector>
DCNV4_MM_DEVICE Item item_of(const Tiling& t, const Tile& tile, int32_t thread) {
  Item item;
  item.pair_index = divide_off(&thread, t.tile_vectors);
  item.pair = pair_of(t, tile, item.pair_index);
  const int32_t index = tile.vector + thread;
  item.channel = item.pair.group * t.group_channels + index * vector;
  item.exists = item.pair_index < pair_count(t) && item.pair.exists && index < t.vectors;
  return item;
}

template <typename Element>
DCNV4_MM_DEVICE Element* pixel_at(Element* tensor, const Pitches& pitches, int64_t image,
                                  int32_t row, int32_t column) {
  return tensor + image * pitches.image + row * pitches.row + column * pitches.pixel;
}

// Locates the points [first, first + count) of all pairs of a tile; `store(slot, pair, point)`
// keeps one.
template <int special, typename Storage, typename Store>
DCNV4_MM_DEVICE void locate_tile(const Params& p, const Tiling& t, const Tile& tile, int32_t thread,
                                 int32_t first, Store store) {
  const Storage* offset_mask = static_cast<const Storage*>(p.offset_mask);
  const int32_t points = point_count<special>(p);
  const int32_t step = special ? special : t.points;
  for (int32_t i = thread; i < pair_count(t) * step; i += t.threads) {
    const int32_t index = special ? i / special : divide(i, t.tile_points);
    const int32_t k = i - index * step;
    const Pair pair = pair_of(t, tile, index);
    if (!pair.exists || first + k >= points) continue;
    const Storage* source =
        pixel_at(offset_mask, p.offset_mask_pitches, tile.image, pair.row, pair.column) +
        static_cast<int64_t>(pair.group) * 3 * points;
    store(index * sample_stride(step) + k, pair,
          locate_point<special>(p, t.kernel_rows, source, pair.row, pair.column, first + k));
  }
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
