// Measures what a device can do at most: the ceilings that kernels are compared with.
//
// Prints lines "name value unit". Build and run: nvcc -O3 -arch=native gpu_ceilings.cu && ./a.out
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define CHECK(call)                                                        \
  do {                                                                     \
    cudaError_t status = (call);                                           \
    if (status != cudaSuccess) {                                           \
      std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status)); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

constexpr int kThreads = 256;
constexpr int kLoads = 1024;
constexpr unsigned kTableVectors = 1024;  // 16 KB: stays in L1

// Every thread loads 16-byte vectors from a small table; `kRun` neighbouring lanes read
// neighbouring vectors, the runs of a warp lie apart. A wavefront of L1 carries 128 bytes of at
// most 4 lines. All sizes are powers of two known to the compiler: a division would be slower than
// the load.
template <unsigned kRun>
__global__ void gather(const uint4* __restrict__ table, uint4* out) {
  const unsigned lane = threadIdx.x % kRun, group = threadIdx.x / kRun;
  unsigned state = group * 747796405u + blockIdx.x * 2891336453u + 1;
  uint4 sum = make_uint4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = 0; i < kLoads; ++i) {
    state = state * 1664525u + 1013904223u;
    const unsigned start = (state >> 12) & (kTableVectors - kRun);
    const uint4 vector = __ldg(table + start + lane);
    sum.x ^= vector.x, sum.y ^= vector.y, sum.z ^= vector.z, sum.w ^= vector.w;
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Additions of 4-byte elements in L2, `overlap` blocks to the same addresses.
__global__ void add_scalars(float* out, int64_t size, int overlap) {
  const int64_t start = int64_t(blockIdx.x / overlap) * blockDim.x + threadIdx.x;
  for (int64_t i = start; i < size; i += int64_t(gridDim.x / overlap) * blockDim.x) {
    atomicAdd(out + i, 1.0f);
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__global__ void add_vectors(float4* out, int64_t size, int overlap) {
#if defined(__CUDA_ARCH__)
  const int64_t start = int64_t(blockIdx.x / overlap) * blockDim.x + threadIdx.x;
  for (int64_t i = start; i < size; i += int64_t(gridDim.x / overlap) * blockDim.x) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(out + i), "f"(1.0f));
  }
#endif
}
#else
__global__ void add_vectors(float4*, int64_t, int) {}
#endif

template <typename Launch>
double seconds(Launch launch) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float best = 1e30f;
  for (int i = 0; i < 12; ++i) {
    CHECK(cudaEventRecord(start));
    launch();
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float milliseconds;
    CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
    if (i >= 2 && milliseconds < best) best = milliseconds;
  }
  return best * 1e-3;
}

void print_gather(int run, int blocks, double time) {
  const double bytes = 16.0 * kLoads * kThreads * blocks;
  std::printf("gather_%d_bytes %.1f GB/s\n", 16 * run, bytes / time * 1e-9);
}

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  const int blocks = device.multiProcessorCount * 16;
  const int64_t bytes = int64_t(1) << 31;
  void *first, *second;
  CHECK(cudaMalloc(&first, bytes));
  CHECK(cudaMalloc(&second, bytes));
  CHECK(cudaMemset(first, 1, bytes));
  CHECK(cudaMemset(second, 0, bytes));

  const double copy =
      seconds([&] { CHECK(cudaMemcpyAsync(second, first, bytes, cudaMemcpyDeviceToDevice)); });
  std::printf("copy %.1f GB/s\n", 2 * bytes / copy * 1e-9);
  const auto* table = static_cast<const uint4*>(first);
  auto* sums = static_cast<uint4*>(second);
  print_gather(8, blocks, seconds([&] { gather<8><<<blocks, kThreads>>>(table, sums); }));
  print_gather(4, blocks, seconds([&] { gather<4><<<blocks, kThreads>>>(table, sums); }));
  print_gather(2, blocks, seconds([&] { gather<2><<<blocks, kThreads>>>(table, sums); }));
  print_gather(1, blocks, seconds([&] { gather<1><<<blocks, kThreads>>>(table, sums); }));
  const int64_t elements = bytes / 4 / 8;
  for (int overlap : {1, 16}) {
    const double scalar = seconds(
        [&] { add_scalars<<<blocks, kThreads>>>(static_cast<float*>(first), elements, overlap); });
    std::printf("add_f32_overlap_%d %.1f Gadd/s\n", overlap, 1e-9 * overlap * elements / scalar);
    if (device.major < 9) continue;
    const double vector = seconds([&] {
      add_vectors<<<blocks, kThreads>>>(static_cast<float4*>(first), elements / 4, overlap);
    });
    std::printf("add_v4_f32_overlap_%d %.1f Gadd/s\n", overlap, 1e-9 * overlap * elements / vector);
  }
  return 0;
}
