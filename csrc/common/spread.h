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
// neighbours to fill one. `vector` channels of the gradient that is spread can be loaded at once;
// sums have the type of the arithmetic, or are integers of 64 bits.
inline Spread choose_spread(int64_t channels, DType dtype, int32_t vector, bool fixed,
                            const DeviceLimits& limits) {
  constexpr int32_t most_channels = 8, sector = 32;
  const int32_t bytes = fixed ? 8 : real_bytes(dtype);
  const bool wide = limits.capability >= 90 && bytes == 4 && vector >= 4;
  const int32_t unit = wide ? 4 : 1;
  const int64_t all = channels / unit, neighbours = sector / (unit * bytes);
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

// Calls function(units) with a constant, for fixed-point sums: of these there are fewer instances.
template <typename Storage, typename Function>
void with_fixed_spread(const Spread& spread, Function function) {
  if constexpr (sizeof(Storage) < sizeof(double)) {
    if (spread.units == 8) return function(Constant<8>{});
    if (spread.units == 4) return function(Constant<4>{});
  }
  function(Constant<1>{});
}

}  // namespace dcnv4_mm
