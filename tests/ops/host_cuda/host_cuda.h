// Included before an operator's CUDA sources, compiled as C++.
//
// The headers beside this one replace those of csrc and of the CUDA runtime that need a GPU; all
// else is what a GPU runs: bindings, choice of launches, kernels.
#pragma once

#include <cuda_runtime.h>

#include "bindings.h"
#include "common/launch.cuh"

// Chooses a device by its name, the order of blocks and threads, and whether kernels are run.
TEST_VISIBLE bool host_cuda_use(const char* device, uint32_t seed, bool dry) {
  host_cuda::random_order.seed(seed);
  host_cuda::running.dry = dry;
  return fake_device::use(device);
}

// The launches since the last call.
TEST_VISIBLE const char* host_cuda_launches() {
  static std::string text;
  text = host_cuda::launches.str();
  host_cuda::launches.str("");
  return text.c_str();
}

// The kernels' division without a division.
TEST_VISIBLE int32_t host_cuda_divide(int32_t number, int32_t divisor) {
  return dcnv4_mm::divide(number, dcnv4_mm::divisor_of(divisor));
}
