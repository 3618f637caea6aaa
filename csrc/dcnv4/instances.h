// Which instances of the kernels exist, and which one serves a problem: the GPU launches them, the
// tests run them on the host.
#pragma once

#include <type_traits>

#include "common/dispatch.h"
#include "dcnv4/launch.h"

namespace dcnv4_mm::dcnv4 {

// Calls function(vector, special) with constants; there is code of its own for the 3x3 kernel where
// the vectors are of the full width.
template <typename Storage, typename Function>
void with_instance(const Params& p, Function function) {
  constexpr int widest = kWidestLoad / int(sizeof(Storage));
  const int32_t vector = vector_channels(p);
  if constexpr (sizeof(Storage) < sizeof(double)) {
    if (vector == widest && special_points(p) == 9) {
      return function(Constant<widest>{}, Constant<9>{});
    }
    if (vector == widest && special_points(p) == 8) {
      return function(Constant<widest>{}, Constant<8>{});
    }
  }
  with_vector<widest>(vector, [&](auto channels) { function(channels, Constant<0>{}); });
}

// The same for the forward, with whether float16 corners are summed in float16 as the third.
template <typename Storage, typename Function>
void with_forward_instance(const Params& p, bool fast, Function function) {
  with_instance<Storage>(p, [&](auto vector, auto special) {
    if constexpr (std::is_same_v<Storage, Half> && vector == 8) {
      if (fast) return function(vector, special, std::true_type{});
    }
    function(vector, special, std::false_type{});
  });
}

}  // namespace dcnv4_mm::dcnv4
