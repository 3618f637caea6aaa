// The backward kernels of BEV cross-attention on the CPU: one for the points, which reads value as
// the forward does, and one for value, which adds to pixels that it owns. Neither needs atomics.
#pragma once

#include "bev_cross_attn/cpu_points.h"

namespace dcnv4_mm::bev_cross_attn::cpu {
namespace {

template <typename Storage, typename Points>
void backward_points(const Params& p, const int64_t* rows, int64_t count, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* value = static_cast<const Storage*>(p.value);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);

  CameraCounts counts{};
  for_items(p, rows, count, [&](const Items& item) DCNV4_MM_INLINE_LAMBDA {
    if (item.head == 0) counts = find_cameras(p, item, 0, p.cameras, block);
    Points* grad_offsets =
        static_cast<Points*>(p.grad_locations) + item.index() * p.grad_location_pitch;
    Points* grad_logits = static_cast<Points*>(p.grad_weights) + item.index() * p.grad_weight_pitch;
    if (counts.all == 0) {
      __builtin_memset(grad_offsets, 0, 2 * block.points * sizeof(Points));
      __builtin_memset(grad_logits, 0, block.points * sizeof(Points));
      return;
    }
    read_points<Points>(p, item, block);
    locate_samples(p, counts, block);
    const int64_t samples = counts.listed * block.points;
    __builtin_memset(block.dots, 0, 4 * samples * sizeof(Real));
    const Storage* image =
        value + item.image * p.cameras * p.value_pitches.image + item.head * p.value_pitches.head;
    const Storage* grad = item.at(grad_output, p.grad_output_pitches);
    for_chunks<Real>(p.channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
      add_dots<decltype(chunk)>(block, 0, samples, image + channel, p.value_pitches.row,
                                grad + channel);
    });
    differentiate_samples(counts, block);
    flash_deform_attn::cpu::differentiate_softmax(block.points, block.softmaxed,
                                                  block.grad_softmaxed);
    copy(block.grad_offsets, 2 * block.points, grad_offsets);
    copy(block.grad_softmaxed, block.points, grad_logits);
  });
}

// Adds all gradients of a slab to `sums`, which starts at its first pixel.
template <typename Storage, typename Points>
DCNV4_MM_INLINE void scatter_slab(const Params& p, const Slab& slab, int64_t pixel_pitch,
                                  RealOf<Storage>* sums, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);
  const int64_t end = (slab.sample + 1) * p.queries, first = slab.camera * p.pixels;

  for (Items item(p, slab.sample * p.queries, slab.head, slab.head + 1); item.row < end;
       item.next()) {
    const CameraCounts counts = find_cameras(p, item, slab.camera, slab.camera + 1, block);
    if (counts.listed == 0) continue;
    read_points<Points>(p, item, block);
    locate_samples(p, counts, block);
    const Storage* grad = item.at(grad_output, p.grad_output_pitches);
    for_chunks<Real>(p.channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
      scatter<decltype(chunk)>(block, 0, block.points, grad + channel, first + slab.pixel_begin,
                               first + slab.pixel_end, pixel_pitch, sums + channel);
    });
  }
}

template <typename Storage, typename Points>
void backward_value(const Params& p, const Slab& slab, void* sums, void* scratch) {
  using Real = RealOf<Storage>;
  const int64_t pitch = p.heads * p.channels;
  const int64_t pixels = slab.pixel_end - slab.pixel_begin;
  const int64_t image = slab.sample * p.cameras + slab.camera;
  Storage* result = static_cast<Storage*>(p.grad_value) +
                    (image * p.pixels + slab.pixel_begin) * pitch + slab.head * p.channels;
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
}  // namespace dcnv4_mm::bev_cross_attn::cpu
