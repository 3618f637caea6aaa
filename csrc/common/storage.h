// Storage types of tensors, and the types of the arithmetic on them.
#pragma once

#include <stdint.h>

namespace dcnv4_mm {

// Storage types of 16 bits; arithmetic on them is in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type of the arithmetic on numbers of a storage type.
template <typename Storage>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};
template <typename Storage>
using RealOf = typename Arithmetic<Storage>::Type;

}  // namespace dcnv4_mm
