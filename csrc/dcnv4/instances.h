// Which instances of the kernels exist, and which one serves a problem: the GPU launches them, the
// tests run them on the host.
#pragma once

#include <type_traits>

#include "common/dispatch.h"
#include "dcnv4/launch.h"

namespace dcnv4_mm::dcnv4 {

// Calls function(vector, special) with constants; there is code of its own for the 3x3 kernel where
// the vectors are of the full width, and so few that sums over them have small errors.
template <typename Storage, typename Function>
void with_instance(const Params& p, Function function) {
  constexpr int widest = kWidestLoad / int(sizeof(Storage));
  const int32_t vector = vector_channels(p);
  if constexpr (sizeof(Storage) < sizeof(double)) {
    const bool fits = vector == widest && p.group_channels <= 16 * widest && has_window(p);
    const int32_t special = fits ? special_points(p) : 0;
    if (special == 9) return function(Constant<widest>{}, Constant<9>{});
    if (special == 8) return function(Constant<widest>{}, Constant<8>{});
  }
  with_vector<widest>(vector, [&](auto channels) { function(channels, Constant<0>{}); });
}

// Ways of the forward kernel, which can be added.
enum ForwardWay : int {
  kPlain = 0,
  kFast = 1,   // float16 corners are summed in float16
  kAlone = 2,  // a group has one thread: 3x3 points need not go through shared memory
};

template <int special, int way>
Tiling choose_forward_tiling(const Params& p, int32_t vector, const DeviceLimits& limits) {
  constexpr Shared window = way & kAlone ? Shared::kNothing : Shared::kWindow;
  return choose_tiling(p, vector, limits, special ? window : Shared::kSamples);
}

// The same for the forward, with the sum of its ways as the third. Two vectors of the full width
// per thread halve the work of locating points and of addresses.
template <typename Storage, typename Function>
void with_forward_instance(const Params& p, bool fast, Function function) {
  constexpr int widest = kWidestLoad / int(sizeof(Storage));
  const auto with_way = [&](auto vector, auto special, auto way) {
    if constexpr (std::is_same_v<Storage, Half> && vector % widest == 0) {
      if (fast) return function(vector, special, Constant<way | kFast>{});
    }
    function(vector, special, way);
  };
  const auto with_lanes = [&](auto special) {
    const bool pairs = p.group_channels % (2 * widest) == 0;
    if (!pairs || p.group_channels > kMostVectors * widest)
      return with_way(Constant<widest>{}, special, Constant<kPlain>{});
    if constexpr (sizeof(Storage) == sizeof(Half)) {
      if (p.group_channels == 2 * widest) {
        return with_way(Constant<2 * widest>{}, special, Constant<kAlone>{});
      }
    }
    with_way(Constant<2 * widest>{}, special, Constant<kPlain>{});
  };
  const int32_t vector = vector_channels(p);
  if constexpr (sizeof(Storage) < sizeof(double)) {
    const int32_t special = vector == widest && has_window(p) ? special_points(p) : 0;
    if (special == 9) return with_lanes(Constant<9>{});
    if (special == 8) return with_lanes(Constant<8>{});
  }
  with_vector<widest>(
      vector, [&](auto channels) { with_way(channels, Constant<0>{}, Constant<kPlain>{}); });
}

}  // namespace dcnv4_mm::dcnv4
