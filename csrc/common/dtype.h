// The storage types of the operators' tensors.
#pragma once

#include <cstdint>

#include "common/storage.h"

namespace dcnv4_mm {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline int32_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}
// Of the type of the arithmetic.
inline int32_t real_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

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

}  // namespace dcnv4_mm
