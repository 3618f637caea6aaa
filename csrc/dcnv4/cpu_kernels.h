// All CPU kernels of DCNv4 for one instruction set; included by one file for each (see simd.h).
#pragma once

#include "dcnv4/cpu_backward.h"
#include "dcnv4/cpu_forward.h"

namespace dcnv4_mm::dcnv4::cpu {
namespace {

template <typename Storage>
size_t scratch_bytes(const Params& params) {
  return Block<RealOf<Storage>>::bytes(params);
}

template <typename Storage>
constexpr Kernels kernels_of() {
  return {scratch_bytes<Storage>, forward<Storage>, backward_offset_mask<Storage>,
          find_rows<Storage>, backward_value<Storage>};
}

constexpr KernelTable kernel_table() {
  return {{kernels_of<double>(), kernels_of<float>(), kernels_of<Half>(), kernels_of<BFloat16>()}};
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4::cpu
