// How the GPU kernels add gradients to memory atomically: which channels a thread has, and how many
// of them it adds at once.
#pragma once

#include "common/dispatch.h"
#include "common/launch.h"

namespace dcnv4_mm {

// A thread adds `units` times `unit` adjacent channels. Its units are as far apart as all threads
// of the item together have channels, so that what neighbours add at a time is adjacent.
struct Spread {
  int32_t unit, units;
};

// The second level cache adds in sectors of 32 bytes: as many units of a thread as leave enough
// neighbours to fill one. `vector` channels of the gradient that is spread can be loaded at once.
inline Spread choose_spread(int64_t channels, DType dtype, int32_t vector,
                            const DeviceLimits& limits) {
  constexpr int32_t most_channels = 8, sector = 32;
  const bool wide = limits.capability >= 90 && dtype != DType::kFloat64 && vector >= 4;
  const int32_t unit = wide ? 4 : 1;
  const int64_t all = channels / unit, neighbours = sector / (unit * real_bytes(dtype));
  int32_t units = most_channels / unit;
  while (units > 1 && (all % units != 0 || all / units < neighbours)) units /= 2;
  return {unit, units};
}

// Calls function(unit, units) with constants.
template <typename Storage, typename Function>
void with_spread(const Spread& spread, Function function) {
  if constexpr (sizeof(Storage) < sizeof(double)) {
    if (spread.unit == 4) {
      return with_vector<2>(spread.units, [&](auto units) { function(Constant<4>{}, units); });
    }
  }
  with_vector<8>(spread.units, [&](auto units) { function(Constant<1>{}, units); });
}

// The shapes of two ways to a gradient of value, to compare them: clock cycles of a multiprocessor
// that each takes at least. Instructions are counted from the machine code, the rest is estimated.
//
// A block that owns pixels walks through all points of its channels, each of its warps in sequence.
inline double owned_clocks(double blocks, double warps, double points, double resident,
                           const DeviceLimits& limits) {
  constexpr double instructions = 67, issued = 3, latency = 100;  // of a point
  const double at_once = resident * limits.multiprocessors;
  const double waves = blocks > at_once ? blocks / at_once : 1;
  const double issue = blocks * warps * points * instructions / (issued * limits.multiprocessors);
  const double wait = waves * points * latency;
  return issue > wait ? issue : wait;
}

// Atomic additions are bound by the sectors that the second level cache adds.
inline double atomic_clocks(double additions, int32_t real_bytes, const DeviceLimits& limits) {
  constexpr double sectors = 0.5, sector_bytes = 32;  // per clock cycle and multiprocessor
  return additions * real_bytes / (sector_bytes * sectors * limits.multiprocessors);
}

}  // namespace dcnv4_mm
