// Bilinear samples of the GPU kernels: the weights of the four pixels around a point, and what is
// computed from these pixels in vectors of channels.
#pragma once

#include "common/bilinear.h"
#include "common/vectorized.h"

namespace dcnv4_mm {
namespace {

// A phase whose results are for no other thread: it needs no barrier.
template <typename Team, typename Function>
DCNV4_MM_DEVICE void own_phase(Team& team, Function function) {
#if defined(__CUDA_ARCH__)
  (void)team;
  function(static_cast<int32_t>(threadIdx.x));
#else
  team.phase(function);
#endif
}

// A point's geometry, and the factor of its sample.
template <typename Real>
struct Point {
  using Int = decltype(truncate(Real{}));

  bool inside;  // whether the point counts
  Neighbours<Real, Int> x, y;
  Real factor;
};

template <typename Real>
DCNV4_MM_DEVICE Point<Real> point_at(Real y, Real x, Real height, Real width, Real factor) {
  Point<Real> point;
  point.inside = is_inside(y, x, height, width);
#if !defined(__CUDA_ARCH__)
  // What does not fit an integer may not be converted.
  if (!point.inside) x = y = 0;
#endif
  point.x = neighbours(x, width);
  point.y = neighbours(y, height);
  point.factor = factor;
  return point;
}

// Weights of the four pixels: top left, top right, bottom left, bottom right.
template <typename Real>
struct alignas(4 * sizeof(Real)) Weights {
  Real corner[4];
};

// For reading: where there is no next row or column, both weights are for the one pixel there is.
template <typename Real>
DCNV4_MM_DEVICE Weights<Real> reading_weights(const Point<Real>& point) {
  const Real top = point.y.weight_first * point.factor;
  const Real bottom = point.y.weight_second * point.factor;
  return {top * point.x.weight_first, top * point.x.weight_second, bottom * point.x.weight_first,
          bottom * point.x.weight_second};
}

// For adding: the one pixel that there is has the sum of both weights, so that no pixel is added to
// twice.
template <typename Real>
DCNV4_MM_DEVICE Weights<Real> adding_weights(Point<Real> point) {
  if (!point.x.step) point.x.weight_first += point.x.weight_second;
  if (!point.y.step) point.y.weight_first += point.y.weight_second;
  return reading_weights(point);
}

// Addresses of the four pixels, in the order of the weights.
template <typename Element>
struct Corners {
  Element* corner[4];
};

template <typename Real, int vector>
struct Sums {
  Real channel[vector] = {};
};

// Adds one sample of `vector` channels.
template <typename Storage, int vector>
DCNV4_MM_DEVICE void add_sample(const Corners<const Storage>& corners,
                                const Weights<RealOf<Storage>>& weights,
                                Sums<RealOf<Storage>, vector>* sums) {
  Words<Storage, vector> loaded[4];
  for (int c = 0; c < 4; ++c) loaded[c] = load_words<vector>(corners.corner[c]);
  for (int c = 0; c < 4; ++c) {
    RealOf<Storage> pixel[vector];
    unpack(loaded[c], pixel);
    for (int i = 0; i < vector; ++i) {
      sums->channel[i] = multiply_add(weights.corner[c], pixel[i], sums->channel[i]);
    }
  }
}

// Dot products of a vector of channels of the four pixels and one of a gradient.
template <typename Storage, int vector>
DCNV4_MM_DEVICE Weights<RealOf<Storage>> vector_dots(const Corners<const Storage>& corners,
                                                     const RealOf<Storage> (&grad)[vector]) {
  Words<Storage, vector> loaded[4];
  for (int c = 0; c < 4; ++c) loaded[c] = load_words<vector>(corners.corner[c]);
  Weights<RealOf<Storage>> dots;
  for (int c = 0; c < 4; ++c) {
    RealOf<Storage> pixel[vector], halves[2] = {};
    unpack(loaded[c], pixel);
    for (int i = 0; i < vector; ++i) {
      halves[i % 2] = multiply_add(pixel[i], grad[i], halves[i % 2]);
    }
    dots.corner[c] = halves[0] + halves[1];
  }
  return dots;
}

// Dot products of the four pixels and a gradient, over `vectors` vectors of channels.
template <typename Storage, int vector>
DCNV4_MM_DEVICE Weights<RealOf<Storage>> corner_dots(const Corners<const Storage>& corners,
                                                     const Storage* grad_output, int32_t vectors) {
  using Real = RealOf<Storage>;
  // Sums of sums of a few vectors each: short sums have small errors.
  Weights<Real> dots{}, part{};
  for (int32_t v = 0; v < vectors; ++v) {
    Real grad[vector];
    read<vector>(grad_output + v * vector, grad);
    Corners<const Storage> at = corners;
    for (int c = 0; c < 4; ++c) at.corner[c] += v * vector;
    const Weights<Real> products = vector_dots<Storage>(at, grad);
    for (int c = 0; c < 4; ++c) part.corner[c] += products.corner[c];
    if (v % 8 < 7 && v + 1 < vectors) continue;
    for (int c = 0; c < 4; ++c) dots.corner[c] += part.corner[c];
    part = {};
  }
  return dots;
}

// The first channel of a thread whose units are apart, and their distance: `channel` is the first
// one if they were adjacent, `lane` of `lanes` the thread's number in its item.
struct Units {
  int32_t channel, step;
};

template <int unit, int units>
DCNV4_MM_DEVICE Units units_of(int32_t channel, int32_t lane, int32_t lanes) {
  return {channel - (units - 1) * lane * unit, lanes * unit};
}

// Numbers of `units` units of `unit` channels each, `step` numbers apart.
template <int unit, int units, typename Storage>
DCNV4_MM_DEVICE void read_units(const Storage* address, int32_t step, RealOf<Storage>* numbers) {
  for (int u = 0; u < units; ++u) read<unit>(address + u * step, numbers + u * unit);
}

template <int unit, int units, typename Real>
DCNV4_MM_DEVICE void add_units(Real* address, int32_t step, Real weight, const Real* numbers) {
  for (int u = 0; u < units; ++u) {
    Real weighted[unit];
    for (int i = 0; i < unit; ++i) weighted[i] = weight * numbers[u * unit + i];
    atomic_add<unit>(address + u * step, weighted);
  }
}

// Gradients by a point's coordinates, in pixels, and by its factor.
template <typename Real>
struct PointGrad {
  Real x, y, factor;
};

template <typename Real>
DCNV4_MM_DEVICE PointGrad<Real> differentiate(const Point<Real>& point, const Weights<Real>& dots) {
  const auto &x = point.x, &y = point.y;
  const Real top = x.weight_first * dots.corner[0] + x.weight_second * dots.corner[1];
  const Real bottom = x.weight_first * dots.corner[2] + x.weight_second * dots.corner[3];
  const Real left = y.weight_first * dots.corner[0] + y.weight_second * dots.corner[2];
  const Real right = y.weight_first * dots.corner[1] + y.weight_second * dots.corner[3];
  return {point.factor * (x.slope_first * left + x.slope_second * right),
          point.factor * (y.slope_first * top + y.slope_second * bottom),
          y.weight_first * top + y.weight_second * bottom};
}

}  // namespace
}  // namespace dcnv4_mm
