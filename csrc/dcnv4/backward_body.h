// The bodies of the backward kernels on the GPU: one for offset_mask, and two for value.
#pragma once

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

template <typename Storage>
struct Located {
  Point<RealOf<Storage>> point;
  Corners<const Storage> corners;  // of no meaning where the point does not count
};

// The point `k` of a pair, and its pixels in an image that starts at `image`.
template <int special, typename Storage>
DCNV4_MM_DEVICE Located<Storage> locate_for_gradient(const Params& p, const Tiling& t,
                                                     const Tile& tile, const Pair& pair, int32_t k,
                                                     const Storage* image) {
  if constexpr (special != 0) {
    const Point<float> point = window_point<special>(
        t.window, center_of(t.window, pair), numbers_of<special, Storage>(p, t, tile, pair), k);
    return {point, corners_at(image, place_of(t.window, point))};
  } else {
    const Storage* source = pixel_at(static_cast<const Storage*>(p.offset_mask),
                                     p.offset_mask_pitches, tile.image, pair.row, pair.column) +
                            pair.group * 3 * p.points;
    const auto point = locate_point<special>(p, t.kernel_rows, source, pair.row, pair.column, k);
    const int32_t row_pixels = static_cast<int32_t>(p.value_pitches.row / p.value_pitches.pixel);
    return {point, corners_of(place_of(point, row_pixels), image, p.value_pitches.pixel,
                              p.value_pitches.row)};
  }
}

// The gradient of offset_mask. A thread takes one point at a time, with all channels of its group:
// no sum has more than one owner.
template <typename Storage, int vector, int special, typename Team>
DCNV4_MM_DEVICE void backward_offset_mask_block(const Params& p, const Tiling& t, uint32_t block,
                                                Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(t, block);
  const int32_t points = point_count<special>(p);
  const Storage* value = image_of<Storage>(p, tile);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);

  last_phase(team, [&](int32_t thread) {
    for (int32_t i = thread; i < pair_count(t) * points; i += t.threads) {
      const int32_t index = special ? i / special : divide(i, t.kernel_points);
      const int32_t k = i - index * points;
      const Pair pair = pair_of(t, tile, index);
      if (!pair.exists) continue;
      const int32_t channel = pair.group * t.group_channels;
      const auto [point, corners] =
          locate_for_gradient<special>(p, t, tile, pair, k, value + channel);
      PointGrad<Real> grad{};
      if (point.inside) {
        const Storage* output =
            pixel_at(grad_output, p.grad_output_pitches, tile.image, pair.row, pair.column);
        const auto dots = corner_dots<Storage, vector>(corners, output + channel, t.vectors);
        grad = differentiate(point, dots);
        grad.x *= Real(p.offset_scale);
        grad.y *= Real(p.offset_scale);
      }
      Storage* result = result_row<Storage>(p, tile.image, pair.row, pair.column) +
                        static_cast<int64_t>(pair.group) * 3 * points;
      write(result + 2 * k, grad.x);
      write(result + 2 * k + 1, grad.y);
      write(result + 2 * points + k, grad.factor);
    }
    if (tile.group == 0) clear_padding<Storage>(p, t, tile, thread, t.threads);
  });
}

// The gradient of value with atomic additions to `sums` [N, H, W, G * D], which is zero before. The
// forward's way back: each thread spreads some channels of the output's gradient, as Spread says.
template <typename Storage, int unit, int units, typename Team>
DCNV4_MM_DEVICE void backward_value_atomic_block(const Params& p, const Tiling& t, uint32_t block,
                                                 RealOf<Storage>* sums, Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(t, block);
  const int32_t points = point_count<0>(p), channels = t.groups * t.group_channels;
  const Samples<Real> samples =
      samples_in<Real>(team.shared(), pair_count(t) * sample_stride(t.points));

  for (int32_t first = 0; first < points; first += t.points) {
    team.phase([&](int32_t thread) {
      locate_tile<0, Storage>(
          p, t, tile, thread, first, [&](int32_t slot, const Point<Real>& point) {
            samples.places[slot] = place_of(point, static_cast<int32_t>(p.width));
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
      Real* image = whole(sums + tile.image * p.height * p.width * channels + channel);
      const int32_t slot = item.pair_index * sample_stride(t.points);
      const int32_t count = smaller(t.points, points - first);
      for (int32_t k = 0; k < count; ++k) {
        const uint32_t place = samples.places[slot + k];
        if (place == kOutside) continue;
        const auto corners = corners_of(place, image, channels, p.width * channels);
        const Weights<Real> weights = samples.weights[slot + k];
        for (int c = 0; c < 4; ++c) {
          if ((c & 1 && !(place & 1)) || (c & 2 && !(place & 2))) continue;
          add_units<unit, units>(corners.corner[c], step, weights.corner[c], grad);
        }
      }
    });
  }
}

// The part of grad_value that a block owns.
struct Part {
  int64_t image;
  int32_t pixel;    // the first of the image's pixels, counted in sequence
  int32_t group;    // the first
  int32_t channel;  // the first of each group
  int32_t pixels;
};

DCNV4_MM_DEVICE Part part_of(const Params& p, const Ownership& o, uint32_t block) {
  int32_t rest = static_cast<int32_t>(block);
  int32_t next = divide_off(&rest, o.ranges);
  Part part;
  part.pixel = rest * o.pixels;
  part.pixels = smaller(o.pixels, static_cast<int32_t>(p.height * p.width) - part.pixel);
  rest = divide_off(&next, o.channel_slices);
  part.channel = next * o.channels.value;
  next = divide_off(&rest, o.group_slices);
  part.group = rest * o.groups.value;
  part.image = next;
  return part;
}

// A channel of a block's slice, counted over its groups. `exists` is false beyond the last one.
struct Channel {
  int32_t group;  // in the slice
  int64_t index;  // in the tensor
  bool exists;
};

DCNV4_MM_DEVICE Channel channel_of(const Params& p, const Ownership& o, const Part& part,
                                   int32_t in_slice) {
  Channel channel;
  channel.group = divide_off(&in_slice, o.channels);
  const int32_t in_group = part.channel + in_slice, group = part.group + channel.group;
  channel.index = group * p.group_channels + in_group;
  channel.exists = in_group < p.group_channels && group < p.groups;
  return channel;
}

// A number of pixels [begin, end) that a thread owns, counted from the first of its block.
struct Range {
  int32_t begin, end;
};

DCNV4_MM_DEVICE bool holds(const Range& range, int32_t pixel) {
  return pixel >= range.begin && pixel < range.end;
}

// Adds one sample to those of its pixels that a thread owns. `sums` is its channel in the block's
// first pixel; pixels are `width` numbers apart, and rows `row` pixels.
template <typename Real>
DCNV4_MM_DEVICE void add_owned(uint32_t place, int32_t first, const Weights<Real>& weights,
                               Real grad, const Range& range, int32_t row, int32_t width,
                               Real* sums) {
  const bool right = place & 1, down = place & 2;
  const int32_t pixels[4] = {first, first + 1, first + row, first + row + 1};
  const bool owned[4] = {holds(range, pixels[0]), right && holds(range, pixels[1]),
                         down && holds(range, pixels[2]), down && right && holds(range, pixels[3])};
  // The pixels differ: all can be loaded before one is stored.
  Real old[4];
  for (int c = 0; c < 4; ++c) old[c] = owned[c] ? sums[pixels[c] * width] : Real(0);
  for (int c = 0; c < 4; ++c) {
    if (owned[c]) sums[pixels[c] * width] = multiply_add(weights.corner[c], grad, old[c]);
  }
}

// The points that a block visits at a time: as many of each of its groups, in sequence over the
// output image, from point `k` of `pixel` on.
struct Turn {
  int32_t pixel, k;
};

// Locates the points of a turn; those without a pixel in the block's part do not count. Returns
// whether any of the thread's does.
template <typename Storage>
DCNV4_MM_DEVICE bool locate_turn(const Params& p, const Ownership& o, const Part& part,
                                 const Turn& turn, int32_t thread,
                                 const Samples<RealOf<Storage>>& samples) {
  constexpr int special = 0;
  const int32_t row = static_cast<int32_t>(p.width);
  const int32_t out_pixels = static_cast<int32_t>(p.out_height * p.out_width);
  const Storage* offset_mask = static_cast<const Storage*>(p.offset_mask);
  bool found = false;
  for (int32_t i = thread; i < static_cast<int32_t>(o.groups.value) * o.points; i += o.threads) {
    int32_t k = i;
    const int32_t in_slice = divide_off(&k, o.points_divisor), group = part.group + in_slice;
    const int32_t slot = in_slice * sample_stride(o.points) + k;
    k += turn.k;
    int32_t column = turn.pixel + divide_off(&k, o.kernel_points);
    samples.places[slot] = kOutside;
    if (column >= out_pixels || group >= p.groups) continue;
    const int32_t out_row = divide_off(&column, o.out_width);
    const Storage* source =
        pixel_at(offset_mask, p.offset_mask_pitches, part.image, out_row, column) +
        static_cast<int64_t>(group) * 3 * point_count<special>(p);
    const auto point = locate_point<special>(p, o.kernel_rows, source, out_row, column, k);
    const uint32_t place = place_of(point, row);
    if (place == kOutside) continue;
    const int32_t first = static_cast<int32_t>(place >> 2) - part.pixel;
    if (first >= part.pixels || first + (place & 2 ? row : 0) + 1 < 0) continue;
    samples.places[slot] = place;
    samples.weights[slot] = adding_weights(point);
    found = true;
  }
  return found;
}

// Reads the output's gradients that the points of a turn spread.
template <typename Storage>
DCNV4_MM_DEVICE void read_turn(const Params& p, const Ownership& o, const Part& part,
                               const Turn& turn, int32_t thread, RealOf<Storage>* grads) {
  const int32_t width = o.width.value;
  const int32_t out_pixels = static_cast<int32_t>(p.out_height * p.out_width);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);
  for (int32_t i = thread; i < o.points_pixels * width; i += o.threads) {
    int32_t in_slice = i;
    int32_t column = turn.pixel + divide_off(&in_slice, o.width);
    const Channel channel = channel_of(p, o, part, in_slice);
    if (column >= out_pixels || !channel.exists) continue;
    const int32_t out_row = divide_off(&column, o.out_width);
    grads[i] = read(pixel_at(grad_output, p.grad_output_pitches, part.image, out_row, column) +
                    channel.index);
  }
}

// Adds the samples of a turn, each thread to what it owns.
template <typename Real>
DCNV4_MM_DEVICE void add_turn(const Params& p, const Ownership& o, const Part& part,
                              const Turn& turn, int32_t thread, const Samples<Real>& samples,
                              const Real* grads, Real* sums) {
  int32_t in_slice = thread;
  const int32_t owner = divide_off(&in_slice, o.width);
  const Channel channel = channel_of(p, o, part, in_slice);
  if (owner >= o.owners || !channel.exists) return;
  const int32_t width = o.width.value, row = static_cast<int32_t>(p.width);
  const Range range{owner * o.owner_pixels, smaller(part.pixels, (owner + 1) * o.owner_pixels)};
  const Real* grad = grads + in_slice;
  int32_t k = turn.k;
  for (int32_t i = 0; i < o.points; ++i) {
    const int32_t slot = channel.group * sample_stride(o.points) + i;
    const uint32_t place = samples.places[slot];
    if (place != kOutside) {
      add_owned(place, static_cast<int32_t>(place >> 2) - part.pixel, samples.weights[slot], *grad,
                range, row, width, sums + in_slice);
    }
    if (++k == point_count<0>(p)) k = 0, grad += width;
  }
}

// Writes a block's sums to their places in grad_value.
template <typename Storage>
DCNV4_MM_DEVICE void write_part(const Params& p, const Ownership& o, const Part& part,
                                int32_t thread, const RealOf<Storage>* sums) {
  const int64_t first = part.image * p.height * p.width + part.pixel;
  Storage* grad_value = static_cast<Storage*>(p.grad_value);
  for (int32_t i = thread; i < part.pixels * static_cast<int32_t>(o.width.value); i += o.threads) {
    int32_t in_slice = i;
    const int64_t pixel = first + divide_off(&in_slice, o.width);
    const Channel channel = channel_of(p, o, part, in_slice);
    if (!channel.exists) continue;
    write(grad_value + pixel * p.groups * p.group_channels + channel.index, sums[i]);
  }
}

// The gradient of value where each sum has one owner, in its final type and place.
template <typename Storage, typename Team>
DCNV4_MM_DEVICE void backward_value_owned_block(const Params& p, const Ownership& o, uint32_t block,
                                                Team& team) {
  using Real = RealOf<Storage>;
  const Part part = part_of(p, o, block);
  const int32_t width = o.width.value;
  const Samples<Real> samples = samples_in<Real>(team.shared(), sample_slots(o));
  Real* grads = reinterpret_cast<Real*>(samples.places + sample_slots(o));
  Real* sums = grads + o.points_pixels * width;

  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < o.pixels * width; i += o.threads) sums[i] = 0;
  });
  Turn turn{0, 0};
  while (turn.pixel < p.out_height * p.out_width) {
    // Of whole images all points are looked at, so that the gradients can be read at once.
    const bool whole = o.ranges.value == 1;
    const bool found = team.any([&](int32_t thread) {
      if (whole) read_turn<Storage>(p, o, part, turn, thread, grads);
      return locate_turn<Storage>(p, o, part, turn, thread, samples);
    });
    if (found && !whole) {
      team.phase([&](int32_t thread) { read_turn<Storage>(p, o, part, turn, thread, grads); });
    }
    if (found) {
      team.phase([&](int32_t thread) { add_turn(p, o, part, turn, thread, samples, grads, sums); });
    }
    turn.k += o.points;
    turn.pixel += divide_off(&turn.k, o.kernel_points);
  }
  team.phase([&](int32_t thread) { write_part<Storage>(p, o, part, thread, sums); });
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
