// Samples of the CPU kernels: the four pixels around each point are read, summed, multiplied with
// a gradient or added to, in vectors of channels. Where the points lie is up to the operator.
#pragma once

#include "common/bilinear.h"
#include "common/simd.h"

namespace dcnv4_mm {
namespace {

// The located points of a block. Every array has room for whole vectors of points.
template <typename Real>
struct Samples {
  using Int = IntOf<Real>;
  static_assert(sizeof(Int) == sizeof(Real), "");

  // Where the four pixels around a point are, counted in pixels from the start of the image: the
  // first, -1 if the point does not count, and the steps to the next column and row.
  Int *pixel, *right, *down;  // [points]
  // What they count for: top left, top right, bottom left, bottom right, each [points].
  Real* weight[4];
  Real* dots;  // [points, 4]: dot products of the four pixels and the output's gradient
};

// The geometry of one vector of points.
template <typename Real>
struct Positions {
  static constexpr int lanes = kLanes<Real>;
  using Reals = Vector<Real, lanes>;
  using Ints = Vector<IntOf<Real>, lanes>;

  Ints inside;
  Neighbours<Reals, Ints> x, y;

  Positions(Reals ys, Reals xs, Reals height, Reals width) {
    inside = is_inside(ys, xs, height, width);
    x = neighbours(inside ? xs : Reals{}, width);
    y = neighbours(inside ? ys : Reals{}, height);
  }
};

// Stores the pixels and weights of a vector of points, the block's from `i` on. Their images begin
// at the pixels `start` and have rows that are `row_pitch` pixels apart.
template <typename Real>
DCNV4_MM_INLINE void locate(const Positions<Real>& positions, typename Positions<Real>::Ints start,
                            typename Positions<Real>::Ints row_pitch,
                            typename Positions<Real>::Reals weight, int64_t i,
                            const Samples<Real>& samples) {
  constexpr int lanes = Positions<Real>::lanes;
  const auto& [inside, x, y] = positions;
  const auto pixel = start + y.first * row_pitch + x.first;
  store_bits(samples.pixel + i, inside ? pixel : pixel - pixel - 1);
  store_bits(samples.right + i, x.step);
  store_bits(samples.down + i, y.step * row_pitch);
  const auto top = y.weight_first * weight;
  const auto bottom = y.weight_second * weight;
  store<lanes>(samples.weight[0] + i, top * x.weight_first);
  store<lanes>(samples.weight[1] + i, top * x.weight_second);
  store<lanes>(samples.weight[2] + i, bottom * x.weight_first);
  store<lanes>(samples.weight[3] + i, bottom * x.weight_second);
}

// The samples at a vector of points times the output's gradient, and their derivatives.
template <typename Reals>
struct Derivatives {
  Reals sample, by_x, by_y;
};

// Makes them of dot products [lanes, 4], those of the four pixels around each point.
template <typename Real>
DCNV4_MM_INLINE auto differentiate(const Positions<Real>& positions, const Real* dots) {
  constexpr int lanes = Positions<Real>::lanes;
  const auto& x = positions.x;
  const auto& y = positions.y;
  // [lanes, 4] -> 4 x [lanes], in two steps of sorting into even and odd.
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
  return Derivatives<typename Positions<Real>::Reals>{
      y.weight_first * top + y.weight_second * bottom,
      x.slope_first * left + x.slope_second * right,
      y.slope_first * top + y.slope_second * bottom,
  };
}

// Addresses of the four pixels around a point, in the order of Samples::weight.
template <typename Element>
struct Corners {
  Element* pixels[4];

  template <typename Real>
  Corners(Element* image, int64_t pixel_pitch, const Samples<Real>& samples, int64_t point) {
    const int64_t right = samples.right[point] * pixel_pitch;
    const int64_t down = samples.down[point] * pixel_pitch;
    pixels[0] = image + samples.pixel[point] * pixel_pitch;
    pixels[1] = pixels[0] + right;
    pixels[2] = pixels[0] + down;
    pixels[3] = pixels[2] + right;
  }
};

// Sums the samples of the points [begin, end) of a block, for one chunk of channels.
template <typename Chunk, typename Storage>
DCNV4_MM_INLINE void sum_samples(const Samples<RealOf<Storage>>& samples, int64_t begin,
                                 int64_t end, const Storage* image, int64_t pixel_pitch,
                                 Storage* output) {
  using Real = RealOf<Storage>;
  constexpr int lanes = Chunk::lanes;
  // Several sums per channel: one alone would wait for every addition before the next.
  constexpr int parts = Chunk::count <= 2 ? 4 : Chunk::count <= 4 ? 2 : 1;
  Vector<Real, lanes> sums[parts][Chunk::count] = {};
  for (int64_t k = begin; k < end; ++k) {
    if (samples.pixel[k] < 0) continue;
    const Corners<const Storage> corners(image, pixel_pitch, samples, k);
    for (int corner = 0; corner < 4; ++corner) {
      const auto weight = broadcast<lanes>(samples.weight[corner][k]);
      for (int i = 0; i < Chunk::count; ++i) {
        const auto pixel = load<lanes>(corners.pixels[corner] + i * lanes);
        auto& sum = sums[corner % parts][i];
        sum = multiply_add(pixel, weight, sum);
      }
    }
  }
  for (int i = 0; i < Chunk::count; ++i) {
    for (int part = 1; part < parts; ++part) sums[0][i] += sums[part][i];
    store<lanes>(output + i * lanes, sums[0][i]);
  }
}

// Adds the dot products of the four pixels around each point and the output's gradient, for one
// chunk of channels.
template <typename Chunk, typename Storage>
DCNV4_MM_INLINE void add_dots(const Samples<RealOf<Storage>>& samples, int64_t begin, int64_t end,
                              const Storage* image, int64_t pixel_pitch,
                              const Storage* grad_output) {
  using Real = RealOf<Storage>;
  constexpr int lanes = Chunk::lanes;
  Vector<Real, lanes> grad[Chunk::count];
  for (int i = 0; i < Chunk::count; ++i) grad[i] = load<lanes>(grad_output + i * lanes);
  for (int64_t k = begin; k < end; ++k) {
    if (samples.pixel[k] < 0) continue;
    const Corners<const Storage> corners(image, pixel_pitch, samples, k);
    Vector<Real, lanes> dots[4] = {};
    for (int corner = 0; corner < 4; ++corner) {
      for (int i = 0; i < Chunk::count; ++i) {
        const auto pixel = load<lanes>(corners.pixels[corner] + i * lanes);
        dots[corner] = multiply_add(pixel, grad[i], dots[corner]);
      }
    }
    add_sums(dots[0], dots[1], dots[2], dots[3], samples.dots + 4 * k);
  }
}

// Adds weight * gradient to a pixel, for one chunk of channels.
template <typename Chunk, typename Real>
DCNV4_MM_INLINE void add_weighted(const Vector<Real, Chunk::lanes>* grad, Real weight,
                                  Real* pixel) {
  constexpr int lanes = Chunk::lanes;
  const auto weights = broadcast<lanes>(weight);
  for (int i = 0; i < Chunk::count; ++i) {
    const auto sum = load<lanes>(pixel + i * lanes);
    store<lanes>(pixel + i * lanes, multiply_add(grad[i], weights, sum));
  }
}

// Adds the gradients of the points [begin, end) of a block to the pixels [first_pixel, end_pixel)
// of an image, for one chunk of channels. `sums` is the first of these pixels.
template <typename Chunk, typename Storage>
DCNV4_MM_INLINE void scatter(const Samples<RealOf<Storage>>& samples, int64_t begin, int64_t end,
                             const Storage* grad_output, int64_t first_pixel, int64_t end_pixel,
                             int64_t pixel_pitch, RealOf<Storage>* sums) {
  using Real = RealOf<Storage>;
  constexpr int lanes = Chunk::lanes;
  Vector<Real, lanes> grad[Chunk::count];
  for (int i = 0; i < Chunk::count; ++i) grad[i] = load<lanes>(grad_output + i * lanes);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t top = samples.pixel[k];
    if (top < 0) continue;
    const int64_t bottom = top + samples.down[k];
    const int64_t right = samples.right[k] * pixel_pitch;
    if (top >= first_pixel && top < end_pixel) {
      Real* pixel = sums + (top - first_pixel) * pixel_pitch;
      add_weighted<Chunk>(grad, samples.weight[0][k], pixel);
      add_weighted<Chunk>(grad, samples.weight[1][k], pixel + right);
    }
    if (bottom >= first_pixel && bottom < end_pixel) {
      Real* pixel = sums + (bottom - first_pixel) * pixel_pitch;
      add_weighted<Chunk>(grad, samples.weight[2][k], pixel);
      add_weighted<Chunk>(grad, samples.weight[3][k], pixel + right);
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm
