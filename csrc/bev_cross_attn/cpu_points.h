// Sampling points of the CPU kernels of BEV cross-attention: reading them, locating them in all
// cameras that see their query, differentiating by them. The loops run over vectors of points.
#pragma once

#include "bev_cross_attn/cpu.h"
#include "flash_deform_attn/cpu_points.h"

namespace dcnv4_mm::bev_cross_attn::cpu {
namespace {

using flash_deform_attn::cpu::copy;
using flash_deform_attn::cpu::Items;

// The points of one head of one query, and their samples in the cameras that see it: those of the
// first camera, then those of the next. Whole vectors of points are computed: the arrays have room
// for that at their ends.
template <typename Real>
struct Block : Samples<Real> {
  using Samples<Real>::pixel, Samples<Real>::right, Samples<Real>::down;
  using Samples<Real>::weight, Samples<Real>::dots;
  using Int = IntOf<Real>;
  static constexpr int64_t kArraysOfPoints = 12, kArraysOfSamples = 13;

  int64_t points;        // L * P
  Real* offsets;         // [points, 2]
  Real* softmaxed;       // [points]: softmax of the logits
  Real* grad_offsets;    // [points, 2]
  Real* grad_softmaxed;  // [points]
  Real* sizes;           // [points, 2]: width and height of the point's level
  Real *height, *width;
  Int* start;        // the level's first pixel
  Int* pillar;       // the point's reference
  Real* anchors;     // [samples, 2]: reference points in pixels
  int64_t* cameras;  // [N]: those of the samples

  static int64_t round(int64_t count) {
    constexpr int64_t lanes = kLanes<Real>;
    return (count + lanes - 1) / lanes * lanes;
  }

  static size_t bytes(const Params& p) {
    const int64_t points = p.num_levels * p.num_points;
    const int64_t samples = (p.cameras - 1) * points + round(points);
    const int64_t reals = kArraysOfPoints * round(points) + kArraysOfSamples * round(samples);
    return p.cameras * sizeof(int64_t) + reals * sizeof(Real);
  }

  Block(const Params& p, void* scratch) : points(p.num_levels * p.num_points) {
    // The ends of the last vectors are computed with, if never used.
    __builtin_memset(scratch, 0, bytes(p));
    cameras = static_cast<int64_t*>(scratch);
    Real* next = reinterpret_cast<Real*>(cameras + p.cameras);
    const auto take = [&next](int64_t count) { return (next += count) - count; };
    const int64_t capacity = round(points);
    offsets = take(2 * capacity);
    softmaxed = take(capacity);
    grad_offsets = take(2 * capacity);
    grad_softmaxed = take(capacity);
    sizes = take(2 * capacity);
    height = take(capacity);
    width = take(capacity);
    start = reinterpret_cast<Int*>(take(capacity));
    pillar = reinterpret_cast<Int*>(take(capacity));
    const int64_t samples = round((p.cameras - 1) * points + capacity);
    anchors = take(2 * samples);
    dots = take(4 * samples);
    for (Real*& array : weight) array = take(samples);
    pixel = reinterpret_cast<Int*>(take(samples));
    right = reinterpret_cast<Int*>(take(samples));
    down = reinterpret_cast<Int*>(take(samples));
    for (int64_t i = 0; i < points; ++i) {
      const Level& level = p.levels[i / p.num_points];
      sizes[2 * i] = width[i] = Real(level.width);
      sizes[2 * i + 1] = height[i] = Real(level.height);
      start[i] = Int(level.start);
      pillar[i] = Int(i % p.num_points % p.pillar);
    }
  }
};

// Calls function(item) for all heads of the given rows of the flattened (B, Q).
template <typename Function>
DCNV4_MM_INLINE void for_items(const Params& p, const int64_t* rows, int64_t count,
                               Function&& function) {
  for (int64_t i = 0; i < count; ++i) {
    for (Items item(p, rows[i], 0, p.heads); item.row == rows[i]; item.next()) function(item);
  }
}

// How many cameras see a query.
struct CameraCounts {
  int64_t all;
  int64_t listed;  // of those in the given range
};

// Finds the cameras that see the query of `item`, lists those among [begin, end), and finds the
// reference points of the samples in them.
template <typename Real>
DCNV4_MM_INLINE CameraCounts find_cameras(const Params& p, const Items& item, int64_t begin,
                                          int64_t end, const Block<Real>& block) {
  const auto at = [&](const CameraPitches& pitches, int64_t camera) {
    return item.image * pitches.sample + camera * pitches.camera + item.query * pitches.query;
  };
  CameraCounts counts{};
  for (int64_t camera = 0; camera < p.cameras; ++camera) {
    if (!p.bev_mask[at(p.bev_mask_pitches, camera)]) continue;
    ++counts.all;
    if (camera < begin || camera >= end) continue;
    const Real* references =
        static_cast<const Real*>(p.reference_points) + at(p.reference_pitches, camera);
    Real* anchors = block.anchors + 2 * counts.listed * block.points;
    for (int64_t k = 0; k < block.points; ++k) {
      const Real* reference = references + 2 * block.pillar[k];
      anchors[2 * k] = reference[0] * block.sizes[2 * k];
      anchors[2 * k + 1] = reference[1] * block.sizes[2 * k + 1];
    }
    block.cameras[counts.listed++] = camera;
  }
  return counts;
}

// Reads offsets and logits of an item, and applies the softmax to the logits.
template <typename Points, typename Real>
DCNV4_MM_INLINE void read_points(const Params& p, const Items& item, const Block<Real>& block) {
  copy(item.at(static_cast<const Points*>(p.locations), p.location_pitches), 2 * block.points,
       block.offsets);
  copy(item.at(static_cast<const Points*>(p.weights), p.weight_pitches), block.points,
       block.softmaxed);
  flash_deform_attn::cpu::softmax(block.points, block.softmaxed);
}

// The geometry of one vector of points, from `i` on, in the listed camera `index`.
template <typename Real>
DCNV4_MM_INLINE Positions<Real> positions_of(const Block<Real>& block, int64_t index, int64_t i) {
  constexpr int lanes = kLanes<Real>;
  const Real* anchors = block.anchors + 2 * (index * block.points + i);
  const Real* offsets = block.offsets + 2 * i;
  const auto half = broadcast<lanes>(Real(0.5));
  const auto low = load<lanes>(anchors) + load<lanes>(offsets) - half;
  const auto high = load<lanes>(anchors + lanes) + load<lanes>(offsets + lanes) - half;
  return Positions<Real>(every_second<1>(low, high), every_second<0>(low, high),
                         load<lanes>(block.height + i), load<lanes>(block.width + i));
}

// Finds the pixels and weights of the samples in all listed cameras. Pixels are counted from the
// first one of the first camera.
template <typename Real>
DCNV4_MM_INLINE void locate_samples(const Params& p, const CameraCounts& counts,
                                    const Block<Real>& block) {
  using Int = IntOf<Real>;
  constexpr int lanes = kLanes<Real>;
  const auto part = broadcast<lanes>(Real(1) / Real(counts.all));
  for (int64_t index = 0; index < counts.listed; ++index) {
    const Int first = Int(block.cameras[index] * p.pixels);
    for (int64_t i = 0; i < block.points; i += lanes) {
      const auto start = load_bits<Vector<Int, lanes>>(block.start + i) + first;
      locate<Real>(positions_of(block, index, i), start, truncate(load<lanes>(block.width + i)),
                   load<lanes>(block.softmaxed + i) * part, index * block.points + i, block);
    }
  }
}

// Turns the dot products of the samples into gradients of the offsets and of the softmax.
template <typename Real>
DCNV4_MM_INLINE void differentiate_samples(const CameraCounts& counts, const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  const auto none = broadcast<lanes>(Real(0));
  const auto part = broadcast<lanes>(Real(1) / Real(counts.all));
  for (int64_t i = 0; i < block.points; i += lanes) {
    const auto weight = load<lanes>(block.softmaxed + i) * part;
    auto sum_x = none, sum_y = none, sum = none;
    for (int64_t index = 0; index < counts.listed; ++index) {
      const Positions<Real> positions = positions_of(block, index, i);
      const auto grad = differentiate(positions, block.dots + 4 * (index * block.points + i));
      sum_x += positions.inside ? weight * grad.by_x : none;
      sum_y += positions.inside ? weight * grad.by_y : none;
      sum += positions.inside ? part * grad.sample : none;
    }
    store<lanes>(block.grad_offsets + 2 * i, interleave<0>(sum_x, sum_y));
    store<lanes>(block.grad_offsets + 2 * i + lanes, interleave<1>(sum_x, sum_y));
    store<lanes>(block.grad_softmaxed + i, sum);
  }
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn::cpu
