// Where the points of BEV cross-attention lie: around the points of a pillar, in each camera that
// sees the query.
#pragma once

#include "bev_cross_attn/launch.h"
#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

using flash_deform_attn::LevelPoint;
using flash_deform_attn::Pair;
using flash_deform_attn::pair_of;
using flash_deform_attn::Position;
using flash_deform_attn::Tile;

DCNV4_MM_DEVICE int64_t offset_of(const CameraPitches& pitches, const Pair& pair, int32_t camera) {
  return pair.image * pitches.sample + camera * pitches.camera + pair.query * pitches.query;
}

// See flash_deform_attn/tile.h.
struct Sampling {
  using Params = bev_cross_attn::Params;
  using Geometry = bev_cross_attn::Geometry;

  const Params& p;
  const Geometry& geometry;

  static constexpr bool kOneImage = false, kNormalized = false;

  DCNV4_MM_DEVICE_METHOD int32_t cameras() const { return static_cast<int32_t>(p.cameras); }

  DCNV4_MM_DEVICE_METHOD bool sees(const Pair& pair, int32_t camera) const {
    return p.bev_mask[offset_of(p.bev_mask_pitches, pair, camera)];
  }

  DCNV4_MM_DEVICE_METHOD int32_t count(const Pair& pair) const {
    int32_t count = 0;
    for (int32_t camera = 0; camera < cameras(); ++camera) count += sees(pair, camera);
    return count;
  }

  template <typename Team>
  DCNV4_MM_DEVICE_METHOD bool sees_tile(const Tiling& t, const Tile& tile, int32_t camera,
                                        Team& team) const {
    return team.any([&](int32_t thread) {
      bool seen = false;
      for (int32_t i = thread; i < tile.count; i += team.threads()) {
        seen = seen || sees(pair_of(t, tile, i), camera);
      }
      return seen;
    });
  }

  DCNV4_MM_DEVICE_METHOD int64_t image(const Pair& pair, int32_t camera) const {
    return pair.image * p.cameras + camera;
  }

  // With its number in a pillar.
  DCNV4_MM_DEVICE_METHOD LevelPoint point(const Tiling& t, int32_t k) const {
    const auto& level = geometry.levels.entries[divide_off(&k, t.level_points)];
    divide_off(&k, geometry.pillar);
    return {level, k};
  }

  // The points of a pillar in a camera.
  template <typename Real>
  DCNV4_MM_DEVICE_METHOD const Real* origins(const Pair& pair, int32_t camera) const {
    return whole(static_cast<const Real*>(p.reference_points) +
                 offset_of(p.reference_pitches, pair, camera));
  }

  template <typename Real>
  DCNV4_MM_DEVICE_METHOD Position<Real> coordinates(const LevelPoint& at, const Real* references,
                                                    Real x, Real y) const {
    const Real* reference = references + 2 * at.number;
    return {read(reference + 1) * Real(at.level.height) + y - Real(0.5),
            read(reference) * Real(at.level.width) + x - Real(0.5)};
  }
};

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
