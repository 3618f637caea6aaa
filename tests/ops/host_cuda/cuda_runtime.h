// The part of the CUDA runtime and language that csrc uses, on the host: kernels are plain
// functions, and a device is a line of a table.
#pragma once

#include <map>
#include <string>
#include <utility>

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};

#include "devices.h"

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int index) {
  return fake_device::attribute(value, name, index);
}

namespace host_cuda {

using Kernel = void (*)();

// The shared memory that kernels may have beyond what all may, by kernel and device.
inline std::map<std::pair<Kernel, int>, int> allowed_shared_bytes;

}  // namespace host_cuda

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  using namespace host_cuda;
  allowed_shared_bytes[{reinterpret_cast<host_cuda::Kernel>(kernel), fake_device::current}] = bytes;
  return cudaSuccess;
}
