// Sampling points of the CPU kernels of DCNv4: reading them, locating them, differentiating by
// them. The loops run over vectors of points.
#pragma once

#include "common/cpu_samples.h"
#include "dcnv4/cpu.h"

namespace dcnv4_mm::dcnv4::cpu {
namespace {

// Points per block: enough to amortise the loops over points, few enough to stay in the L1 cache,
// and whole vectors of whole items for the 3x3 kernel.
constexpr int64_t kBlockPoints = 144;

// Walks over items, an item being one group of one output pixel: first over the given groups, then
// over columns, rows, images.
struct Items {
  const Params* params;
  int64_t group_begin, group_end;
  int64_t group, pixel;
  int64_t image, row, column;  // of the pixel

  Items(const Params& p, int64_t first_pixel, int64_t first_group, int64_t end_group)
      : params(&p), group_begin(first_group), group_end(end_group), group(first_group) {
    pixel = first_pixel;
    column = first_pixel % p.out_width;
    row = first_pixel / p.out_width % p.out_height;
    image = first_pixel / p.out_width / p.out_height;
  }

  void next() {
    if (++group < group_end) return;
    group = group_begin;
    ++pixel;
    if (++column < params->out_width) return;
    column = 0;
    if (++row < params->out_height) return;
    row = 0;
    ++image;
  }

  template <typename Pointer>
  Pointer at(Pointer tensor, const Pitches& pitches, int64_t channel) const {
    return tensor + image * pitches.image + row * pitches.row + column * pitches.pixel + channel;
  }
};

// Distance in pixels from the kernel's first point to its centre.
DCNV4_MM_INLINE int64_t center_of(const Params& p, int axis) {
  return p.dilation[axis] * (p.kernel[axis] - 1) / 2;
}

// The sampling points of some items, in the caller's scratch memory. Whole vectors of points are
// computed: the arrays have room for that at their ends.
template <typename Real>
struct Block : Samples<Real> {
  using Samples<Real>::pixel, Samples<Real>::right, Samples<Real>::down;
  using Samples<Real>::weight, Samples<Real>::dots;
  using Int = IntOf<Real>;

  int64_t capacity;  // points
  Real* xy;          // [points, 2]: coordinates, as in offset_mask
  Real* mask;        // [points]
  Real* grid;        // [K, 2]: x and y of the kernel's points around its centre

  static int64_t capacity_of(const Params& p) {
    constexpr int64_t lanes = kLanes<Real>;
    const int64_t points = p.points < kBlockPoints ? kBlockPoints : p.points;
    return (points + lanes - 1) / lanes * lanes;
  }

  static size_t bytes(const Params& p) {
    return (14 * capacity_of(p) + 2 * p.points) * sizeof(Real);
  }

  Block(const Params& p, void* scratch) : capacity(capacity_of(p)) {
    // The ends of the last vectors are computed with, if never used.
    __builtin_memset(scratch, 0, bytes(p));
    Real* next = static_cast<Real*>(scratch);
    const auto take = [&next](int64_t count) { return (next += count) - count; };
    xy = take(2 * capacity);
    mask = take(capacity);
    dots = take(4 * capacity);
    for (Real*& array : weight) array = take(capacity);
    pixel = reinterpret_cast<Int*>(take(capacity));
    right = reinterpret_cast<Int*>(take(capacity));
    down = reinterpret_cast<Int*>(take(capacity));
    grid = take(2 * p.points);
    fill_grid(p);
  }

  // The points run over columns first, then rows.
  void fill_grid(const Params& p) {
    Real* next = grid;
    for (int64_t j = 0; j < p.kernel[1]; ++j) {
      for (int64_t i = 0; i < p.kernel[0]; ++i) {
        if (p.remove_center && i == p.kernel[0] / 2 && j == p.kernel[1] / 2) continue;
        *next++ = Real(j * p.dilation[1] - center_of(p, 1));
        *next++ = Real(i * p.dilation[0] - center_of(p, 0));
      }
    }
  }
};

// Reads the offsets and masks of one item, `points` of each, into block.xy and block.mask from the
// point `first` on. The kernel's centre is at (center_y, center_x) in the input.
template <typename Storage>
DCNV4_MM_INLINE void read_points(const Storage* source, int64_t points, RealOf<Storage> center_y,
                                 RealOf<Storage> center_x, RealOf<Storage> scale, int64_t first,
                                 const Block<RealOf<Storage>>& block) {
  constexpr int widest = kLanes<RealOf<Storage>>;
  for_vectors<widest, 2>(2 * points, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    const auto center = interleave<0>(broadcast<lanes>(center_x), broadcast<lanes>(center_y));
    const auto moved = load<lanes>(block.grid + i) + load<lanes>(source + i);
    store<lanes>(block.xy + 2 * first + i, center + moved * broadcast<lanes>(scale));
  });
  for_vectors<widest>(points, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    store<lanes>(block.mask + first + i, load<lanes>(source + 2 * points + i));
  });
}

// Reads as many items as fit into a block, from `item` on, which moves behind them. Returns the
// number of their points; `points` is that of one item.
template <typename Storage>
DCNV4_MM_INLINE int64_t read_block(Items* item, int64_t points, int64_t end_pixel,
                                   const Block<RealOf<Storage>>& block) {
  using Real = RealOf<Storage>;
  const Params& p = *item->params;
  const Storage* offset_mask = static_cast<const Storage*>(p.offset_mask);
  const Real scale = Real(p.offset_scale);
  int64_t count = 0;
  while (count + points <= block.capacity && item->pixel < end_pixel) {
    const Storage* source = item->at(offset_mask, p.offset_mask_pitches, item->group * 3 * points);
    const Real center_y = Real(item->row * p.stride[0] - p.padding[0] + center_of(p, 0));
    const Real center_x = Real(item->column * p.stride[1] - p.padding[1] + center_of(p, 1));
    do {
      read_points(source, points, center_y, center_x, scale, count, block);
      source += 3 * points;
      count += points;
      item->next();
    } while (count + points <= block.capacity && item->group != item->group_begin);
  }
  return count;
}

// The geometry of one vector of a block's points.
template <typename Real>
DCNV4_MM_INLINE Positions<Real> positions_of(const Params& p, const Block<Real>& block,
                                             int64_t first) {
  constexpr int lanes = kLanes<Real>;
  const auto low = load<lanes>(block.xy + 2 * first);
  const auto high = load<lanes>(block.xy + 2 * first + lanes);
  return Positions<Real>(every_second<1>(low, high), every_second<0>(low, high),
                         broadcast<lanes>(Real(p.height)), broadcast<lanes>(Real(p.width)));
}

// Finds the pixels and weights of the first `count` points of a block, in images whose rows are
// `row_pixels` pixels apart.
template <typename Real>
DCNV4_MM_INLINE void locate_points(const Params& p, int64_t row_pixels, int64_t count,
                                   const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  const auto row_pitch = broadcast<lanes>(IntOf<Real>(row_pixels));
  for (int64_t i = 0; i < count; i += lanes) {
    locate<Real>(positions_of(p, block, i), row_pitch - row_pitch, row_pitch,
                 load<lanes>(block.mask + i), i, block);
  }
}

// Turns the dot products of the first `count` points into gradients of coordinates and masks,
// which overwrite these.
template <typename Real>
DCNV4_MM_INLINE void differentiate_points(const Params& p, int64_t count,
                                          const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  const auto scale = broadcast<lanes>(Real(p.offset_scale));
  const auto none = broadcast<lanes>(Real(0));
  for (int64_t i = 0; i < count; i += lanes) {
    const Positions<Real> positions = positions_of(p, block, i);
    const auto grad = differentiate(positions, block.dots + 4 * i);
    const auto factor = scale * load<lanes>(block.mask + i);
    const auto grad_x = positions.inside ? factor * grad.by_x : none;
    const auto grad_y = positions.inside ? factor * grad.by_y : none;
    store<lanes>(block.xy + 2 * i, interleave<0>(grad_x, grad_y));
    store<lanes>(block.xy + 2 * i + lanes, interleave<1>(grad_x, grad_y));
    store<lanes>(block.mask + i, positions.inside ? grad.sample : none);
  }
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4::cpu
