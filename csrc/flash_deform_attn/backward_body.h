// The bodies of the backward kernels on the GPU: one for the points, and two for value.
#pragma once

#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// Writes the gradients of the locations of a point, and returns that of its weight.
template <typename Storage, int vector>
DCNV4_MM_DEVICE RealOf<Storage> backward_point(const Params& p, const LevelTable::Entry& level,
                                               const Tiling& t, const Pair& pair, int32_t k,
                                               const Point<RealOf<Storage>>& point) {
  using Real = RealOf<Storage>;
  PointGrad<Real> grad{};
  if (point.inside) {
    const auto corners =
        corners_of(place_of(level, point), image_of<Storage>(p, pair), pixel_bytes<Storage>(p));
    grad = differentiate(
        point, corner_dots<Storage, vector>(corners, grad_output_of<Storage>(p, pair), t.vectors));
    grad.x *= Real(level.width);
    grad.y *= Real(level.height);
  }
  const int64_t location = row_of(p, pair) * p.grad_location_pitch + 2 * k;
  write_number<Storage>(p, p.grad_locations, location, grad.x);
  write_number<Storage>(p, p.grad_locations, location + 1, grad.y);
  return grad.factor;
}

// What the gradient of a softmax needs of a point, in shared memory.
template <typename Real>
struct ShareGrad {
  Real share, grad;
};

// The gradients of locations and weights. A thread takes one point at a time, with all channels of
// its head: no sum has more than one owner.
//
// A change of one logit changes the shares of all points, so its gradient needs a sum over all of
// them: share * (grad - sum of share * grad). If not all of a pair fit into shared memory at a
// time, they are visited twice.
template <typename Storage, int vector, typename Team>
DCNV4_MM_DEVICE void backward_points_block(const Params& p, const LevelTable& levels,
                                           const Tiling& t, uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  ShareGrad<Real>* grads = static_cast<ShareGrad<Real>*>(team.shared());
  Share<Real>* shares = reinterpret_cast<Share<Real>*>(grads + t.pairs * t.points);
  Real* sums = reinterpret_cast<Real*>(shares + t.pairs * kShareParts);

  sum_exponentials<Storage>(p, t.queries, tile, shares, team);
  const int32_t visits = p.softmax && t.points < points ? 2 : 1;
  for (int32_t visit = 1; visit <= visits; ++visit) {
    for (int32_t first = 0; first < points; first += t.points) {
      const int32_t count = smaller(t.points, points - first);
      team.phase([&](int32_t thread) {
        for (int32_t i = thread; i < tile.count * t.points; i += t.threads) {
          int32_t k = i;
          const int32_t index = divide_off(&k, t.tile_points);
          if (k >= count) continue;
          const Pair pair = pair_of(t.queries, tile, index);
          const LevelTable::Entry& level = levels.entries[divide(first + k, t.level_points)];
          const auto point =
              locate_point<Storage>(p, level, pair, shares + index * kShareParts, first + k);
          const Real grad = backward_point<Storage, vector>(p, level, t, pair, first + k, point);
          if (p.softmax) {
            grads[i] = {point.factor, grad};
          } else {
            const int64_t row = row_of(p, pair) * p.grad_weight_pitch;
            write_number<Storage>(p, p.grad_weights, row + first + k, grad);
          }
        }
      });
      if (!p.softmax) continue;
      if (visit == 1) {
        team.phase([&](int32_t thread) {
          for (int32_t i = thread; i < tile.count * kShareParts; i += t.threads) {
            const ShareGrad<Real>* of_pair = grads + i / kShareParts * t.points;
            Real sum = first == 0 ? Real(0) : sums[i];
            // The same part of the points whatever fits into shared memory.
            const int32_t skip =
                (i % kShareParts + kShareParts - first % kShareParts) % kShareParts;
            for (int32_t k = skip; k < count; k += kShareParts) {
              sum += of_pair[k].share * of_pair[k].grad;
            }
            sums[i] = sum;
          }
        });
      }
      if (visit < visits) continue;
      team.phase([&](int32_t thread) {
        for (int32_t i = thread; i < tile.count * t.points; i += t.threads) {
          int32_t k = i;
          const int32_t index = divide_off(&k, t.tile_points);
          if (k >= count) continue;
          Real sum = 0;
          for (int part = 0; part < kShareParts; ++part) sum += sums[index * kShareParts + part];
          const int64_t row = row_of(p, pair_of(t.queries, tile, index)) * p.grad_weight_pitch;
          write_number<Storage>(p, p.grad_weights, row + first + k,
                                grads[i].share * (grads[i].grad - sum));
        }
      });
    }
  }
}

// The gradient of value with atomic additions to `sums` [N, S, G, D], which is zero before. The
// forward's way back: each thread spreads one vector of the output's gradient.
template <typename Storage, int unit, int units, typename Team>
DCNV4_MM_DEVICE void backward_value_atomic_block(const Params& p, const LevelTable& levels,
                                                 const Tiling& t, uint32_t block,
                                                 RealOf<Storage>* sums, Team& team) {
  using Real = RealOf<Storage>;
  constexpr int channels = unit * units;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  const int32_t pitch = static_cast<int32_t>(p.heads * p.channels);

  sum_exponentials<Storage>(p, t.queries, tile, samples.shares, team);
  for (int32_t first = 0; first < points; first += t.points) {
    team.phase([&](int32_t thread) {
      locate_own<Storage>(p, levels, t, tile, samples.shares, item_of<channels>(t, tile, thread),
                          first, points,
                          [&](int32_t slot, const Place& place, const Point<Real>& point) {
                            samples.places[slot] = place;
                            samples.weights[slot] = adding_weights(point);
                          });
    });
    team.phase([&](int32_t thread) {
      const Item item = item_of<channels>(t, tile, thread);
      if (!item.exists) return;
      const Pair pair = pair_of(t.queries, tile, item.pair_index);
      const auto [channel, step] = units_in<unit, units>(t, tile, item);
      Real grad[channels];
      read_units<unit, units>(grad_output_of<Storage>(p, pair) + channel, step, grad);
      Real* image = sums + pair.image * p.pixels * pitch + pair.head * p.channels + channel;
      spread_samples<unit, units>(samples, item.pair_index * sample_stride(t.points),
                                  smaller(t.points, points - first), grad, image,
                                  pitch * sizeof(Real), step);
    });
  }
}

// The part of grad_value that a block owns.
struct Part {
  int64_t image;
  int32_t head;
  int32_t channel, channels;  // of the head
  int32_t pixel, pixels;      // of the image
};

DCNV4_MM_DEVICE Part part_of(const Params& p, const Ownership& o, uint32_t block) {
  int32_t rest = static_cast<int32_t>(block);
  int32_t next = divide_off(&rest, o.ranges);
  Part part;
  part.pixel = rest * o.pixels;
  part.pixels = smaller(o.pixels, static_cast<int32_t>(p.pixels) - part.pixel);
  rest = divide_off(&next, o.channel_slices);
  part.channel = next * o.width.value;
  part.channels = smaller(o.width.value, static_cast<int32_t>(p.channels) - part.channel);
  next = divide_off(&rest, o.heads);
  part.head = rest;
  part.image = next;
  return part;
}

// A number of pixels [begin, end) that a thread owns, counted from the first of its block.
struct Range {
  int32_t begin, end;
};

DCNV4_MM_DEVICE bool holds(const Range& range, int32_t pixel) {
  return pixel >= range.begin && pixel < range.end;
}

// The points of a pair that can touch a block's pixels: those of the levels that these are of.
DCNV4_MM_DEVICE Range points_near(const Params& p, const LevelTable& levels, const Part& part) {
  const int32_t count = static_cast<int32_t>(p.num_levels);
  const int32_t per_level = static_cast<int32_t>(p.num_points);
  Range range{0, count * per_level};
  for (int32_t i = 1; i < count; ++i) {
    if (levels.entries[i].start <= part.pixel) range.begin = i * per_level;
  }
  for (int32_t i = count - 1; i > 0; --i) {
    if (levels.entries[i].start >= part.pixel + part.pixels) range.end = i * per_level;
  }
  return range;
}

// Whether one of the four pixels of a place is among those of a block.
DCNV4_MM_DEVICE bool touches(const Part& part, const Place& place) {
  const int32_t first = static_cast<int32_t>(place.pixel >> 1) - part.pixel;
  const int32_t last = first + place.down + static_cast<int32_t>(place.pixel & 1);
  return last >= 0 && first < part.pixels;
}

// Adds one sample to those of its pixels that a thread owns. `sums` is its channel in the block's
// first pixel; pixels are `width` numbers apart.
template <typename Real>
DCNV4_MM_DEVICE void add_owned(const Place& place, int32_t first, const Weights<Real>& weights,
                               Real grad, const Range& range, int32_t width, Real* sums) {
  const bool right = place.pixel & 1, down = place.down;
  const int32_t below = first + place.down;
  const int32_t pixels[4] = {first, first + 1, below, below + 1};
  const bool owned[4] = {holds(range, pixels[0]), right && holds(range, pixels[1]),
                         down && holds(range, pixels[2]), down && right && holds(range, pixels[3])};
  // The pixels differ: all can be loaded before one is stored.
  Real old[4];
  for (int c = 0; c < 4; ++c) old[c] = owned[c] ? sums[pixels[c] * width] : Real(0);
  for (int c = 0; c < 4; ++c) {
    if (owned[c]) sums[pixels[c] * width] = multiply_add(weights.corner[c], grad, old[c]);
  }
}

// The gradient of value where each sum has one owner, in its final type and place.
template <typename Storage, typename Team>
DCNV4_MM_DEVICE void backward_value_owned_block(const Params& p, const LevelTable& levels,
                                                const Ownership& o, uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  const Part part = part_of(p, o, block);
  const Range near = points_near(p, levels, part);
  const int32_t width = o.width.value, queries = static_cast<int32_t>(p.queries);
  const Samples<Real> samples = samples_in<Real>(team.shared(), o.pairs, o.points);
  Real* grads = reinterpret_cast<Real*>(samples.shares + (p.softmax ? o.pairs * kShareParts : 0));
  Real* sums = grads + o.pairs * width;

  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < o.pixels * width; i += o.threads) sums[i] = 0;
  });

  // All pairs of the head in the image, in sequence.
  for (int32_t query = 0; query < queries; query += o.pairs) {
    const Tile tile{part.image, part.head * queries + query, smaller(o.pairs, queries - query), 0};
    sum_exponentials<Storage>(p, o.queries, tile, samples.shares, team);
    for (int32_t first = near.begin; first < near.end; first += o.points) {
      const bool found = team.any([&](int32_t thread) {
        bool touching = false;
        locate_tile<Storage>(p, levels, o, tile, samples.shares, thread, first, near.end,
                             [&](int32_t slot, Place place, const Point<Real>& point) {
                               if (point.inside && touches(part, place)) {
                                 samples.weights[slot] = adding_weights(point);
                                 touching = true;
                               } else {
                                 place.pixel = kOutside;
                               }
                               samples.places[slot] = place;
                             });
        for (int32_t i = thread; i < tile.count * width; i += o.threads) {
          int32_t channel = i;
          const Pair pair = pair_of(o.queries, tile, divide_off(&channel, o.width));
          if (channel >= part.channels) continue;
          grads[i] = read(grad_output_of<Storage>(p, pair) + part.channel + channel);
        }
        return touching;
      });
      if (!found) continue;
      team.phase([&](int32_t thread) {
        int32_t channel = thread;
        const int32_t owner = divide_off(&channel, o.width);
        if (owner >= o.owners || channel >= part.channels) return;
        const Range range{owner * o.owner_pixels,
                          smaller(part.pixels, (owner + 1) * o.owner_pixels)};
        const int32_t count = smaller(o.points, near.end - first);
        for (int32_t index = 0; index < tile.count; ++index) {
          const Real grad = grads[index * width + channel];
          for (int32_t k = 0; k < count; ++k) {
            const int32_t slot = index * sample_stride(o.points) + k;
            const Place place = samples.places[slot];
            if (place.pixel == kOutside) continue;
            add_owned(place, static_cast<int32_t>(place.pixel >> 1) - part.pixel,
                      samples.weights[slot], grad, range, width, sums + channel);
          }
        }
      });
    }
  }

  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < part.pixels * width; i += o.threads) {
      int32_t channel = i;
      const int64_t pixel = part.pixel + divide_off(&channel, o.width);
      if (channel >= part.channels) continue;
      const int64_t row = (part.image * p.pixels + pixel) * p.heads + part.head;
      write(static_cast<Storage*>(p.grad_value) + row * p.channels + part.channel + channel,
            sums[i]);
    }
  });
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
