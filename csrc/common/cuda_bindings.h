// What all bindings of CUDA kernels to torch need.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include "common/cuda_device.h"
#include "common/tensor_checks.h"

namespace dcnv4_mm {
namespace {

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  // Not STABLE_TORCH_ERROR_CODE_CHECK, which the headers have from torch 2.13 on.
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace
}  // namespace dcnv4_mm
