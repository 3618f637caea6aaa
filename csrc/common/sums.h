// Where the GPU kernels sum the gradient of value: in floating point, where the order of additions
// matters, or in fixed point, where it does not.
//
// A fixed-point sum is a 64-bit integer, so it has the same bits in whatever order threads add to
// it. All products of an image and group have one scale, a power of two: the largest that leaves
// room for all of them in the sum of one element. It follows from the largest exponents among
// the gradients of the output and among the weights, which are found first. The two lowest bits
// of a sum are flags for products that are not finite; products are multiples of 4. What this
// rounding leaves of a float64 product has a sum of its own.
#pragma once

#include <cmath>

#include "common/fixed_point.h"
#include "common/gpu_samples.h"

namespace dcnv4_mm {
namespace {

template <typename Real>
struct Format;
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int32_t mantissa = 23, bias = 127;
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int32_t mantissa = 52, bias = 1023;
};

// 2^exponent, a normal number.
template <typename Real>
DCNV4_MM_DEVICE Real power_of_two(int32_t exponent) {
  using Bits = typename Format<Real>::Bits;
  const Bits bits = static_cast<Bits>(exponent + Format<Real>::bias) << Format<Real>::mantissa;
  Real number;
  __builtin_memcpy(&number, &bits, sizeof(number));
  return number;
}

// The exponent of a number as it is stored: the number is below 2^(exponent - bias + 1). 0 for
// those that are not finite, which no scale would help.
template <typename Real>
DCNV4_MM_DEVICE uint32_t stored_exponent(Real number) {
  typename Format<Real>::Bits bits;
  __builtin_memcpy(&bits, &number, sizeof(number));
  constexpr uint32_t special = 2 * Format<Real>::bias + 1;
  const uint32_t exponent = static_cast<uint32_t>(bits >> Format<Real>::mantissa) & special;
  return exponent == special ? 0 : exponent;
}

template <typename Real>
DCNV4_MM_DEVICE bool is_finite(Real number) {
  return std::abs(number) < Real(INFINITY);
}

#if defined(__CUDACC__)
DCNV4_MM_DEVICE int64_t nearest_integer(float number) { return __float2ll_rn(number); }
DCNV4_MM_DEVICE int64_t nearest_integer(double number) { return __double2ll_rn(number); }

// Other threads change the memory as well, in any order.
DCNV4_MM_DEVICE void atomic_add(int64_t* address, int64_t number) {
  asm volatile("red.global.add.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "l"(number)
               : "memory");
}
DCNV4_MM_DEVICE void atomic_or(int64_t* address, int64_t bits) {
  asm volatile("red.global.or.b64 [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "l"(bits)
               : "memory");
}
DCNV4_MM_DEVICE void atomic_max(uint32_t* address, uint32_t number) {
  asm volatile("red.global.max.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "r"(number)
               : "memory");
}
#else
template <typename Real>
int64_t nearest_integer(Real number) {
  return std::llrint(number);
}
inline void atomic_add(int64_t* address, int64_t number) { *address += number; }
inline void atomic_or(int64_t* address, int64_t bits) { *address |= bits; }
inline void atomic_max(uint32_t* address, uint32_t number) {
  if (number > *address) *address = number;
}
#endif

// Sums in the type of the arithmetic.
template <typename Real>
struct RealSums {
  using Number = Real;
  Number* data;

  DCNV4_MM_DEVICE_METHOD Real scaled_weight(int64_t, Real weight) const { return weight; }

  template <int channels>
  DCNV4_MM_DEVICE_METHOD bool scale(int64_t, Real*) const {
    return true;
  }

  template <int unit, int units>
  DCNV4_MM_DEVICE_METHOD void add(Number* address, int32_t step, Real weight, const Real* grads,
                                  bool) const {
    add_units<unit, units>(address, step, weight, grads);
  }
};

// Sums in fixed point. `bits` are those of the largest product.
template <typename Real>
struct FixedSums {
  using Number = int64_t;
  Number* data;
  const uint32_t* exponents;  // [images, groups, 2]: of gradients, of weights
  int32_t bits;
  int64_t size;  // elements; sums of remainders, if there are some, follow

  static constexpr bool kHasRemainders = sizeof(Real) == sizeof(double);
  static constexpr int32_t bias = Format<Real>::bias;
  static constexpr int64_t kPositive = 1, kNegative = 2, kFlags = 3;

  // The scales of an image and group, `pair`, as powers of two: scaled gradients have half of the
  // bits, scaled weights the others.
  DCNV4_MM_DEVICE_METHOD int32_t grad_exponent(int64_t pair) const {
    return bits / 2 + bias - 1 - static_cast<int32_t>(exponents[2 * pair]);
  }
  DCNV4_MM_DEVICE_METHOD int32_t weight_exponent(int64_t pair) const {
    return bits - bits / 2 + bias - 1 - static_cast<int32_t>(exponents[2 * pair + 1]);
  }

  DCNV4_MM_DEVICE_METHOD Real scaled_weight(int64_t pair, Real weight) const {
    const int32_t exponent = weight_exponent(pair), half = exponent / 2;
    // In two steps, as no number may be as large as their product.
    return weight * power_of_two<Real>(half) * power_of_two<Real>(exponent - half);
  }

  // Scales gradients; returns whether they all are finite.
  template <int channels>
  DCNV4_MM_DEVICE_METHOD bool scale(int64_t pair, Real* grads) const {
    const int32_t exponent = grad_exponent(pair), half = exponent / 2;
    const Real factors[2] = {power_of_two<Real>(half), power_of_two<Real>(exponent - half)};
    bool finite = true;
    for (int i = 0; i < channels; ++i) {
      grads[i] = grads[i] * factors[0] * factors[1];
      finite = finite && is_finite(grads[i]);
    }
    return finite;
  }

  DCNV4_MM_DEVICE_METHOD void add_product(Number* address, Real product) const {
    const Number rounded = nearest_integer(product) & ~kFlags;
    atomic_add(address, rounded);
    if constexpr (kHasRemainders) {
      const Real remainder = product - static_cast<Real>(rounded);  // exact, below 4
      atomic_add(address + size, nearest_integer(remainder * power_of_two<Real>(bits - 2)));
    }
  }

  template <int unit, int units>
  DCNV4_MM_DEVICE_METHOD void add(Number* address, int32_t step, Real weight, const Real* grads,
                                  bool finite) const {
    static_assert(unit == 1, "");
    if (finite && is_finite(weight)) {
      for (int u = 0; u < units; ++u) {
        add_product(address + u * step, weight * grads[u]);
      }
      return;
    }
    for (int u = 0; u < units; ++u) {
      const Real product = weight * grads[u];
      if (is_finite(product)) {
        add_product(address + u * step, product);
      } else {
        const bool positive = !(product < 0), negative = !(product > 0);  // NaN is both
        atomic_or(address + u * step, (positive ? kPositive : 0) | (negative ? kNegative : 0));
      }
    }
  }

  DCNV4_MM_DEVICE_METHOD Real number_at(int64_t index, int64_t pair) const {
    const int64_t sum = data[index];
    if (sum & kFlags) {
      const Real infinity = INFINITY;
      return (sum & kFlags) == kFlags ? infinity - infinity
             : sum & kPositive        ? infinity
                                      : -infinity;
    }
    Real number = static_cast<Real>(sum);
    if constexpr (kHasRemainders) {
      number += static_cast<Real>(data[index + size]) * power_of_two<Real>(2 - bits);
    }
    // In three steps, likewise.
    const int32_t exponent = -grad_exponent(pair) - weight_exponent(pair), third = exponent / 3;
    return number * power_of_two<Real>(third) * power_of_two<Real>(third) *
           power_of_two<Real>(exponent - 2 * third);
  }
};

// The largest exponent among the numbers that a thread takes of a block's.
template <typename Storage>
DCNV4_MM_DEVICE uint32_t largest_exponent(const Magnitudes& m, const Magnitudes::Numbers& numbers,
                                          int64_t image, int32_t group, int32_t first,
                                          int32_t pixels, int32_t thread) {
  using Real = RealOf<Storage>;
  if (!numbers.data) return stored_exponent(Real(1));
  const int64_t origin = image * numbers.image + group * numbers.group;
  uint32_t largest = 0;
  for (int32_t i = thread; i < pixels * static_cast<int32_t>(numbers.count.value); i += m.threads) {
    int32_t k = i;
    int32_t column = first + divide_off(&k, numbers.count);
    const int32_t row = divide_off(&column, m.columns);
    const int64_t index = origin + row * numbers.row + column * numbers.column + k;
    const Real number = numbers.is_float32
                            ? Real(read(static_cast<const float*>(numbers.data) + index))
                            : read(static_cast<const Storage*>(numbers.data) + index);
    const uint32_t exponent = stored_exponent(number);
    if (exponent > largest) largest = exponent;
  }
  return largest;
}

// Makes `exponents` [images, groups, 2] of FixedSums, which are 0 before.
template <typename Storage, typename Team>
DCNV4_MM_DEVICE void magnitudes_block(const Magnitudes& m, uint32_t block, uint32_t* exponents,
                                      Team& team) {
  int32_t run = static_cast<int32_t>(block);
  int32_t group = divide_off(&run, m.runs);
  const int64_t image = divide_off(&group, m.groups);
  const int32_t first = run * m.run, pixels = smaller(m.run, m.pixels - first);
  uint32_t* found = static_cast<uint32_t*>(team.shared());
  team.phase([&](int32_t thread) {
    for (int kind = 0; kind < 2; ++kind) {
      found[kind * m.threads + thread] =
          largest_exponent<Storage>(m, m.numbers[kind], image, group, first, pixels, thread);
    }
  });
  // Eight threads for each kind.
  own_phase(team, [&](int32_t thread) {
    const int32_t kind = thread / 8;
    if (kind >= 2) return;
    uint32_t largest = 0;
    for (int32_t i = thread % 8; i < m.threads; i += 8) {
      const uint32_t exponent = found[kind * m.threads + i];
      if (exponent > largest) largest = exponent;
    }
    atomic_max(exponents + 2 * (image * m.groups.value + group) + kind, largest);
  });
}

// Converts sums to their final type.
template <typename Storage, typename Team>
DCNV4_MM_DEVICE void convert_block(const Conversion& c, uint32_t block,
                                   const FixedSums<RealOf<Storage>>& sums, void* result,
                                   Team& team) {
  int32_t run = static_cast<int32_t>(block);
  const int64_t image = divide_off(&run, c.runs);
  const int64_t first = image * c.pixels + run * c.run;
  const int32_t numbers =
      smaller(c.run, c.pixels - run * c.run) * static_cast<int32_t>(c.channels.value);
  const int64_t pairs =
      static_cast<int64_t>(divide(static_cast<uint32_t>(image), c.scaled)) * c.groups.value;
  own_phase(team, [&](int32_t thread) {
    for (int32_t i = thread; i < numbers; i += c.threads) {
      int32_t channel = i;
      divide_off(&channel, c.channels);
      const int64_t index = first * c.channels.value + i;
      write(static_cast<Storage*>(result) + index,
            sums.number_at(index, pairs + divide(channel, c.group_channels)));
    }
  });
}

}  // namespace
}  // namespace dcnv4_mm
