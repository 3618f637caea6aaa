// Softmax of short rows, and its gradient.
#pragma once

#include "common/simd.h"

namespace dcnv4_mm::flash_deform_attn::cpu {
namespace {

// Combines all lanes of a vector into one number.
template <typename V, typename Combine>
DCNV4_MM_INLINE auto combine_lanes(V vector, Combine combine) {
  if constexpr (kLanesOf<V> == 1) {
    return vector;
  } else if constexpr (kLanesOf<V> == 2) {
    return combine(+vector[0], +vector[1]);
  } else {
    struct Halves {
      Vector<decltype(+vector[0]), kLanesOf<V> / 2> low, high;
    };
    const Halves halves = bit_cast<Halves>(vector);
    return combine_lanes(combine(halves.low, halves.high), combine);
  }
}

// e^x for x <= 0 and for NaN, to about one unit in the last place; 0 where the result would not be
// a normal number.
template <int lanes, typename Real>
DCNV4_MM_INLINE Vector<Real, lanes> exponential(Vector<Real, lanes> x) {
  constexpr bool is_float = sizeof(Real) == sizeof(float);
  constexpr Real lowest = is_float ? -87 : -708;
  constexpr Real log2_e = Real(1.44269504088896340736);
  // ln 2 = high + low; the product of `high` and a whole number is exact.
  constexpr Real high = Real(0.693145751953125), low = Real(1.42860682030941723212e-6);
  const auto smallest = broadcast<lanes>(lowest);
  // e^x = 2^n e^r, n being x / ln 2 rounded. The test is false for NaN, which comes back by x.
  const Vector<Real, lanes> bounded = x > smallest ? x : smallest;
  const auto n = truncate(bounded * log2_e - Real(0.5));
  const auto r = (x - to_real(n) * high) - to_real(n) * low;
  // The Taylor series: |r| <= ln 2 / 2, and its next term is a tenth of the last place's unit.
  constexpr int degree = is_float ? 7 : 13;
  constexpr Real inverse_factorials[] = {1.,
                                         1.,
                                         1. / 2,
                                         1. / 6,
                                         1. / 24,
                                         1. / 120,
                                         1. / 720,
                                         1. / 5040,
                                         1. / 40320,
                                         1. / 362880,
                                         1. / 3628800,
                                         1. / 39916800,
                                         1. / 479001600.,
                                         1. / 6227020800.};
  auto power = broadcast<lanes>(inverse_factorials[degree]);
  for (int i = degree - 1; i >= 0; --i) {
    power = multiply_add(power, r, broadcast<lanes>(inverse_factorials[i]));
  }
  const auto exponent = (n + (is_float ? 127 : 1023)) << (is_float ? 23 : 52);
  const Vector<Real, lanes> result = power * bit_cast<Vector<Real, lanes>>(exponent);
  return x < smallest ? Vector<Real, lanes>{} : result;
}

// Replaces `size` logits by their softmax.
template <typename Real>
DCNV4_MM_INLINE void softmax(int64_t size, Real* row) {
  const auto larger = [](auto a, auto b) DCNV4_MM_INLINE_LAMBDA { return a > b ? a : b; };
  const auto add = [](auto a, auto b) DCNV4_MM_INLINE_LAMBDA { return a + b; };
  Real largest = row[0], sum = 0;
  for_vectors<kLanes<Real>>(size, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    largest = larger(largest, combine_lanes(load<lanes>(row + i), larger));
  });
  for_narrow_chunks<kLanes<Real>>(0, size, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    const auto power = exponential<lanes, Real>(load<lanes>(row + i) - broadcast<lanes>(largest));
    store<lanes>(row + i, power);
    sum += combine_lanes(power, add);
  });
  for_narrow_chunks<kLanes<Real>>(0, size, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    store<lanes>(row + i, load<lanes>(row + i) / broadcast<lanes>(sum));
  });
}

// Turns the gradients of a softmax into gradients of its logits.
template <typename Real>
DCNV4_MM_INLINE void differentiate_softmax(int64_t size, const Real* softmaxed, Real* grads) {
  const auto add = [](auto a, auto b) DCNV4_MM_INLINE_LAMBDA { return a + b; };
  Real common = 0;
  for_narrow_chunks<kLanes<Real>>(0, size, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    common += combine_lanes(load<lanes>(softmaxed + i) * load<lanes>(grads + i), add);
  });
  for_narrow_chunks<kLanes<Real>>(0, size, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    const auto difference = load<lanes>(grads + i) - broadcast<lanes>(common);
    store<lanes>(grads + i, load<lanes>(softmaxed + i) * difference);
  });
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cpu
