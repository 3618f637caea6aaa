// The backward kernels of DCNv4 on the CPU: one for offset_mask, which reads value as the forward
// does, and one for value, which adds to pixels that it owns. Neither needs atomics.
#pragma once

#include "dcnv4/cpu_points.h"

namespace dcnv4_mm::dcnv4::cpu {
namespace {

// Writes an item's gradients, which begin at the block's point `first`.
template <typename Storage>
DCNV4_MM_INLINE void write_points(const Items& item, int64_t first,
                                  const Block<RealOf<Storage>>& block) {
  constexpr int lanes = kLanes<RealOf<Storage>>;
  const Params& p = *item.params;
  Storage* row = static_cast<Storage*>(p.grad_offset_mask) + item.pixel * p.offset_mask_channels;
  Storage* result = row + item.group * 3 * p.points;
  for_vectors<lanes>(2 * p.points, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    store<lanes>(result + i, load<lanes>(block.xy + 2 * first + i));
  });
  for_vectors<lanes>(p.points, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    store<lanes>(result + 2 * p.points + i, load<lanes>(block.mask + first + i));
  });
  if (item.group == p.groups - 1) {
    // What follows is padding; the bits of zero are zero in every type.
    const int64_t used = 3 * p.groups * p.points;
    __builtin_memset(row + used, 0, (p.offset_mask_channels - used) * sizeof(Storage));
  }
}

template <typename Storage>
void backward_offset_mask(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* value = static_cast<const Storage*>(p.value);
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);

  Items item(p, begin, 0, p.groups);
  Items reader = item, writer = item;
  while (item.pixel < end) {
    const int64_t count = read_block<Storage>(&reader, p.points, end, block);
    locate_points(p, p.value_pitches.row / p.value_pitches.pixel, count, block);
    __builtin_memset(block.dots, 0, 4 * count * sizeof(Real));
    for (int64_t first = 0; first < count; first += p.points) {
      const int64_t group_channel = item.group * p.group_channels;
      const Storage* image = value + item.image * p.value_pitches.image + group_channel;
      const Storage* grad = item.at(grad_output, p.grad_output_pitches, group_channel);
      for_chunks<Real>(p.group_channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
        add_dots<decltype(chunk)>(block, first, first + p.points, image + channel,
                                  p.value_pitches.pixel, grad + channel);
      });
      item.next();
    }
    differentiate_points(p, count, block);
    for (int64_t first = 0; first < count; first += p.points) {
      write_points<Storage>(writer, first, block);
      writer.next();
    }
  }
}

template <typename Storage>
void find_rows(const Params& p, int64_t begin, int64_t end, SegmentRows* segments, void* scratch) {
  using Real = RealOf<Storage>;
  constexpr int lanes = kLanes<Real>;
  const Block<Real> block(p, scratch);
  const int64_t pixels = p.out_height * p.out_width;
  const int64_t per_image = (pixels + kSegmentPixels - 1) / kSegmentPixels;
  for (int64_t segment = begin; segment < end; ++segment) {
    const int64_t first = segment % per_image * kSegmentPixels;
    const int64_t last = first + kSegmentPixels < pixels ? first + kSegmentPixels : pixels;
    const int64_t image = segment / per_image * pixels;
    auto low = broadcast<lanes>(Real(p.height)), high = broadcast<lanes>(Real(-1));
    Items item(p, image + first, 0, p.groups);
    while (item.pixel < image + last) {
      const int64_t count = read_block<Storage>(&item, p.points, image + last, block);
      // Values behind the last point make the rows more at most, and NaN is never less.
      for (int64_t i = 0; i < 2 * count; i += lanes) {
        const auto xy = load<lanes>(block.xy + i);
        low = xy < low ? xy : low;
        high = xy > high ? xy : high;
      }
    }
    SegmentRows rows{double(p.height), -1.0};
    for (int lane = 1; lane < lanes; lane += 2) {
      if (low[lane] < rows.low) rows.low = low[lane];
      if (high[lane] > rows.high) rows.high = high[lane];
    }
    segments[segment] = rows;
  }
}

// Whether any of the first `count` points of a block has a pixel in the rows of a slab.
template <typename Real>
DCNV4_MM_INLINE bool touches(const Block<Real>& block, int64_t count, const Slab& slab) {
  constexpr int lanes = kLanes<Real>;
  const auto low = broadcast<lanes>(Real(slab.row_begin - 1));
  const auto high = broadcast<lanes>(Real(slab.row_end));
  auto found = low > high;
  for (int64_t i = 0; i < 2 * count; i += lanes) {
    const auto xy = load<lanes>(block.xy + i);
    found |= (xy >= low) & (xy < high);
  }
  for (int lane = 1; lane < lanes; lane += 2) {
    if (found[lane]) return true;
  }
  return false;
}

// Adds the gradients of the output pixels [begin, end) that belong to a slab to `sums`, which
// starts at the slab's first row and group.
template <typename Storage>
DCNV4_MM_INLINE void scatter_points(const Params& p, int64_t points, const Slab& slab,
                                    int64_t begin, int64_t end, int64_t pixel_pitch,
                                    const Block<RealOf<Storage>>& block, RealOf<Storage>* sums) {
  using Real = RealOf<Storage>;
  const Storage* grad_output = static_cast<const Storage*>(p.grad_output);
  const bool whole_image = slab.row_begin == 0 && slab.row_end == p.height;

  Items item(p, begin, slab.group_begin, slab.group_end);
  Items reader = item;
  while (item.pixel < end) {
    const int64_t count = read_block<Storage>(&reader, points, end, block);
    if (!whole_image && !touches(block, count, slab)) {
      item = reader;
      continue;
    }
    locate_points(p, p.width, count, block);
    for (int64_t first = 0; first < count; first += points) {
      const Storage* grad =
          item.at(grad_output, p.grad_output_pitches, item.group * p.group_channels);
      Real* group_sums = sums + (item.group - slab.group_begin) * p.group_channels;
      for_chunks<Real>(p.group_channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
        scatter<decltype(chunk)>(block, first, first + points, grad + channel,
                                 slab.row_begin * p.width, slab.row_end * p.width, pixel_pitch,
                                 group_sums + channel);
      });
      item.next();
    }
  }
}

// Adds all gradients of a slab.
template <typename Storage>
DCNV4_MM_INLINE void scatter_segments(const Params& p, int64_t points, const Slab& slab,
                                      int64_t pixel_pitch, RealOf<Storage>* sums, void* scratch) {
  const Block<RealOf<Storage>> block(p, scratch);
  const int64_t pixels = p.out_height * p.out_width;
  const int64_t first = slab.image * pixels;
  const int64_t length = slab.segments ? kSegmentPixels : pixels;
  for (int64_t begin = 0; begin < pixels; begin += length) {
    if (slab.segments) {
      const SegmentRows& rows = slab.segments[begin / kSegmentPixels];
      if (!(rows.high >= slab.row_begin - 1 && rows.low < slab.row_end)) continue;
    }
    const int64_t end = begin + length < pixels ? begin + length : pixels;
    scatter_points<Storage>(p, points, slab, first + begin, first + end, pixel_pitch, block, sums);
  }
}

template <typename Storage>
DCNV4_MM_INLINE void scatter_slab(const Params& p, const Slab& slab, int64_t pixel_pitch,
                                  RealOf<Storage>* sums, void* scratch) {
  if (p.points == 9) {
    scatter_segments<Storage>(p, 9, slab, pixel_pitch, sums, scratch);
  } else {
    scatter_segments<Storage>(p, p.points, slab, pixel_pitch, sums, scratch);
  }
}

template <typename Storage>
void backward_value(const Params& p, const Slab& slab, void* sums, void* scratch) {
  using Real = RealOf<Storage>;
  const int64_t pixel_channels = p.groups * p.group_channels;
  const int64_t slab_channels = (slab.group_end - slab.group_begin) * p.group_channels;
  const int64_t pixels = (slab.row_end - slab.row_begin) * p.width;
  Storage* result = static_cast<Storage*>(p.grad_value) +
                    (slab.image * p.height + slab.row_begin) * p.width * pixel_channels +
                    slab.group_begin * p.group_channels;
  if constexpr (sizeof(Storage) == sizeof(Real)) {
    for (int64_t i = 0; i < pixels; ++i) {
      __builtin_memset(result + i * pixel_channels, 0, slab_channels * sizeof(Real));
    }
    scatter_slab<Storage>(p, slab, pixel_channels, result, scratch);
  } else {
    Real* wide = static_cast<Real*>(sums);
    __builtin_memset(wide, 0, pixels * slab_channels * sizeof(Real));
    scatter_slab<Storage>(p, slab, slab_channels, wide, scratch);
    for (int64_t i = 0; i < pixels; ++i) {
      for_vectors<kLanes<Real>>(slab_channels,
                                [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
                                  constexpr int lanes = decltype(chunk)::lanes;
                                  store<lanes>(result + i * pixel_channels + channel,
                                               load<lanes>(wide + i * slab_channels + channel));
                                });
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4::cpu
