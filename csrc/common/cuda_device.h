// What the kernels' launches have to know of a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>

#include "common/argument_checks.h"
#include "common/launch.h"

namespace dcnv4_mm {
namespace {

int32_t attribute(cudaDeviceAttr name, int32_t device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  check(error == cudaSuccess, "dcnv4_mm: CUDA: ", cudaGetErrorString(error));
  return value;
}

// A device with its limits, which are queried once.
Device device_at(int32_t index) {
  constexpr int32_t most = 64;
  static std::array<Device, most> devices;
  static std::array<std::once_flag, most> queried;
  check(index >= 0 && index < most, "dcnv4_mm: device ", index, " is beyond the supported ", most);
  std::call_once(queried[index], [index] {
    devices[index] = {index,
                      {attribute(cudaDevAttrMultiProcessorCount, index),
                       attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, index),
                       attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
                       10 * attribute(cudaDevAttrComputeCapabilityMajor, index) +
                           attribute(cudaDevAttrComputeCapabilityMinor, index)}};
  });
  return devices[index];
}

}  // namespace
}  // namespace dcnv4_mm
