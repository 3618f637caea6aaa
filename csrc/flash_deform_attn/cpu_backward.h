// The backward kernels of deformable attention on the CPU: one for the points, which reads value as
// the forward does, and one for value, which adds to pixels that it owns. Neither needs atomics.
#pragma once

#include "flash_deform_attn/cpu_points.h"

namespace dcnv4_mm::flash_deform_attn::cpu {
namespace {

template <typename Storage, typename Points>
void backward_points(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const int64_t points = block.item_points;
  const Storage* value = static_cast<const Storage*>(p.value);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);

  Items item(p, begin, 0, p.heads);
  Items reader = item, writer = item;
  while (item.row < end) {
    const int64_t count = read_block<Points>(&reader, end, block);
    locate_points(count, block);
    __builtin_memset(block.dots, 0, 4 * count * sizeof(Real));
    for (int64_t first = 0; first < count; first += points) {
      const Storage* image =
          value + item.image * p.value_pitches.image + item.head * p.value_pitches.head;
      const Storage* grad = item.at(grad_output, p.grad_output_pitches);
      for_chunks<Real>(p.channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
        add_dots<decltype(chunk)>(block, first, first + points, image + channel,
                                  p.value_pitches.row, grad + channel);
      });
      item.next();
    }
    differentiate_points(count, block);
    for (int64_t first = 0; first < count; first += points) {
      Real* grad_attention = block.grad_attention + first;
      if (p.softmax) differentiate_softmax(points, block.attention + first, grad_attention);
      copy(block.xy + 2 * first, 2 * points,
           static_cast<Points*>(p.grad_locations) + writer.index() * p.grad_location_pitch);
      copy(grad_attention, points,
           static_cast<Points*>(p.grad_weights) + writer.index() * p.grad_weight_pitch);
      writer.next();
    }
  }
}

// Adds all gradients of a slab to `sums`, which starts at its first pixel.
template <typename Storage, typename Points>
DCNV4_MM_INLINE void scatter_slab(const Params& p, const Slab& slab, int64_t pixel_pitch,
                                  RealOf<Storage>* sums, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);
  const int64_t end = (slab.image + 1) * p.queries;

  Items item(p, slab.image * p.queries, slab.head, slab.head + 1);
  Items reader = item;
  while (item.row < end) {
    const int64_t count = read_block<Points>(&reader, end, block);
    locate_points(count, block);
    for (int64_t first = 0; first < count; first += block.item_points) {
      const Storage* grad = item.at(grad_output, p.grad_output_pitches);
      for_chunks<Real>(p.channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
        scatter<decltype(chunk)>(block, first, first + block.item_points, grad + channel,
                                 slab.pixel_begin, slab.pixel_end, pixel_pitch, sums + channel);
      });
      item.next();
    }
  }
}

template <typename Storage, typename Points>
void backward_value(const Params& p, const Slab& slab, void* sums, void* scratch) {
  using Real = RealOf<Storage>;
  const int64_t pitch = p.heads * p.channels;
  const int64_t pixels = slab.pixel_end - slab.pixel_begin;
  Storage* result = static_cast<Storage*>(p.grad_value) +
                    (slab.image * p.pixels + slab.pixel_begin) * pitch + slab.head * p.channels;
  if constexpr (sizeof(Storage) == sizeof(Real)) {
    for (int64_t i = 0; i < pixels; ++i) {
      __builtin_memset(result + i * pitch, 0, p.channels * sizeof(Real));
    }
    scatter_slab<Storage, Points>(p, slab, pitch, result, scratch);
  } else {
    Real* wide = static_cast<Real*>(sums);
    __builtin_memset(wide, 0, pixels * p.channels * sizeof(Real));
    scatter_slab<Storage, Points>(p, slab, p.channels, wide, scratch);
    for (int64_t i = 0; i < pixels; ++i) {
      copy(wide + i * p.channels, p.channels, result + i * pitch);
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cpu
