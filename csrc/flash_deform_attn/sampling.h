// Where the points of deformable attention lie: in the image of their query.
#pragma once

#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// See tile.h.
struct Sampling {
  using Params = flash_deform_attn::Params;
  using Geometry = LevelTable;

  const Params& p;
  const Geometry& levels;

  static constexpr bool kOneImage = true, kNormalized = true;

  DCNV4_MM_DEVICE_METHOD int32_t cameras() const { return 1; }
  DCNV4_MM_DEVICE_METHOD bool sees(const Pair&, int32_t) const { return true; }
  DCNV4_MM_DEVICE_METHOD int32_t count(const Pair&) const { return 1; }
  DCNV4_MM_DEVICE_METHOD int64_t image(const Pair& pair, int32_t) const { return pair.image; }

  template <typename Team>
  DCNV4_MM_DEVICE_METHOD bool sees_tile(const Tiling&, const Tile&, int32_t, Team&) const {
    return true;
  }

  DCNV4_MM_DEVICE_METHOD LevelPoint point(const Tiling& t, int32_t k) const {
    return {levels.entries[divide(k, t.level_points)], 0};
  }

  template <typename Real>
  DCNV4_MM_DEVICE_METHOD std::nullptr_t origins(const Pair&, int32_t) const {
    return nullptr;
  }

  template <typename Real>
  DCNV4_MM_DEVICE_METHOD Position<Real> coordinates(const LevelPoint& at, std::nullptr_t, Real x,
                                                    Real y) const {
    return {y * Real(at.level.height) - Real(0.5), x * Real(at.level.width) - Real(0.5)};
  }
};

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
