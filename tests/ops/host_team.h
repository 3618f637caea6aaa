// Runs the bodies of GPU kernels on the host, for tests: a block's threads one after the other in
// each phase, in random order, and so its blocks; shared memory starts as NaN.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace dcnv4_mm {
namespace {

std::vector<int32_t> shuffled(int64_t size, std::mt19937& random) {
  std::vector<int32_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

class HostTeam {
 public:
  template <typename State>
  class PerThread {
   public:
    explicit PerThread(const HostTeam& team) : states_(team.threads()) {}
    State& operator[](int32_t thread) { return states_[thread]; }

   private:
    std::vector<State> states_;
  };

  HostTeam(int32_t threads, int32_t shared_bytes, std::mt19937& random)
      : threads_(threads), random_(random) {
    constexpr size_t alignment = 32;
    // Not one byte more than asked for, so that sanitizers see who reads beyond.
    if (posix_memalign(&shared_, alignment, std::max(shared_bytes, 1))) throw std::bad_alloc();
    std::memset(shared_, 0xff, shared_bytes);
  }
  HostTeam(const HostTeam&) = delete;
  ~HostTeam() { free(shared_); }

  int32_t threads() const { return threads_; }
  void* shared() { return shared_; }

  template <typename Function>
  void phase(Function function) {
    for (int32_t thread : shuffled(threads_, random_)) function(thread);
  }

  template <typename Function>
  bool any(Function function) {
    bool found = false;
    phase([&](int32_t thread) { found = function(thread) || found; });
    return found;
  }

 private:
  int32_t threads_;
  std::mt19937& random_;
  void* shared_;
};

template <typename Launch, typename Body>
void run_blocks(const Launch& launch, std::mt19937& random, Body body) {
  for (int32_t block : shuffled(launch.blocks, random)) {
    HostTeam team(launch.threads, launch.shared_bytes, random);
    body(static_cast<uint32_t>(block), team);
  }
}

// The message of what function throws, kept until the next call, or null.
template <typename Function>
const char* error_of(Function function) {
  static std::string message;
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace
}  // namespace dcnv4_mm
