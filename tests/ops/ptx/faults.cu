// Kernels that each make one mistake, and one that makes none: for the checks of the interpreter.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

void ptx_add_range(const void* begin, int64_t bytes, bool writable);

namespace {

constexpr int kThreads = 64;

__global__ void none(float* data, const float*, int) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = shared[kThreads - 1 - threadIdx.x] + 1.0f;
}

__global__ void __launch_bounds__(kThreads / 2) launch_bounds(float*, const float*, int) {}

__global__ void shared_race(float* data, const float*, int) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void shared_size(float* data, const float*, int) {
  extern __shared__ float shared[];
  shared[threadIdx.x + 1] = data[threadIdx.x];
}

__global__ void shared_unset(float* data, const float*, int) {
  extern __shared__ float shared[];
  data[threadIdx.x] = shared[threadIdx.x];
}

__global__ void misaligned(float* data, const float*, int size) {
  if (threadIdx.x == 0) *reinterpret_cast<float2*>(data + size % 2 + 1) = {};
}

__global__ void outside(float* data, const float*, int size) { data[size - threadIdx.x] = 1.0f; }

__global__ void const_input(float*, const float* input, int) {
  const_cast<float*>(input)[threadIdx.x] = 1.0f;
}

__global__ void global_race(float* data, const float*, int) { data[threadIdx.x / 2] = threadIdx.x; }

__global__ void barrier(float* data, const float*, int) {
  if (data[threadIdx.x] > 3.0f) __syncthreads();
}

__global__ void too_much(float*, const float*, int) {}

}  // namespace

// Launches the kernel of a mistake; returns what was found, or null.
extern "C" __attribute__((visibility("default"))) const char* run_fault(const char* name,
                                                                        float* data, float* input,
                                                                        int size) {
  ptx_add_range(data, size * sizeof(float), true);
  ptx_add_range(input, size * sizeof(float), false);
  const std::string kernel = name;
  const int bytes = kernel == "too_much" ? 49 << 10 : kThreads * sizeof(float);
#define RUN(name) \
  if (kernel == #name) name<<<1, kThreads, bytes>>>(data, input, size)
  RUN(none);
  RUN(launch_bounds);
  RUN(shared_race);
  RUN(shared_size);
  RUN(shared_unset);
  RUN(misaligned);
  RUN(outside);
  RUN(const_input);
  RUN(global_race);
  RUN(barrier);
  RUN(too_much);
#undef RUN
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
