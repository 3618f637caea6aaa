// The bodies of the backward kernels on the GPU: one for the points, and one for value.
#pragma once

#include "bev_cross_attn/tile.h"
#include "flash_deform_attn/backward_body.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

using flash_deform_attn::ShareGrad;

// Writes the gradients of the offsets of a point, summed over the cameras that see it, and returns
// that of its weight.
template <typename Storage, int vector>
DCNV4_MM_DEVICE RealOf<Storage> backward_point(const Params& p, const Geometry& geometry,
                                               const Tiling& t, const Pair& pair, int32_t k,
                                               RealOf<Storage> weight) {
  using Real = RealOf<Storage>;
  PointGrad<Real> sum{};
  for (int32_t camera = 0; camera < p.cameras; ++camera) {
    if (!is_hit(p, pair, camera)) continue;
    const Origin origin = origin_of(geometry, t.level_points, k);
    const auto point =
        locate_point<Storage>(p, origin.level, origin.number, pair, camera, k, weight);
    if (!point.inside) continue;
    const auto corners = corners_of(place_of(origin.level, point),
                                    image_of<Storage>(p, pair, camera), pixel_bytes<Storage>(p));
    const auto grad = differentiate(
        point, corner_dots<Storage, vector>(corners, grad_output_of<Storage>(p, pair), t.vectors));
    sum.x += grad.x;
    sum.y += grad.y;
    sum.factor += grad.factor;
  }
  const int64_t offset = row_of(p, pair) * p.grad_location_pitch + 2 * k;
  write_number<Storage>(p, p.grad_locations, offset, sum.x);
  write_number<Storage>(p, p.grad_locations, offset + 1, sum.y);
  return sum.factor;
}

// The gradients of offsets and logits. A thread takes one point at a time, with all channels of its
// head in all cameras: no sum has more than one owner.
//
// A change of one logit changes the weights of all points, so its gradient needs a sum over all of
// them: weight * (grad - sum of share * grad), a share being a weight times the number of hits. If
// not all points of a pair fit into shared memory at a time, they are visited twice.
template <typename Storage, int vector, typename Team>
DCNV4_MM_DEVICE void backward_points_block(const Params& p, const Geometry& geometry,
                                           const Tiling& t, uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  ShareGrad<Real>* grads = static_cast<ShareGrad<Real>*>(team.shared());
  Share<Real>* shares = reinterpret_cast<Share<Real>*>(grads + t.pairs * t.points);
  Real* sums = reinterpret_cast<Real*>(shares + t.pairs * kShareParts);

  prepare_weights<Storage>(p, t.queries, tile, shares, team);
  const int32_t visits = t.points < points ? 2 : 1;
  for (int32_t visit = 1; visit <= visits; ++visit) {
    for (int32_t first = 0; first < points; first += t.points) {
      const int32_t count = smaller(t.points, points - first);
      team.phase([&](int32_t thread) {
        for (int32_t i = thread; i < tile.count * t.points; i += t.threads) {
          int32_t k = i;
          const int32_t index = divide_off(&k, t.tile_points);
          if (k >= count) continue;
          const Pair pair = pair_of(t.queries, tile, index);
          const Real weight = weight_of<Storage>(p, pair, shares[index * kShareParts], first + k);
          grads[i] = {weight,
                      backward_point<Storage, vector>(p, geometry, t, pair, first + k, weight)};
        }
      });
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
          const Pair pair = pair_of(t.queries, tile, index);
          const int32_t hits = count_hits(p, pair);
          Real sum = 0;
          for (int part = 0; part < kShareParts; ++part) sum += sums[index * kShareParts + part];
          // Logits that no camera asks for may be anything.
          const Real grad =
              hits > 0 ? grads[i].share * (grads[i].grad - Real(hits) * sum) : Real(0);
          write_number<Storage>(p, p.grad_weights,
                                row_of(p, pair) * p.grad_weight_pitch + first + k, grad);
        }
      });
    }
  }
}

// The gradient of value with atomic additions to `sums` [B, N, S, G, D], which are zero before. The
// forward's way back: each thread spreads one vector of the output's gradient.
template <typename Storage, int unit, int units, typename Accumulator, typename Team>
DCNV4_MM_DEVICE void backward_value_block(const Params& p, const Geometry& geometry,
                                          const Tiling& t, uint32_t block, const Accumulator& sums,
                                          Team& team) {
  using Real = RealOf<Storage>;
  constexpr int channels = unit * units;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  const int32_t pitch = static_cast<int32_t>(p.heads * p.channels);

  prepare_weights<Storage>(p, t.queries, tile, samples.shares, team);
  for (int32_t camera = 0; camera < p.cameras; ++camera) {
    if (!is_tile_hit(p, t.queries, tile, camera, team)) continue;
    for (int32_t first = 0; first < points; first += t.points) {
      team.phase([&](int32_t thread) {
        locate_own<Storage>(
            p, geometry, t, tile, camera, samples.shares, item_of<channels>(t, tile, thread), first,
            points, [&](int32_t slot, const Pair& pair, const Place& place, Point<Real> point) {
              point.factor = sums.scaled_weight(head_of(p, pair), point.factor);
              samples.places[slot] = place;
              samples.weights[slot] = adding_weights(point);
            });
      });
      team.phase([&](int32_t thread) {
        const Item item = item_of<channels>(t, tile, thread);
        if (!item.exists) return;
        const Pair pair = pair_of(t.queries, tile, item.pair_index);
        if (!is_hit(p, pair, camera)) return;
        const auto [channel, step] = units_in<unit, units>(t, tile, item);
        Real grad[channels];
        read_units<unit, units>(grad_output_of<Storage>(p, pair) + channel, step, grad);
        const bool finite = sums.template scale<channels>(head_of(p, pair), grad);
        auto* image = sums.data + (pair.image * p.cameras + camera) * p.pixels * pitch +
                      pair.head * p.channels + channel;
        spread_samples<unit, units>(samples, item.pair_index * sample_stride(t.points),
                                    smaller(t.points, points - first), sums, grad, finite, image,
                                    pitch, step);
      });
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
