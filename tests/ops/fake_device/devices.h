// The devices that tests run CUDA code as if on, where there is no GPU. Included after the CUDA
// runtime's API, or what stands in for it.
#pragma once

namespace fake_device {

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

inline int current = 0;

// Whether there is one of this name, which is then the current one.
inline bool use(const std::string& name) {
  for (const Device& device : kDevices) {
    if (device.name != name) continue;
    current = static_cast<int>(&device - kDevices);
    return true;
  }
  return false;
}

inline cudaError_t attribute(int* value, cudaDeviceAttr name, int index) {
  const Device& device = kDevices[index];
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
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

}  // namespace fake_device
