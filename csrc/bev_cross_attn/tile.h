// The sampling points of a block of the GPU kernels: which cameras see them, and where they lie.
#pragma once

#include "bev_cross_attn/launch.h"
#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

using flash_deform_attn::add_samples;
using flash_deform_attn::AllSums;
using flash_deform_attn::corners_of;
using flash_deform_attn::grad_output_of;
using flash_deform_attn::head_of;
using flash_deform_attn::Item;
using flash_deform_attn::item_of;
using flash_deform_attn::kOutside;
using flash_deform_attn::kShareParts;
using flash_deform_attn::load_width;
using flash_deform_attn::offset_of;
using flash_deform_attn::Pair;
using flash_deform_attn::pair_of;
using flash_deform_attn::pixel_bytes;
using flash_deform_attn::Place;
using flash_deform_attn::place_of;
using flash_deform_attn::read_number;
using flash_deform_attn::row_of;
using flash_deform_attn::sample_stride;
using flash_deform_attn::Samples;
using flash_deform_attn::samples_in;
using flash_deform_attn::Share;
using flash_deform_attn::spread_samples;
using flash_deform_attn::sum_exponentials;
using flash_deform_attn::Tile;
using flash_deform_attn::tile_of;
using flash_deform_attn::units_in;
using flash_deform_attn::write_number;

DCNV4_MM_DEVICE int64_t offset_of(const CameraPitches& pitches, const Pair& pair, int32_t camera) {
  return pair.image * pitches.sample + camera * pitches.camera + pair.query * pitches.query;
}

DCNV4_MM_DEVICE bool is_hit(const Params& p, const Pair& pair, int32_t camera) {
  return p.hits[offset_of(p.hit_pitches, pair, camera)];
}

DCNV4_MM_DEVICE int32_t count_hits(const Params& p, const Pair& pair) {
  int32_t count = 0;
  for (int32_t camera = 0; camera < p.cameras; ++camera) count += is_hit(p, pair, camera);
  return count;
}

// Whether a camera sees a query of a tile.
template <typename Team>
DCNV4_MM_DEVICE bool is_tile_hit(const Params& p, const Divisor& queries, const Tile& tile,
                                 int32_t camera, Team& team) {
  return team.any([&](int32_t thread) {
    bool hit = false;
    for (int32_t i = thread; i < tile.count; i += team.threads()) {
      hit = hit || is_hit(p, pair_of(queries, tile, i), camera);
    }
    return hit;
  });
}

// Prepares the weights of the pairs of a tile: those of the pair with the index i are shares by
// shares[i * kShareParts] then, divided by the number of cameras that see its query.
template <typename Storage, typename Team>
DCNV4_MM_DEVICE void prepare_weights(const Params& p, const Divisor& queries, const Tile& tile,
                                     Share<RealOf<Storage>>* shares, Team& team) {
  sum_exponentials<Storage>(p, queries, tile, shares, team);
  team.phase([&](int32_t thread) {
    for (int32_t i = thread; i < tile.count; i += team.threads()) {
      const int32_t hits = count_hits(p, pair_of(queries, tile, i));
      shares[i * kShareParts].sum /= RealOf<Storage>(hits > 0 ? hits : 1);
    }
  });
}

// The weight of the point `k` of a pair.
template <typename Storage>
DCNV4_MM_DEVICE RealOf<Storage> weight_of(const Params& p, const Pair& pair,
                                          const Share<RealOf<Storage>>& share, int32_t k) {
  const int64_t logits = offset_of(pair, p.weight_pitches);
  return std::exp(read_number<Storage>(p, p.weights, logits + k) - share.largest) * share.sum;
}

// The level of the point `k`, and its number in a pillar.
struct Origin {
  const LevelTable::Entry& level;
  int32_t number;
};

DCNV4_MM_DEVICE Origin origin_of(const Geometry& geometry, const Divisor& level_points, int32_t k) {
  const LevelTable::Entry& level = geometry.levels.entries[divide_off(&k, level_points)];
  divide_off(&k, geometry.pillar);
  return {level, k};
}

// The point `k` of a pair in a camera.
template <typename Storage>
DCNV4_MM_DEVICE Point<RealOf<Storage>> locate_point(const Params& p, const LevelTable::Entry& level,
                                                    int32_t number, const Pair& pair,
                                                    int32_t camera, int32_t k,
                                                    RealOf<Storage> weight) {
  using Real = RealOf<Storage>;
  const Real* reference = static_cast<const Real*>(p.references) +
                          offset_of(p.reference_pitches, pair, camera) + 2 * number;
  const int64_t offset = offset_of(pair, p.location_pitches) + 2 * k;
  const Real height = Real(level.height), width = Real(level.width);
  const Real x = read(reference) * width + read_number<Storage>(p, p.locations, offset);
  const Real y = read(reference + 1) * height + read_number<Storage>(p, p.locations, offset + 1);
  return point_at(y - Real(0.5), x - Real(0.5), height, width, weight);
}

// The first pixel of a head in a camera's image.
template <typename Storage>
DCNV4_MM_DEVICE const Storage* image_of(const Params& p, const Pair& pair, int32_t camera) {
  return static_cast<const Storage*>(p.value) +
         (pair.image * p.cameras + camera) * p.value_pitches.image +
         pair.head * p.value_pitches.head;
}

// Locates the points [first, end) of a thread's pair, those that are not another thread's, if a
// camera sees it.
template <typename Storage, typename Store>
DCNV4_MM_DEVICE void locate_own(const Params& p, const Geometry& geometry, const Tiling& t,
                                const Tile& tile, int32_t camera,
                                const Share<RealOf<Storage>>* shares, const Item& item,
                                int32_t first, int32_t end, Store store) {
  if (item.pair_index >= tile.count) return;
  const Pair pair = pair_of(t.queries, tile, item.pair_index);
  if (!is_hit(p, pair, camera)) return;
  const Share<RealOf<Storage>> share = shares[item.pair_index * kShareParts];
  const int32_t count = smaller(t.points, end - first);
  for (int32_t k = item.lane; k < count; k += t.tile_vectors.value) {
    const Origin origin = origin_of(geometry, t.level_points, first + k);
    const auto weight = weight_of<Storage>(p, pair, share, first + k);
    const auto point =
        locate_point<Storage>(p, origin.level, origin.number, pair, camera, first + k, weight);
    store(item.pair_index * sample_stride(t.points) + k, pair, place_of(origin.level, point),
          point);
  }
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
