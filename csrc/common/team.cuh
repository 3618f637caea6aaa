// The threads of a block, as kernel bodies see them.
#pragma once

#include <cstdint>

namespace dcnv4_mm {

// Blocks of 256 threads that fill half of a multiprocessor; the host does not need it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kHalfFull = 2;
#elif defined(__CUDA_ARCH__) && \
    ((__CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1100)
constexpr int kHalfFull = 3;
#else
constexpr int kHalfFull = 4;
#endif

namespace {

// Shared memory is as long as the launch says.
class DeviceTeam {
 public:
  // A thread's own state, kept from one phase to the next.
  template <typename State>
  class PerThread {
   public:
    __device__ explicit PerThread(const DeviceTeam&) {}
    __device__ State& operator[](int32_t) { return state_; }

   private:
    State state_;
  };

  __device__ int32_t threads() const { return blockDim.x; }

  __device__ void* shared() const {
    extern __shared__ __align__(32) unsigned char memory[];
    return memory;
  }

  template <typename Function>
  __device__ __forceinline__ void phase(Function function) {
    function(static_cast<int32_t>(threadIdx.x));
    __syncthreads();
  }

  // A phase of functions that return whether they found something; returns whether one did.
  template <typename Function>
  __device__ __forceinline__ bool any(Function function) {
    return __syncthreads_or(function(static_cast<int32_t>(threadIdx.x)));
  }
};

}  // namespace
}  // namespace dcnv4_mm
