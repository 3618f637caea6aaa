// What all bindings of CUDA kernels to torch need.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "common/checks.h"
#include "common/cuda_device.h"

namespace dcnv4_mm {
namespace {

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace
}  // namespace dcnv4_mm
