// One problem of BEV cross-attention as the kernels see it: deformable attention to several cameras
// at a time.
#pragma once

#include "flash_deform_attn/params.h"

namespace dcnv4_mm::bev_cross_attn {

using flash_deform_attn::Level;
using flash_deform_attn::Pitches;

// Distances in elements between neighbours of a tensor (B, N, Q, ...).
struct CameraPitches {
  int64_t sample;
  int64_t camera;
  int64_t query;
};

// Symbols as in flash_deform_attn, with B samples for its N images; N cameras, pillars of Z points.
// What differs from there:
//   value and grad_value are [B, N, S, G, D], and image b * N + n is a camera's. The pixels of all
//       images are equally far apart.
//   locations are offsets in pixels from a point of the pillar, and there always is a softmax.
struct Params : flash_deform_attn::Params {
  int64_t cameras;  // N
  int64_t pillar;   // Z

  const void* reference_points;  // [B, N, Q, Z * 2]: x, y, of the type of the arithmetic
  CameraPitches reference_pitches;
  const bool* bev_mask;  // [B, N, Q]
  CameraPitches bev_mask_pitches;
};

}  // namespace dcnv4_mm::bev_cross_attn
