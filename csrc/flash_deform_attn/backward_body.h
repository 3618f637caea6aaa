// The bodies of the backward kernels of the attention operators on the GPU: one for the points, and
// one for value.
#pragma once

#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// Writes the gradients of the location of a point, summed over the cameras that see it, and returns
// that of its weight.
template <typename Storage, int vector, typename Sampling>
DCNV4_MM_DEVICE RealOf<Storage> backward_point(const Sampling& s, const Tiling& t, const Pair& pair,
                                               int32_t k, RealOf<Storage> x, RealOf<Storage> y,
                                               RealOf<Storage> weight) {
  using Real = RealOf<Storage>;
  PointGrad<Real> sum{};
  const LevelPoint at = s.point(t, k);
  for (int32_t camera = 0; camera < s.cameras(); ++camera) {
    if (!s.sees(pair, camera)) continue;
    const auto origins = s.template origins<Real>(pair, camera);
    const auto point = point_at(at.level, s.coordinates(at, origins, x, y), weight);
    if (!point.inside) continue;
    const Offsets offsets = reading_offsets(at.level, point, pixel_vectors<vector>(s.p));
    const auto corners = corners_at<vector>(whole(image_of<Storage>(s, pair, camera)), offsets);
    const auto grad = differentiate(
        point,
        corner_dots<Storage, vector>(corners, grad_output_of<Storage>(s.p, pair), t.vectors));
    sum.x += grad.x;
    sum.y += grad.y;
    sum.factor += grad.factor;
  }
  if constexpr (Sampling::kNormalized) {
    sum.x *= Real(at.level.width);
    sum.y *= Real(at.level.height);
  }
  const int64_t offset = index_of(s.p, pair) * s.p.grad_location_pitch + 2 * k;
  write_number<Storage>(s.p, s.p.grad_locations, offset, sum.x);
  write_number<Storage>(s.p, s.p.grad_locations, offset + 1, sum.y);
  return sum.factor;
}

// The weight of a point and its gradient, in shared memory for the gradient of a softmax.
template <typename Real>
struct WeightGrad {
  Real weight, grad;
};

template <typename Storage, int vector, typename Sampling>
DCNV4_MM_DEVICE WeightGrad<RealOf<Storage>> backward_weight(
    const Sampling& s, const Tiling& t, const Pair& pair, int32_t k,
    const Softmax<RealOf<Storage>>* softmax) {
  using Real = RealOf<Storage>;
  Real x, y, weight;
  with_point_type<Storage>(s.p, [&](auto number) {
    const auto* location = locations_of<decltype(number)>(s.p, pair) + 2 * k;
    x = read(location), y = read(location + 1);
    weight = read(weights_of<decltype(number)>(s.p, pair) + k);
  });
  if (s.p.softmax) weight = softmax_weight<Storage>(*softmax, weight);
  return {weight, backward_point<Storage, vector>(s, t, pair, k, x, y, weight)};
}

// The gradients of locations and weights. A thread takes one point at a time, with all channels of
// its head in all cameras: no sum has more than one owner.
//
// A change of one logit changes the weights of all points, so its gradient needs a sum over all of
// them: weight * (grad - sum of weight * grad), if weights are not divided by a count. If not all
// points of a pair fit into shared memory at a time, they are visited twice.
template <typename Storage, int vector, typename Sampling, typename Team>
DCNV4_MM_DEVICE void backward_points_block(const Sampling& s, const Tiling& t, uint32_t block,
                                           Team& team) {
  using Real = RealOf<Storage>;
  const auto& p = s.p;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  WeightGrad<Real>* grads = static_cast<WeightGrad<Real>*>(team.shared());
  Softmax<Real>* softmax = reinterpret_cast<Softmax<Real>*>(grads + t.pairs * t.points);
  Real* sums = reinterpret_cast<Real*>(softmax + t.pairs * kSoftmaxParts);

  prepare_softmax<Storage>(s, t, tile, softmax, team);
  const int32_t visits = p.softmax && t.points < points ? 2 : 1;
  for (int32_t visit = 1; visit <= visits; ++visit) {
    for (int32_t first = 0; first < points; first += t.points) {
      const int32_t count = smaller(t.points, points - first);
      team.phase([&](int32_t thread) {
        for (int32_t i = thread; i < tile.count * t.points; i += t.threads) {
          int32_t k = i;
          const int32_t index = divide_off(&k, t.tile_points);
          if (k >= count) continue;
          const Pair pair = pair_of(t, tile, index);
          const WeightGrad<Real> result = backward_weight<Storage, vector>(
              s, t, pair, first + k, softmax + index * kSoftmaxParts);
          if (p.softmax) {
            grads[i] = result;
          } else {
            const int64_t row = index_of(p, pair) * p.grad_weight_pitch;
            write_number<Storage>(p, p.grad_weights, row + first + k, result.grad);
          }
        }
      });
      if (!p.softmax) continue;
      if (visit == 1) {
        team.phase([&](int32_t thread) {
          for (int32_t i = thread; i < tile.count * kSoftmaxParts; i += t.threads) {
            const WeightGrad<Real>* of_pair = grads + i / kSoftmaxParts * t.points;
            Real sum = first == 0 ? Real(0) : sums[i];
            // The same part of the points whatever fits into shared memory.
            const int32_t skip =
                (i % kSoftmaxParts + kSoftmaxParts - first % kSoftmaxParts) % kSoftmaxParts;
            for (int32_t k = skip; k < count; k += kSoftmaxParts) {
              sum += of_pair[k].weight * of_pair[k].grad;
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
          const Pair pair = pair_of(t, tile, index);
          const int32_t images = s.count(pair);
          Real sum = 0;
          for (int part = 0; part < kSoftmaxParts; ++part) {
            sum += sums[index * kSoftmaxParts + part];
          }
          // Logits of a query that samples no image may be anything.
          const Real grad =
              images > 0 ? grads[i].weight * (grads[i].grad - Real(images) * sum) : Real(0);
          write_number<Storage>(p, p.grad_weights,
                                index_of(p, pair) * p.grad_weight_pitch + first + k, grad);
        }
      });
    }
  }
}

// Adds the gradient of the output, of which `finite` says whether it is, to the pixels of samples
// in shared memory, as Spread says. `image` is a part of `sums`.
template <int unit, int units, typename Real, typename Accumulator>
DCNV4_MM_DEVICE void spread_samples(const Samples<Real>& samples, int32_t slot, int32_t count,
                                    const Accumulator& sums, const Real* grad, bool finite,
                                    typename Accumulator::Number* image, int32_t step) {
  image = whole(image);
  for (int32_t k = 0; k < count; ++k) {
    const Offsets offsets = samples.offsets[slot + k];
    if (offsets.corner[0] == kNone) continue;
    const Weights<Real> weights = samples.weights[slot + k];
    for (int c = 0; c < 4; ++c) {
      if (c > 0 && offsets.corner[c] == kNone) continue;
      sums.template add<unit, units>(element_at<unit>(image, offsets.corner[c]), step,
                                     weights.corner[c], grad, finite);
    }
  }
}

// The gradient of value with atomic additions to `sums`, an element for each of value, which are
// zero before. The forward's way back: each thread spreads some channels of the output's gradient.
template <typename Storage, int unit, int units, typename Sampling, typename Accumulator,
          typename Team>
DCNV4_MM_DEVICE void backward_value_block(const Sampling& s, const Tiling& t, uint32_t block,
                                          const Accumulator& sums, Team& team) {
  using Real = RealOf<Storage>;
  constexpr int channels = unit * units;
  const auto& p = s.p;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  const uint32_t pixel = static_cast<uint32_t>(p.heads * p.channels);

  prepare_softmax<Storage>(s, t, tile, samples.softmax, team);
  for (int32_t camera = 0; camera < s.cameras(); ++camera) {
    if (!s.sees_tile(t, tile, camera, team)) continue;
    for (int32_t first = 0; first < points; first += t.points) {
      team.phase([&](int32_t thread) {
        const Item item = item_of<channels>(t, tile, thread);
        locate_own<Storage>(s, t, tile, samples.softmax, item, camera, first, points,
                            [&](int32_t slot, const LevelTable::Entry& level, Point<Real> point) {
                              point.factor =
                                  sums.scaled_weight(head_of(p, item.pair), point.factor);
                              samples.offsets[slot] = adding_offsets(level, point, pixel / unit);
                              samples.weights[slot] = adding_weights(point);
                            });
      });
      team.phase([&](int32_t thread) {
        const Item item = item_of<channels>(t, tile, thread);
        if (!item.exists || !s.sees(item.pair, camera)) return;
        const Pair& pair = item.pair;
        const auto [channel, step] = units_in<unit, units>(t, tile, item);
        Real grad[channels];
        read_units<unit, units>(grad_output_of<Storage>(p, pair) + channel, step, grad);
        const bool finite = sums.template scale<channels>(head_of(p, pair), grad);
        auto* image =
            sums.data + s.image(pair, camera) * p.pixels * pixel + pair.head * p.channels + channel;
        spread_samples<unit, units>(samples, item.pair_index * sample_stride(t.points),
                                    smaller(t.points, points - first), sums, grad, finite, image,
                                    step);
      });
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
