// How the GPU kernels of BEV cross-attention divide a problem among blocks and threads: as those of
// deformable attention do. A block goes through the cameras that see one of its queries, one after
// the other.
#pragma once

#include "bev_cross_attn/params.h"
#include "flash_deform_attn/launch.h"

namespace dcnv4_mm::bev_cross_attn {

using flash_deform_attn::LevelTable;
using flash_deform_attn::Tiling;

// What the kernels know of levels and pillars.
struct Geometry {
  LevelTable levels;
  Divisor pillar;
};

inline Geometry geometry_of(const Params& p) {
  return {flash_deform_attn::geometry_of(p), divisor_of(p.pillar)};
}

// A query samples those of the images of its sample that see it.
inline int64_t images_per_query(const Params& p) { return p.cameras; }

// The images of all cameras as a batch.
inline flash_deform_attn::Params images_of(const Params& p) {
  flash_deform_attn::Params images = p;
  images.batch *= p.cameras;
  return images;
}

// Why the kernels cannot index a problem, or null.
inline const char* why_too_large(const Params& p) {
  if (p.pillar >= int64_t(1) << 30) return "2^30 points of a pillar";
  return flash_deform_attn::why_too_large(p);
}

inline int32_t vector_channels(const Params& p) {
  return flash_deform_attn::vector_channels(images_of(p));
}

}  // namespace dcnv4_mm::bev_cross_attn
