// Sampling points of the CPU kernels of DCNv4: reading them, locating them, differentiating by
// them. The loops run over vectors of points.
#pragma once

#include "common/bilinear.h"
#include "common/simd.h"
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
struct Block {
  using Int = IntOf<Real>;
  static_assert(sizeof(Int) == sizeof(Real), "");

  int64_t capacity;  // points
  Real* xy;          // [points, 2]: coordinates, as in offset_mask
  Real* mask;        // [points]
  Real* grid;        // [K, 2]: x and y of the kernel's points around its centre
  // Where the four pixels around a point are, counted in pixels from the start of the image: the
  // first, -1 if the point does not count, and the steps to the next column and row.
  Int *pixel, *right, *down;  // [points]
  Real* weight[4];  // [points]: top left, top right, bottom left, bottom right; times mask
  Real* dots;       // [points, 4]: dot products of the four pixels and the output's gradient

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
struct Points {
  static constexpr int lanes = kLanes<Real>;
  using Reals = Vector<Real, lanes>;
  using Ints = Vector<IntOf<Real>, lanes>;

  Ints inside;
  Neighbours<Reals, Ints> x, y;
  Reals mask;

  Points(const Params& p, const Block<Real>& block, int64_t first) {
    const Reals low = load<lanes>(block.xy + 2 * first);
    const Reals high = load<lanes>(block.xy + 2 * first + lanes);
    const Reals xs = every_second<0>(low, high);
    const Reals ys = every_second<1>(low, high);
    const Reals height = broadcast<lanes>(Real(p.height));
    const Reals width = broadcast<lanes>(Real(p.width));
    inside = is_inside(ys, xs, height, width);
    x = neighbours(inside ? xs : Reals{}, width);
    y = neighbours(inside ? ys : Reals{}, height);
    mask = load<lanes>(block.mask + first);
  }
};

// Finds the pixels and weights of the first `count` points of a block, in images whose rows are
// `row_pixels` pixels apart.
template <typename Real>
DCNV4_MM_INLINE void locate_points(const Params& p, int64_t row_pixels, int64_t count,
                                   const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  const auto row_pitch = broadcast<lanes>(IntOf<Real>(row_pixels));
  for (int64_t i = 0; i < count; i += lanes) {
    const Points<Real> points(p, block, i);
    const auto& [inside, x, y, mask] = points;
    const auto pixel = y.first * row_pitch + x.first;
    store_bits(block.pixel + i, inside ? pixel : pixel - pixel - 1);
    store_bits(block.right + i, x.step);
    store_bits(block.down + i, y.step * row_pitch);
    const auto top = y.weight_first * mask;
    const auto bottom = y.weight_second * mask;
    store<lanes>(block.weight[0] + i, top * x.weight_first);
    store<lanes>(block.weight[1] + i, top * x.weight_second);
    store<lanes>(block.weight[2] + i, bottom * x.weight_first);
    store<lanes>(block.weight[3] + i, bottom * x.weight_second);
  }
}

// Turns the dot products of the first `count` points into gradients of coordinates and masks, in
// the place of these.
template <typename Real>
DCNV4_MM_INLINE void differentiate_points(const Params& p, int64_t count,
                                          const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  const auto scale = broadcast<lanes>(Real(p.offset_scale));
  for (int64_t i = 0; i < count; i += lanes) {
    const Points<Real> points(p, block, i);
    const auto& [inside, x, y, mask] = points;
    // [lanes, 4] -> 4 x [lanes], in two steps of sorting into even and odd.
    const Real* dots = block.dots + 4 * i;
    const auto dots0 = load<lanes>(dots), dots1 = load<lanes>(dots + lanes);
    const auto dots2 = load<lanes>(dots + 2 * lanes), dots3 = load<lanes>(dots + 3 * lanes);
    const auto even_low = every_second<0>(dots0, dots1), odd_low = every_second<1>(dots0, dots1);
    const auto even_high = every_second<0>(dots2, dots3), odd_high = every_second<1>(dots2, dots3);
    const auto top_left = every_second<0>(even_low, even_high);
    const auto top_right = every_second<0>(odd_low, odd_high);
    const auto bottom_left = every_second<1>(even_low, even_high);
    const auto bottom_right = every_second<1>(odd_low, odd_high);

    const auto top = x.weight_first * top_left + x.weight_second * top_right;
    const auto bottom = x.weight_first * bottom_left + x.weight_second * bottom_right;
    const auto left = y.weight_first * top_left + y.weight_second * bottom_left;
    const auto right = y.weight_first * top_right + y.weight_second * bottom_right;
    const auto grad_x = scale * mask * (x.slope_first * left + x.slope_second * right);
    const auto grad_y = scale * mask * (y.slope_first * top + y.slope_second * bottom);
    const auto grad_mask = y.weight_first * top + y.weight_second * bottom;
    const auto none = broadcast<lanes>(Real(0));
    const auto inside_x = inside ? grad_x : none;
    const auto inside_y = inside ? grad_y : none;
    store<lanes>(block.xy + 2 * i, interleave<0>(inside_x, inside_y));
    store<lanes>(block.xy + 2 * i + lanes, interleave<1>(inside_x, inside_y));
    store<lanes>(block.mask + i, inside ? grad_mask : none);
  }
}

// Addresses of the four pixels around a point, in the order of Block::weight.
template <typename Element>
struct Corners {
  Element* pixels[4];

  template <typename Real>
  Corners(Element* image, int64_t pixel_pitch, const Block<Real>& block, int64_t point) {
    const int64_t right = block.right[point] * pixel_pitch;
    const int64_t down = block.down[point] * pixel_pitch;
    pixels[0] = image + block.pixel[point] * pixel_pitch;
    pixels[1] = pixels[0] + right;
    pixels[2] = pixels[0] + down;
    pixels[3] = pixels[2] + right;
  }
};

}  // namespace
}  // namespace dcnv4_mm::dcnv4::cpu
