// The threads of a block on the host: one after the other in each phase, in random order. Shared
// memory starts as NaN.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <random>
#include <vector>

namespace host_cuda {

inline std::mt19937 random_order;

inline std::vector<int32_t> shuffled(int64_t size) {
  std::vector<int32_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_order);
  return order;
}

// What the hardware provides to a kernel's block.
inline struct {
  uint32_t block;
  int32_t threads, shared_bytes;
  bool dry;  // blocks are not run
  const char* kernel;
} running;

// Thrown by the team of a block that is not to be run.
struct DryRun {};

}  // namespace host_cuda

inline struct {
  struct {
    operator uint32_t() const { return host_cuda::running.block; }
  } x;
} blockIdx;

namespace dcnv4_mm {

constexpr int kHalfFull = 4;

namespace {

class DeviceTeam {
 public:
  template <typename State>
  class PerThread {
   public:
    explicit PerThread(const DeviceTeam& team) : states_(team.threads()) {}
    State& operator[](int32_t thread) { return states_[thread]; }

   private:
    std::vector<State> states_;
  };

  // Made first in a kernel, whose name it notes.
  explicit DeviceTeam(const char* kernel = __builtin_FUNCTION()) {
    host_cuda::running.kernel = kernel;
    if (host_cuda::running.dry) throw host_cuda::DryRun();
    constexpr size_t alignment = 32;
    // Not one byte more than the launch says, so that sanitizers see who reads beyond.
    const int32_t bytes = host_cuda::running.shared_bytes;
    if (posix_memalign(&shared_, alignment, std::max(bytes, 1))) throw std::bad_alloc();
    std::memset(shared_, 0xff, bytes);
  }
  DeviceTeam(const DeviceTeam&) = delete;
  ~DeviceTeam() { free(shared_); }

  int32_t threads() const { return host_cuda::running.threads; }
  void* shared() { return shared_; }

  template <typename Function>
  void phase(Function function) {
    for (int32_t thread : host_cuda::shuffled(threads())) function(thread);
  }

  template <typename Function>
  bool any(Function function) {
    bool found = false;
    phase([&](int32_t thread) { found = function(thread) || found; });
    return found;
  }

 private:
  void* shared_ = nullptr;
};

}  // namespace
}  // namespace dcnv4_mm
