// Checks of arguments at the border between torch and the kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/argument_checks.h"
#include "common/dtype.h"

namespace dcnv4_mm {

inline Ints shape_of(const torch::stable::Tensor& tensor) {
  Ints shape;
  for (int64_t i = 0; i < tensor.dim(); ++i) shape.push_back(tensor.size(i));
  return shape;
}

// As for Ints: written only if a check fails.
struct TensorShapeText {
  const torch::stable::Tensor* tensor;
};

inline TensorShapeText shape_text(const torch::stable::Tensor& tensor) { return {&tensor}; }

inline std::ostream& operator<<(std::ostream& text, const TensorShapeText& shape) {
  return text << shape_text(shape_of(*shape.tensor));
}

inline void check_tensor(const char* name, const torch::stable::Tensor& tensor, int64_t axes,
                         torch::headeronly::DeviceType device) {
  const bool is_cuda = device == torch::headeronly::DeviceType::CUDA;
  check(tensor.defined() && (is_cuda ? tensor.is_cuda() : tensor.is_cpu()), name, " must be a ",
        is_cuda ? "CUDA" : "CPU", " tensor");
  check(tensor.dim() == axes, name, " must have ", axes, " axes, got the shape ",
        shape_text(tensor));
  for (int64_t i = 0; i < axes; ++i) {
    check(tensor.size(i) <= kMaxSize, name, " must have sizes below 2^31, got the shape ",
          shape_text(tensor));
  }
}

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

inline void check_same_device(const char* name, const torch::stable::Tensor& tensor,
                              const torch::stable::Tensor& other) {
  check(tensor.get_device_index() == other.get_device_index(), name, " is on device ",
        tensor.get_device_index(), ", value on device ", other.get_device_index());
}

}  // namespace dcnv4_mm
