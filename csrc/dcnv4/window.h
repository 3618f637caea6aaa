// Locating the points of 3x3 kernels on the GPU, for tensors that a Window can hold: sizes are
// float32, and distances in an image 32-bit numbers.
#pragma once

#include "dcnv4/tile.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// The centre of the window of an output pixel.
struct Center {
  float y, x;
};

DCNV4_MM_DEVICE Center center_of(const Window& w, const Pair& pair) {
  return {static_cast<float>(pair.row * w.stride[0] + w.start[0]),
          static_cast<float>(pair.column * w.stride[1] + w.start[1])};
}

// The position of a column or row of the kernel, -1 to 1, from the centre: with `offset`, rounded
// as in the reference.
DCNV4_MM_DEVICE float shifted(int32_t step, float dilation, float offset) {
  return step == 0 ? offset : (step < 0 ? -dilation : dilation) + offset;
}

// The point `k` of a group, whose part of offset_mask is at `source`.
template <int points, typename Storage>
DCNV4_MM_DEVICE Point<float> window_point(const Window& w, const Center& center,
                                          const Storage* source, int32_t k) {
  // The points run over columns first, then rows; of 8, the one in the middle is left out.
  const int32_t index = points == 8 && k >= 4 ? k + 1 : k;
  const int32_t column = index / 3, row = index - 3 * column;
  const float offset_x = read(source + 2 * k), offset_y = read(source + 2 * k + 1);
  const float mask = read(source + 2 * points + k);
  const float x = center.x + shifted(column - 1, w.dilation[1], offset_x) * w.scale;
  const float y = center.y + shifted(row - 1, w.dilation[0], offset_y) * w.scale;
  return point_at(y, x, w.size[0], w.size[1], mask);
}

// Where the pixels of a point are, in halves of vectors from the first pixel of the image.
struct PixelOffsets {
  int32_t first, right, down;
};

DCNV4_MM_DEVICE PixelOffsets pixels_of(const Window& w, const Point<float>& point) {
  return {point.y.first * w.row_halves + point.x.first * w.pixel_halves,
          point.x.step ? w.pixel_halves : 0, point.y.step ? w.row_halves : 0};
}

// PixelOffsets in one word, whose first and last bit are free for the steps, with kOutside for
// points that do not count.
DCNV4_MM_DEVICE uint32_t word_of(const Window& w, const Point<float>& point) {
  return static_cast<uint32_t>(pixels_of(w, point).first) |
         static_cast<uint32_t>(point.y.step) << 31 | static_cast<uint32_t>(point.x.step);
}

DCNV4_MM_DEVICE PixelOffsets pixels_in(const Window& w, uint32_t word) {
  const int32_t right = word & 1, down = word >> 31;
  return {static_cast<int32_t>(word & 0x7ffffffe), right * w.pixel_halves, down * w.row_halves};
}

// `origin` is a thread's vector in the first pixel.
template <typename Storage>
DCNV4_MM_DEVICE Corners<const Storage> corners_at(const Storage* origin, const PixelOffsets& at,
                                                  int32_t shift = 0) {
  const auto pixel = [&](int32_t halves) {
    return reinterpret_cast<const Storage*>(reinterpret_cast<const char*>(origin) +
                                            static_cast<int64_t>(halves) * (kWidestLoad / 2));
  };
  const int32_t first = at.first + 2 * shift, below = first + at.down;
  return {pixel(first), pixel(first + at.right), pixel(below), pixel(below + at.right)};
}

template <typename Storage>
DCNV4_MM_DEVICE const Storage* image_of(const Params& p, const Tile& tile) {
  return static_cast<const Storage*>(p.value) + tile.image * p.value_pitches.image;
}

// The numbers of a pair in offset_mask.
template <int points, typename Storage>
DCNV4_MM_DEVICE const Storage* numbers_of(const Params& p, const Tiling& t, const Tile& tile,
                                          const Pair& pair) {
  return static_cast<const Storage*>(p.offset_mask) + tile.image * p.offset_mask_pitches.image +
         static_cast<uint64_t>(static_cast<uint32_t>(pair.row)) * t.window.offset_row +
         static_cast<uint64_t>(static_cast<uint32_t>(pair.column)) * t.window.offset_pixel +
         static_cast<uint32_t>(pair.group * 3 * points);
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
