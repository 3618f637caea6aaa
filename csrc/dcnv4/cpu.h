// The CPU kernels of DCNv4, compiled once per instruction set. None of them uses threads: the
// caller divides the work. Whatever the division, the results are the same bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dcnv4/params.h"

namespace dcnv4_mm::dcnv4::cpu {

// Consecutive output pixels of an image whose points are looked at together, or skipped.
constexpr int64_t kSegmentPixels = 64;

// The rows of value between which the points of a segment lie; low > high if there are none.
struct SegmentRows {
  double low, high;
};

// A part of grad_value that one call owns: rows of one image, of some groups.
struct Slab {
  int64_t image;
  const SegmentRows* segments;  // of the image, or null: no segment is skipped
  int64_t row_begin, row_end;
  int64_t group_begin, group_end;
};

// Kernels for one storage type. `scratch` has at least scratch_bytes(params).
struct Kernels {
  size_t (*scratch_bytes)(const Params& params);
  // Computes the output pixels [begin, end) of the flattened (N, Ho, Wo).
  void (*forward)(const Params& params, int64_t begin, int64_t end, void* scratch);
  // Computes the rows [begin, end) of grad_offset_mask, of the flattened (N, Ho, Wo).
  void (*backward_offset_mask)(const Params& params, int64_t begin, int64_t end, void* scratch);
  // Finds the rows of the segments [begin, end) of all images, one image after the other.
  void (*find_rows)(const Params& params, int64_t begin, int64_t end, SegmentRows* segments,
                    void* scratch);
  // Computes a part of grad_value. `sums` is null, or memory of the arithmetic's type for the
  // slab; it is needed where the storage type is narrower.
  void (*backward_value)(const Params& params, const Slab& slab, void* sums, void* scratch);
};

// The kernels of one instruction set for every DType, in its order.
struct KernelTable {
  Kernels kernels[4];
};

extern const KernelTable kDefaultKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

}  // namespace dcnv4_mm::dcnv4::cpu
