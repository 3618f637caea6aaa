// Geometry of bilinear sampling, shared by CPU and GPU kernels.
//
// The functions work on single numbers and on the short vectors of simd.h alike: comparisons,
// `&`, `|` and `?:` act on every lane.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define DCNV4_MM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#include "common/simd.h"
#define DCNV4_MM_HOST_DEVICE DCNV4_MM_INLINE
#endif

namespace dcnv4_mm {

#if defined(__CUDACC__)
DCNV4_MM_HOST_DEVICE int32_t truncate(float number) { return static_cast<int32_t>(number); }
DCNV4_MM_HOST_DEVICE int64_t truncate(double number) { return static_cast<int32_t>(number); }
DCNV4_MM_HOST_DEVICE float to_real(int32_t number) { return static_cast<float>(number); }
DCNV4_MM_HOST_DEVICE double to_real(int64_t number) { return static_cast<double>(number); }
#endif

// The largest integer that is not above a coordinate.
#if defined(__CUDA_ARCH__)
DCNV4_MM_HOST_DEVICE int32_t floor_index(float coordinate) { return __float2int_rd(coordinate); }
DCNV4_MM_HOST_DEVICE int64_t floor_index(double coordinate) { return __double2int_rd(coordinate); }
#else
// floor() is a library call on machines without the instruction; truncation never is.
template <typename Real>
DCNV4_MM_HOST_DEVICE auto floor_index(Real coordinate) {
  const auto first = truncate(coordinate);
  return coordinate < to_real(first) ? first - 1 : first;
}
#endif

// The two pixels around a coordinate along one axis, with their weights and the derivatives of the
// weights by the coordinate.
//
// A pixel outside the image counts as 0. There, both neighbours are the one pixel inside, each with
// half of its weight: the sums are the same, every address is valid, and no caller has to
// distinguish the border. A weight of 0 would not do, as 0 * Inf is NaN.
template <typename Real, typename Int>
struct Neighbours {
  Int first;  // index of the lower pixel, inside the image
  Int step;   // from the lower pixel to the upper one: 1, or 0 at the border
  Real weight_first, weight_second;
  Real slope_first, slope_second;
};

// Whether a sampling point counts; if not, it contributes nothing and has no gradient. The test is
// strict and false for NaN, and a coordinate that passes it fits an int32.
template <typename Real>
DCNV4_MM_HOST_DEVICE auto is_inside(Real y, Real x, Real height, Real width) {
  const Real minus_one = Real{} - 1;
  return (y > minus_one) & (x > minus_one) & (y < height) & (x < width);
}

// Neighbours of a coordinate with -1 < coordinate < size. At an integer coordinate the derivative
// is the one towards the larger coordinate.
template <typename Real>
DCNV4_MM_HOST_DEVICE auto neighbours(Real coordinate, Real size) {
  const Real zero = Real{}, one = zero + 1, half = one / 2;
  const auto first = floor_index(coordinate);
  const Real floor = to_real(first);
  const Real fraction = coordinate - floor;
  const auto below = floor < zero;
  const auto above = floor + one >= size;
  const auto beyond = below | above;
  const Real weight_first = one - fraction;
  const Real half_weight = half * (below ? fraction : weight_first);

  Neighbours<Real, decltype(truncate(coordinate))> result;
  const auto none = first - first;
  result.first = below ? none : first;
  result.step = beyond ? none : none + 1;
  result.weight_first = beyond ? half_weight : weight_first;
  result.weight_second = beyond ? half_weight : fraction;
  result.slope_first = below ? half : above ? -half : -one;
  result.slope_second = above ? -half : below ? half : one;
  return result;
}

}  // namespace dcnv4_mm
