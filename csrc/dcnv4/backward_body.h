// The bodies of the backward kernels on the GPU: one for offset_mask, and one for value.
#pragma once

#include "common/sums.h"
#include "dcnv4/window.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// Address of a row of grad_offset_mask.
template <typename Storage>
DCNV4_MM_DEVICE Storage* result_row(const Params& p, int64_t image, int32_t row, int32_t column) {
  const int64_t pixel = (image * p.out_height + row) * p.out_width + column;
  return static_cast<Storage*>(p.grad_offset_mask) + pixel * p.offset_mask_channels;
}

// Clears what follows after the groups in the rows of a tile.
template <typename Storage>
DCNV4_MM_DEVICE void clear_padding(const Params& p, const Tiling& t, const Tile& tile,
                                   int32_t thread, int32_t threads) {
  const int32_t used = t.groups * 3 * static_cast<int32_t>(p.points);
  if (used == p.offset_mask_channels) return;
  const int32_t pixels = t.tile_height.value * t.tile_width.value;
  for (int32_t pixel = thread; pixel < pixels; pixel += threads) {
    int32_t column = pixel;
    const int32_t row = tile.row + divide_off(&column, t.tile_width);
    column += tile.column;
    if (row >= t.out_height || column >= t.out_width) continue;
    Storage* result = result_row<Storage>(p, tile.image, row, column);
    for (int32_t i = used; i < p.offset_mask_channels; ++i) write(result + i, RealOf<Storage>(0));
  }
}

// Points and the dot products of their pixels and the gradient of the output.
template <typename Real, int count>
struct DottedPoints {
  Point<Real> points[count];
  Weights<Real> dots[count];
};

// For `count` points of a pair from `k` on.
template <typename Storage, int vector, int special, int count>
DCNV4_MM_DEVICE DottedPoints<RealOf<Storage>, count> dot_points(const Params& p, const Tiling& t,
                                                                const Tile& tile, const Pair& pair,
                                                                int32_t k, const Storage* image,
                                                                const Storage* grad_output) {
  DottedPoints<RealOf<Storage>, count> result{};
  if constexpr (special != 0) {
    const Center center = center_of(t.window, pair);
    const Storage* numbers = numbers_of<special, Storage>(p, t, tile, pair);
    PixelOffsets pixels[count];
    for (int i = 0; i < count; ++i) {
      result.points[i] = window_point<special>(t.window, center, numbers, k + i);
      pixels[i] = pixels_of(t.window, result.points[i]);
    }
    for (int32_t v = 0; v < t.vectors; ++v) {
      float grad[vector];
      read<vector>(grad_output + v * vector, grad);
      for (int i = 0; i < count; ++i) {
        if (!result.points[i].inside) continue;
        const auto dots = vector_dots<Storage>(corners_at(image + v * vector, pixels[i]), grad);
        for (int c = 0; c < 4; ++c) result.dots[i].corner[c] += dots.corner[c];
      }
    }
  } else {
    const Storage* source = pixel_at(static_cast<const Storage*>(p.offset_mask),
                                     p.offset_mask_pitches, tile.image, pair.row, pair.column) +
                            pair.group * 3 * p.points;
    const auto point = locate_point<special>(p, t.kernel_rows, source, pair.row, pair.column, k);
    result.points[0] = point;
    if (!point.inside) return result;
    const int32_t row_pixels = static_cast<int32_t>(p.value_pitches.row / p.value_pitches.pixel);
    const auto corners =
        corners_of(pixels_of(point, row_pixels), image, p.value_pitches.pixel, p.value_pitches.row);
    result.dots[0] = corner_dots<Storage, vector>(corners, grad_output, t.vectors);
  }
  return result;
}

// The gradient of offset_mask. A thread takes some points of a group at a time, with all channels:
// no sum has more than one owner.
template <typename Storage, int vector, int special, typename Team>
DCNV4_MM_DEVICE void backward_offset_mask_block(const Params& p, const Tiling& t, uint32_t block,
                                                Team& team) {
  using Real = RealOf<Storage>;
  constexpr int count = points_together(special);
  const Tile tile = tile_of(t, block);
  const int32_t points = point_count<special>(p), parts = points / count;
  const Storage* value = image_of<Storage>(p, tile);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);

  own_phase(team, [&](int32_t thread) {
    for (int32_t i = thread; i < pair_count(t) * parts; i += t.threads) {
      const int32_t index = special ? i / parts : divide(i, t.kernel_points);
      const int32_t k = (i - index * parts) * count;
      const Pair pair = pair_of(t, tile, index);
      if (!pair.exists) continue;
      const int32_t channel = pair.group * t.group_channels;
      const Storage* output =
          pixel_at(grad_output, p.grad_output_pitches, tile.image, pair.row, pair.column) + channel;
      const auto dotted =
          dot_points<Storage, vector, special, count>(p, t, tile, pair, k, value + channel, output);
      Storage* result = result_row<Storage>(p, tile.image, pair.row, pair.column) +
                        static_cast<int64_t>(pair.group) * 3 * points;
      for (int n = 0; n < count; ++n) {
        PointGrad<Real> grad{};
        if (dotted.points[n].inside) grad = differentiate(dotted.points[n], dotted.dots[n]);
        write(result + 2 * (k + n), grad.x * Real(p.offset_scale));
        write(result + 2 * (k + n) + 1, grad.y * Real(p.offset_scale));
        write(result + 2 * points + k + n, grad.factor);
      }
    }
    if (tile.group == 0) clear_padding<Storage>(p, t, tile, thread, t.threads);
  });
}

// The gradient of value with atomic additions to `sums` [N, H, W, G * D], which are zero before.
// The forward's way back: each thread spreads some channels of the output's gradient, as Spread
// says.
template <typename Storage, int unit, int units, typename Accumulator, typename Team>
DCNV4_MM_DEVICE void backward_value_block(const Params& p, const Tiling& t, uint32_t block,
                                          const Accumulator& sums, Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(t, block);
  const int32_t points = point_count<0>(p), channels = t.groups * t.group_channels;
  const Samples<Real> samples =
      samples_in<Real>(team.shared(), pair_count(t) * sample_stride(t.points));

  for (int32_t first = 0; first < points; first += t.points) {
    team.phase([&](int32_t thread) {
      locate_tile<0, Storage>(
          p, t, tile, thread, first, [&](int32_t slot, const Pair& pair, Point<Real> point) {
            point.factor = sums.scaled_weight(tile.image * t.groups + pair.group, point.factor);
            samples.pixels[slot] = pixels_of(point, static_cast<int32_t>(p.width));
            samples.weights[slot] = adding_weights(point);
          });
    });
    team.phase([&](int32_t thread) {
      const Item item = item_of<unit * units>(t, tile, thread);
      if (!item.exists) return;
      // The units of neighbouring threads are adjacent.
      const int32_t lane = thread - item.pair_index * t.tile_vectors.value;
      const int32_t lanes = smaller(t.tile_vectors.value, t.vectors - tile.vector);
      const auto [channel, step] = units_of<unit, units>(item.channel, lane, lanes);
      Real grad[unit * units];
      read_units<unit, units>(
          pixel_at(static_cast<const Storage*>(p.grad_output), p.grad_output_pitches, tile.image,
                   item.pair.row, item.pair.column) +
              channel,
          step, grad);
      const bool finite =
          sums.template scale<unit * units>(tile.image * t.groups + item.pair.group, grad);
      auto* image = whole(sums.data + tile.image * p.height * p.width * channels + channel);
      const int32_t slot = item.pair_index * sample_stride(t.points);
      const int32_t count = smaller(t.points, points - first);
      for (int32_t k = 0; k < count; ++k) {
        const uint32_t pixels = samples.pixels[slot + k];
        if (pixels == kOutside) continue;
        const auto corners = corners_of(pixels, image, channels, p.width * channels);
        const Weights<Real> weights = samples.weights[slot + k];
        for (int c = 0; c < 4; ++c) {
          if ((c & 1 && !(pixels & 1)) || (c & 2 && !(pixels & 2))) continue;
          sums.template add<unit, units>(corners.corner[c], step, weights.corner[c], grad, finite);
        }
      }
    });
  }
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
