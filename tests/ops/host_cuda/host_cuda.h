// Included before an operator's CUDA sources, compiled as C++: its operators take CPU tensors and
// stand in a namespace of their own, dcnv4_mm_host.
//
// The headers beside this one replace those of csrc and of the CUDA runtime that need a GPU; all
// else is what a GPU runs: bindings, choice of launches, kernels.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/checks.h"
#include "common/launch.cuh"

namespace torch::stable::accelerator {

struct NoGuard {
  explicit NoGuard(int32_t) {}
};

}  // namespace torch::stable::accelerator

#define HOST_CUDA_VISIBLE extern "C" __attribute__((visibility("default")))

// Chooses a device by its name, the order of blocks and threads, and whether kernels are run.
HOST_CUDA_VISIBLE bool host_cuda_use(const char* device, uint32_t seed, bool dry) {
  for (const host_cuda::Device& known : host_cuda::kDevices) {
    if (known.name != std::string(device)) continue;
    host_cuda::current_device = static_cast<int>(&known - host_cuda::kDevices);
    host_cuda::random_order.seed(seed);
    host_cuda::running.dry = dry;
    return true;
  }
  return false;
}

// The launches since the last call.
HOST_CUDA_VISIBLE const char* host_cuda_launches() {
  static std::string text;
  text = host_cuda::launches.str();
  host_cuda::launches.str("");
  return text.c_str();
}

// The kernels' division without a division.
HOST_CUDA_VISIBLE int32_t host_cuda_divide(int32_t number, int32_t divisor) {
  return dcnv4_mm::divide(number, dcnv4_mm::divisor_of(divisor));
}

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm_host, CPU, m, HOST_CUDA_ID)
#define HOST_CUDA_ID 0
// What the bindings say: DeviceType::CUDA, and a guard of the current device.
#define CUDA CPU
#define DeviceGuard NoGuard
