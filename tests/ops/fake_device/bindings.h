// Included before an operator's bindings_cuda.cpp: its operators take CPU tensors and stand in a
// namespace of their own, TEST_NAMESPACE.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/tensor_checks.h"

namespace torch::stable::accelerator {

struct NoGuard {
  explicit NoGuard(int32_t) {}
};

}  // namespace torch::stable::accelerator

#define TEST_VISIBLE extern "C" __attribute__((visibility("default")))

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) TEST_LIBRARY_IMPL(TEST_NAMESPACE, m)
#define TEST_LIBRARY_IMPL(ns, m) _STABLE_TORCH_LIBRARY_IMPL(ns, CPU, m, TEST_ID)
#define TEST_ID 0
// What the bindings say: DeviceType::CUDA, and a guard of the current device.
#define CUDA CPU
#define DeviceGuard NoGuard
