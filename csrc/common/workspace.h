// The memory in which the CUDA kernels sum the gradient of value: torch's, so that calls can be
// captured in CUDA graphs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "common/tensor_checks.h"

namespace dcnv4_mm {
namespace {

// Calls add(sums), which adds the gradient of value to zeros of the type of the arithmetic. Sums of
// 16-bit gradients are kept in float32 until the last one is added.
template <typename Function>
void sum_gradients(const torch::stable::Tensor& gradient, DType dtype, Function add) {
  using torch::headeronly::ScalarType;
  torch::stable::Tensor result = gradient;
  const bool is_sum = element_bytes(dtype) == real_bytes(dtype);
  torch::stable::Tensor sums =
      is_sum ? torch::stable::zero_(result)
             : torch::stable::new_zeros(gradient, shape_of(gradient), ScalarType::Float);
  add(sums.mutable_data_ptr());
  if (!is_sum) torch::stable::copy_(result, sums);
}

// Calls sum(sums, exponents) with the workspace of fixed-point sums of the gradient of value, which
// have `scales` scales; float64 has two sums for each element.
template <typename Function>
void sum_gradients_fixed(const torch::stable::Tensor& gradient, DType dtype, int64_t scales,
                         Function sum) {
  using torch::headeronly::ScalarType;
  const int64_t size = gradient.numel(), parts = dtype == DType::kFloat64 ? 2 : 1;
  torch::stable::Tensor sums =
      torch::stable::new_zeros(gradient, Ints{parts, size}, ScalarType::Long);
  torch::stable::Tensor exponents =
      torch::stable::new_zeros(gradient, Ints{scales, 2}, ScalarType::Int);
  sum(static_cast<int64_t*>(sums.mutable_data_ptr()),
      static_cast<uint32_t*>(exponents.mutable_data_ptr()));
}

}  // namespace
}  // namespace dcnv4_mm
