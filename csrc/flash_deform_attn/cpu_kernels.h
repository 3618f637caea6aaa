// All CPU kernels of deformable attention for one instruction set; included by one file for each
// (see simd.h).
#pragma once

#include "flash_deform_attn/cpu_backward.h"
#include "flash_deform_attn/cpu_forward.h"

namespace dcnv4_mm::flash_deform_attn::cpu {
namespace {

template <typename Storage>
size_t scratch_bytes(const Params& params) {
  return Block<RealOf<Storage>>::bytes(params);
}

template <typename Storage, typename Points>
constexpr Kernels kernels_of() {
  return {scratch_bytes<Storage>, forward<Storage, Points>, backward_points<Storage, Points>,
          backward_value<Storage, Points>};
}

// There is no float64 value with float32 points: that entry is filled, but not used.
constexpr KernelTable kernel_table() {
  return {{
      {kernels_of<double, double>(), kernels_of<double, double>()},
      {kernels_of<float, float>(), kernels_of<float, float>()},
      {kernels_of<Half, Half>(), kernels_of<Half, float>()},
      {kernels_of<BFloat16, BFloat16>(), kernels_of<BFloat16, float>()},
  }};
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cpu
