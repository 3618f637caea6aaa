// The bodies of the backward kernels on the GPU: one for the points, and one for value.
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

// The gradient of value with atomic additions to `sums` [N, S, G, D], which are zero before. The
// forward's way back: each thread spreads one vector of the output's gradient.
template <typename Storage, int unit, int units, typename Accumulator, typename Team>
DCNV4_MM_DEVICE void backward_value_block(const Params& p, const LevelTable& levels,
                                          const Tiling& t, uint32_t block, const Accumulator& sums,
                                          Team& team) {
  using Real = RealOf<Storage>;
  constexpr int channels = unit * units;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  const int32_t pitch = static_cast<int32_t>(p.heads * p.channels);

  sum_exponentials<Storage>(p, t.queries, tile, samples.shares, team);
  for (int32_t first = 0; first < points; first += t.points) {
    team.phase([&](int32_t thread) {
      locate_own<Storage>(
          p, levels, t, tile, samples.shares, item_of<channels>(t, tile, thread), first, points,
          [&](int32_t slot, const Pair& pair, const Place& place, Point<Real> point) {
            point.factor = sums.scaled_weight(head_of(p, pair), point.factor);
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
      const bool finite = sums.template scale<channels>(head_of(p, pair), grad);
      auto* image = sums.data + pair.image * p.pixels * pitch + pair.head * p.channels + channel;
      spread_samples<unit, units>(samples, item.pair_index * sample_stride(t.points),
                                  smaller(t.points, points - first), sums, grad, finite, image,
                                  pitch, step);
    });
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
