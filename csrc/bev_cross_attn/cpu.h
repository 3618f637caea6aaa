// The CPU kernels of BEV cross-attention, compiled once per instruction set. None of them uses
// threads: the caller divides the work. Whatever the division, the results are the same bit for
// bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bev_cross_attn/params.h"

namespace dcnv4_mm::bev_cross_attn::cpu {

// A part of grad_value that one call owns: whole rows of the levels of one head of one camera.
struct Slab {
  int64_t sample, camera;
  int64_t head;
  int64_t pixel_begin, pixel_end;  // of the camera
};

// Kernels for one pair of storage types. `scratch` has at least scratch_bytes(params).
struct Kernels {
  size_t (*scratch_bytes)(const Params& params);
  // Computes the outputs of `count` rows of the flattened (B, Q), in any order.
  void (*forward)(const Params& params, const int64_t* rows, int64_t count, void* scratch);
  // Computes grad_locations and grad_weights of the rows, likewise.
  void (*backward_points)(const Params& params, const int64_t* rows, int64_t count, void* scratch);
  // Computes a part of grad_value. `sums` is null, or memory of the arithmetic's type for the
  // slab; it is needed where the storage type is narrower.
  void (*backward_value)(const Params& params, const Slab& slab, void* sums, void* scratch);
};

// The kernels of one instruction set for every DType, in its order; the second of each for points
// in float32.
struct KernelTable {
  Kernels kernels[4][2];
};

extern const KernelTable kDefaultKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

}  // namespace dcnv4_mm::bev_cross_attn::cpu
