// The storage types of the operators' tensors.
#pragma once

#include <cstdint>

namespace dcnv4_mm {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline int32_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// The size of the type of the arithmetic.
inline int32_t real_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

}  // namespace dcnv4_mm
