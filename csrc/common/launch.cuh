// Launching kernels.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common/launch.h"

namespace dcnv4_mm {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("dcnv4_mm: CUDA: ") + cudaGetErrorString(error));
}

// Launches kernel(arguments...) with the blocks, threads and shared memory of `launch`.
template <typename Launch, typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), const Launch& launch, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (launch.blocks == 0) return;
  if (launch.blocks > kMaxBlocks) {
    throw std::runtime_error("dcnv4_mm: the problem needs more blocks than a CUDA grid has");
  }
  kernel<<<static_cast<uint32_t>(launch.blocks), launch.threads, launch.shared_bytes, stream>>>(
      arguments...);
  check_cuda(cudaGetLastError());
}

}  // namespace dcnv4_mm
