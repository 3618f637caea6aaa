// From numbers known at run time to instances of templates.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/dtype.h"
#include "common/storage.h"

namespace dcnv4_mm {

// Calls function with a number of the storage type, for its type alone.
template <typename Function>
void with_storage(DType dtype, Function function) {
  switch (dtype) {
    case DType::kFloat64:
      return function(double{});
    case DType::kFloat32:
      return function(float{});
    case DType::kFloat16:
      return function(Half{});
    case DType::kBFloat16:
      return function(BFloat16{});
  }
}

template <int number>
using Constant = std::integral_constant<int, number>;

// Calls function(Constant<channels of a vector>) for `vector` channels, at most `widest`.
template <int widest, typename Function>
void with_vector(int32_t vector, Function function) {
  if (vector == widest) return function(Constant<widest>{});
  if constexpr (widest > 1) with_vector<widest / 2>(vector, function);
}

}  // namespace dcnv4_mm
