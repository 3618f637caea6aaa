// The part of the CUDA runtime and language that csrc uses, on the host: kernels are plain
// functions, and a device is a line of a table.
#pragma once

#include <map>
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

namespace host_cuda {

struct Device {
  const char* name;
  // In the order of cudaDeviceAttr; shared memory in KiB.
  int major, minor, multiprocessors, shared_per_multiprocessor, shared_per_block;
};

inline const Device kDevices[] = {
    {"sm_75", 7, 5, 40, 64, 64},
    {"sm_80", 8, 0, 108, 164, 163},
    {"sm_86", 8, 6, 84, 100, 99},
    {"sm_89", 8, 9, 128, 100, 99},
    {"sm_90", 9, 0, 132, 228, 227},
    {"sm_100", 10, 0, 148, 228, 227},
    {"sm_120", 12, 0, 170, 100, 99},
    // No real device: here even small images are cut into parts or summed with atomic additions.
    {"tiny", 7, 5, 2, 24, 24},
};

inline int current_device = 0;

}  // namespace host_cuda

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int index) {
  const host_cuda::Device& device = host_cuda::kDevices[index];
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.minor;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_per_multiprocessor << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_per_block << 10;
      break;
  }
  return cudaSuccess;
}

namespace host_cuda {

using Kernel = void (*)();

// The shared memory that kernels may have beyond what all may, by kernel and device.
inline std::map<std::pair<Kernel, int>, int> allowed_shared_bytes;

}  // namespace host_cuda

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  using namespace host_cuda;
  allowed_shared_bytes[{reinterpret_cast<host_cuda::Kernel>(kernel), current_device}] = bytes;
  return cudaSuccess;
}
