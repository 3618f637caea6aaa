// One DCNv4 problem as the kernels see it: sizes, and pointers with their pitches.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace dcnv4_mm::dcnv4 {

// Distances in elements between neighbours of a tensor (N, rows, columns, channels); the channels
// of a pixel are adjacent, and rows are a whole number of pixels apart.
struct Pitches {
  int64_t image;
  int64_t row;
  int64_t pixel;
};

// Pairs are (rows, columns). All tensors have the type `dtype`; what a call does not use is null.
// Symbols: N batch, H x W input, Ho x Wo output, G groups of D channels, K points.
struct Params {
  DType dtype;
  int64_t batch;
  int64_t height, width;          // H, W
  int64_t out_height, out_width;  // Ho, Wo
  int64_t groups;                 // G
  int64_t group_channels;         // D
  int64_t points;                 // K
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  double offset_scale;
  bool remove_center;

  const void* value;  // [N, H, W, G * D]
  Pitches value_pitches;
  const void* offset_mask;  // [N, Ho, Wo, M], M >= 3 * G * K
  Pitches offset_mask_pitches;
  void* output;  // [N, Ho, Wo, G * D], contiguous

  const void* grad_output;  // [N, Ho, Wo, G * D]
  Pitches grad_output_pitches;
  void* grad_value;              // [N, H, W, G * D], contiguous
  void* grad_offset_mask;        // [N, Ho, Wo, M], contiguous
  int64_t offset_mask_channels;  // M
};

}  // namespace dcnv4_mm::dcnv4
