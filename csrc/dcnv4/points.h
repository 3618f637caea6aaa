// Sampling points of the GPU kernels of DCNv4: reading and locating them. The CPU kernels have the
// same arithmetic in vectors of points.
#pragma once

#include "common/gpu_samples.h"
#include "dcnv4/launch.h"

namespace dcnv4_mm::dcnv4 {
namespace {

// K, known to the compiler where `special`, as special_points() gives it, is not 0.
template <int special>
DCNV4_MM_DEVICE int32_t point_count(const Params& p) {
  return special ? special : static_cast<int32_t>(p.points);
}

template <int special>
DCNV4_MM_DEVICE int32_t kernel_size(const Params& p, int axis) {
  return special ? 3 : static_cast<int32_t>(p.kernel[axis]);
}

// Distance in pixels from the kernel's first point to its centre.
template <int special>
DCNV4_MM_DEVICE int32_t center_of(const Params& p, int axis) {
  return static_cast<int32_t>(p.dilation[axis]) * (kernel_size<special>(p, axis) - 1) / 2;
}

// A coordinate of a point, with the roundings of the reference.
template <int special, typename Real>
DCNV4_MM_DEVICE Real coordinate(const Params& p, int axis, int32_t output, int32_t index,
                                Real offset) {
  const int32_t center = center_of<special>(p, axis);
  const int32_t start = output * static_cast<int32_t>(p.stride[axis]) -
                        static_cast<int32_t>(p.padding[axis]) + center;
  const int32_t grid = index * static_cast<int32_t>(p.dilation[axis]) - center;
  return Real(start) + (Real(grid) + offset) * Real(p.offset_scale);
}

// The point `k` of a group of the output pixel (row, column), in offset_mask from `source` on.
template <int special, typename Storage>
DCNV4_MM_DEVICE Point<RealOf<Storage>> locate_point(const Params& p, const Divisor& kernel_rows,
                                                    const Storage* source, int32_t row,
                                                    int32_t column, int32_t k) {
  using Real = RealOf<Storage>;
  const int32_t rows = kernel_size<special>(p, 0);
  const int32_t center = kernel_size<special>(p, 1) / 2 * rows + rows / 2;
  // The points run over columns first, then rows.
  const bool skips = special ? special == 8 : p.remove_center;
  const int32_t index = skips && k >= center ? k + 1 : k;
  const int32_t kernel_column = special ? index / 3 : divide(index, kernel_rows);
  const int32_t kernel_row = index - kernel_column * rows;
  const Real offset_x = read(source + 2 * k), offset_y = read(source + 2 * k + 1);
  const Real x = coordinate<special>(p, 1, column, kernel_column, offset_x);
  const Real y = coordinate<special>(p, 0, row, kernel_row, offset_y);
  const Real mask = read(source + 2 * point_count<special>(p) + k);
  return point_at(y, x, Real(p.height), Real(p.width), mask);
}

// Where the four pixels around a point are, in one word: 4 * the first one's index in the image,
// plus 2 if there is a next row, plus 1 if there is a next column.
constexpr uint32_t kOutside = ~uint32_t(0);

template <typename Real>
DCNV4_MM_DEVICE uint32_t pixels_of(const Point<Real>& point, int32_t row_pixels) {
  if (!point.inside) return kOutside;
  const int32_t pixel = static_cast<int32_t>(point.y.first) * row_pixels + point.x.first;
  return static_cast<uint32_t>(pixel) << 2 | static_cast<uint32_t>(point.y.step) << 1 |
         static_cast<uint32_t>(point.x.step);
}

// Samples in a block's shared memory.
template <typename Real>
struct Samples {
  Weights<Real>* weights;
  uint32_t* pixels;

  static constexpr int32_t bytes = sizeof(Weights<Real>) + sizeof(uint32_t);
};

template <typename Real>
DCNV4_MM_DEVICE Samples<Real> samples_in(void* shared, int32_t capacity) {
  Weights<Real>* weights = static_cast<Weights<Real>*>(shared);
  return {weights, reinterpret_cast<uint32_t*>(weights + capacity)};
}

// Addresses of the four pixels around a point that counts.
template <typename Element>
DCNV4_MM_DEVICE Corners<Element> corners_of(uint32_t pixels, Element* image, int64_t pixel_pitch,
                                            int64_t row_pitch) {
  // One multiplication of 32-bit numbers with a 64-bit product.
  const int32_t pitch = static_cast<int32_t>(pixel_pitch);
  Element* first = image + static_cast<int64_t>(static_cast<int32_t>(pixels >> 2)) * pitch;
  const int32_t right = pixels & 1 ? pitch : 0;
  const int64_t down = pixels & 2 ? row_pitch : 0;
  return {first, first + right, first + down, first + down + right};
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
