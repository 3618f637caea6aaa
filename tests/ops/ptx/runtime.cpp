// What stands in for libcudart: nvcc's host code registers its kernels here and launches them, and
// the interpreter runs them. Beside it, what the test says and asks.
#include <cuda_runtime_api.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "devices.h"
#include "machine.h"

#define VISIBLE extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint64_t kSharedByDefault = 48 << 10;

struct Configuration {
  dim3 blocks, threads;
  size_t shared_bytes;
  cudaStream_t stream;
};

// All there is of a device: kernels, memory, and what was counted.
struct Device {
  std::map<const void*, std::string> kernels;         // host function -> name
  std::map<int, std::vector<ptx::Program>> programs;  // by architecture
  std::map<std::pair<const void*, int>, uint64_t> allowed_shared_bytes;
  std::vector<Configuration> configurations;
  ptx::GlobalMemory memory;
  std::map<std::string, ptx::Counters> counters;
  std::mt19937 random;
  std::string error;
};

// Made when it is first needed: kernels are registered before other objects exist.
Device& device() {
  static Device device;
  return device;
}

// Of the newest architecture that the current device can run, as a driver chooses it.
const ptx::Kernel* find_kernel(const std::string& name) {
  const auto& current = fake_device::kDevices[fake_device::current];
  const auto newer = device().programs.upper_bound(10 * current.major + current.minor);
  if (newer == device().programs.begin()) return nullptr;
  for (ptx::Program& program : std::prev(newer)->second) {
    if (const ptx::Kernel* kernel = program.find(name)) return kernel;
  }
  return nullptr;
}

void launch(const void* function, dim3 blocks, dim3 threads, void** arguments, size_t bytes) {
  const std::string& name = device().kernels.at(function);
  const ptx::Kernel* kernel = find_kernel(name);
  if (!kernel) throw ptx::Fault("no PTX for this device");
  if (blocks.y * blocks.z * threads.y * threads.z != 1) throw ptx::Fault("not a 1-D launch");
  const uint64_t shared_bytes = kernel->shared_bytes + bytes;
  const auto allowed = device().allowed_shared_bytes.find({function, fake_device::current});
  const bool is_allowed = allowed != device().allowed_shared_bytes.end();
  const uint64_t most = is_allowed ? allowed->second : kSharedByDefault;
  if (shared_bytes > most) {
    throw ptx::Fault("a block may have " + std::to_string(most) + " bytes of shared memory, not " +
                     std::to_string(shared_bytes));
  }
  ptx::Launch launch{*kernel, blocks.x, threads.x, static_cast<int64_t>(bytes), {}};
  launch.parameters.assign(kernel->parameter_bytes, 0);
  for (size_t i = 0; i < kernel->parameters.size(); ++i) {
    const auto& [offset, size] = kernel->parameters[i];
    std::memcpy(&launch.parameters[offset], arguments[i], size);
  }
  ptx::run(launch, &device().memory, &device().counters[name], &device().random);
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  device().kernels[function] = name;
}

unsigned __cudaPushCallConfiguration(dim3 blocks, dim3 threads, size_t shared_bytes,
                                     cudaStream_t stream) {
  device().configurations.push_back({blocks, threads, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* blocks, dim3* threads, size_t* shared_bytes,
                                       void* stream) {
  const Configuration& last = device().configurations.back();
  *blocks = last.blocks;
  *threads = last.threads;
  *shared_bytes = last.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  device().configurations.pop_back();
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 blocks, dim3 threads, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  try {
    launch(function, blocks, threads, arguments, shared_bytes);
    return cudaSuccess;
  } catch (const ptx::Fault& fault) {
    device().error = std::string(fault.what()) + "; " + device().kernels.at(function);
    return cudaErrorLaunchFailure;
  }
}

// Newer compilers launch by a handle.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void** arguments,
                               size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, blocks, threads, arguments, shared_bytes, stream);
}

cudaError_t cudaGetLastError() {
  return device().error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// Clears the error, whose text is whatever the interpreter found.
const char* cudaGetErrorString(cudaError_t) {
  static std::string text;
  text = std::move(device().error);
  device().error.clear();
  return text.c_str();
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  device().allowed_shared_bytes[{function, fake_device::current}] = value;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int index) {
  return fake_device::attribute(value, name, index);
}

}  // extern "C"

// What kernels may touch; writable or not.
void ptx_add_range(const void* begin, int64_t bytes, bool writable) {
  device().memory.add(begin, bytes, writable);
}

VISIBLE void ptx_load(int arch, const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  device().programs[arch].emplace_back(text.str());
}

// Chooses a device by its name and the order of blocks and warps; forgets all memory.
VISIBLE bool ptx_use(const char* name, uint32_t seed) {
  device().random.seed(seed);
  device().memory.clear();
  return fake_device::use(name);
}

// Names of the kernels that an architecture has, a line each.
VISIBLE const char* ptx_kernels(int arch) {
  static std::string text;
  text.clear();
  for (const ptx::Program& program : device().programs[arch]) {
    for (const std::string& name : program.names()) text += name + "\n";
  }
  return text.c_str();
}

// A line for each kernel that was launched since the last call: its name and all counters.
VISIBLE const char* ptx_counters() {
  static std::string text;
  std::ostringstream lines;
  for (const auto& [name, c] : device().counters) {
    lines << name;
    for (int64_t count : {c.launches, c.blocks, c.warps, c.instructions, c.thread_instructions,
                          c.load_requests, c.load_sectors, c.store_sectors, c.atomic_requests,
                          c.atomic_sectors, c.shared_passes, c.shared_passes_at_best}) {
      lines << ' ' << count;
    }
    lines << '\n';
  }
  device().counters.clear();
  text = lines.str();
  return text.c_str();
}
