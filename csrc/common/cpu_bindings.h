// What the bindings of every operator's CPU kernels need.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/checks.h"
#include "common/dtype.h"

namespace dcnv4_mm {

using Ints = std::vector<int64_t>;
using Scratch = std::unique_ptr<unsigned char[]>;

inline Scratch allocate(size_t bytes) { return Scratch(new unsigned char[bytes]); }

inline DType dtype_of(const char* name, const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      check(false, name, " must be float64, float32, float16 or bfloat16");
      return DType::kFloat32;
  }
}

inline size_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// A task for a thread should last 20 microseconds at least: how many parts of it that is.
inline int64_t worth_a_thread(double nanoseconds) {
  return static_cast<int64_t>(std::min(1e9, 20000.0 / nanoseconds)) + 1;
}

}  // namespace dcnv4_mm
