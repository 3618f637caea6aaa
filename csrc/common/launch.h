// What choosing a kernel launch needs, on the host and on the GPU.
#pragma once

#include <cstdint>

#include "common/bilinear.h"

namespace dcnv4_mm {

// What a device allows; sizes are in bytes.
struct DeviceLimits {
  int32_t multiprocessors;
  int32_t shared_per_multiprocessor;
  int32_t shared_per_block;  // the most that a kernel can ask for
  int32_t capability = 0;    // 90 for compute capability 9.0
};

struct Device {
  int32_t index;
  DeviceLimits limits;
};

constexpr int32_t kWarp = 32;
// A block on any device has so much shared memory without being allowed to ask for more.
constexpr int32_t kSharedByDefault = 48 << 10;
constexpr int64_t kMaxBlocks = (int64_t(1) << 31) - 1;

template <typename Int>
DCNV4_MM_HOST_DEVICE constexpr Int ceil_div(Int number, Int divisor) {
  return (number + divisor - 1) / divisor;
}

template <typename Int>
DCNV4_MM_HOST_DEVICE constexpr Int round_up(Int number, Int multiple) {
  return ceil_div(number, multiple) * multiple;
}

DCNV4_MM_HOST_DEVICE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

// Divides numbers below 2^31 by a constant: (high word of multiplier * number + number) >> shift.
struct Divisor {
  uint32_t value, multiplier, shift;
};

inline Divisor divisor_of(int64_t value) {
  uint32_t shift = 0;
  while ((int64_t(1) << shift) < value) ++shift;
  const uint64_t excess = (uint64_t(1) << shift) - static_cast<uint64_t>(value);
  const uint64_t multiplier = (excess << 32) / static_cast<uint64_t>(value) + 1;
  return {static_cast<uint32_t>(value), static_cast<uint32_t>(multiplier), shift};
}

DCNV4_MM_HOST_DEVICE int32_t divide(uint32_t number, const Divisor& divisor) {
#if defined(__CUDA_ARCH__)
  const uint32_t high = __umulhi(divisor.multiplier, number);
#else
  const uint32_t high = static_cast<uint32_t>(uint64_t(divisor.multiplier) * number >> 32);
#endif
  return static_cast<int32_t>((high + number) >> divisor.shift);
}

// Returns the quotient and leaves the remainder in its place.
DCNV4_MM_HOST_DEVICE int32_t divide_off(int32_t* number, const Divisor& divisor) {
  const int32_t quotient = divide(*number, divisor);
  *number -= quotient * divisor.value;
  return quotient;
}

}  // namespace dcnv4_mm
