// A multiprocessor that runs one block after the other.
#pragma once

#include <random>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

// What a kernel did; sectors are 32 bytes. Requests are those of a warp.
struct Counters {
  int64_t launches = 0, blocks = 0, warps = 0;
  // Of warps, and of threads.
  int64_t instructions = 0, thread_instructions = 0;
  int64_t load_requests = 0, load_sectors = 0, store_sectors = 0;
  int64_t atomic_requests = 0, atomic_sectors = 0;
  // Passes that the banks of shared memory need, and the fewest that these requests could.
  int64_t shared_passes = 0, shared_passes_at_best = 0;
};

struct Launch {
  const Kernel& kernel;
  int64_t blocks, threads, shared_bytes;
  std::vector<unsigned char> parameters;
};

// What the warps of a block share.
struct Block {
  const Launch& launch;
  GlobalMemory& global;
  SharedMemory shared;
  Counters& counters;
  std::mt19937& random;
  int64_t index = 0;
};

struct Warp {
  Block* block;
  int32_t index;
  std::vector<Lanes> registers;
  std::array<int32_t, kLanes> next;  // instruction
  Mask live, waiting;                // threads that have not ended; those at a barrier

  Lanes& operator[](int32_t number) { return registers[number]; }
  int32_t thread(int lane) const { return index * kLanes + lane; }
  int64_t thread_in_grid(int lane) const {
    return block->index * block->launch.threads + thread(lane);
  }
};

// Runs blocks, and between barriers warps, in random order. Throws a Fault.
void run(const Launch& launch, GlobalMemory* global, Counters* counters, std::mt19937* random);

}  // namespace ptx
