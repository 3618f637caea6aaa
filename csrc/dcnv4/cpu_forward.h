// The forward kernel of DCNv4 on the CPU. The samples of a block are taken one point at a time, in
// vectors of channels.
#pragma once

#include "dcnv4/cpu_points.h"

namespace dcnv4_mm::dcnv4::cpu {
namespace {

template <typename Storage>
DCNV4_MM_INLINE void forward_points(const Params& p, int64_t points, int64_t begin, int64_t end,
                                    void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* value = static_cast<const Storage*>(p.value);
  Storage* output = static_cast<Storage*>(p.output);

  Items item(p, begin, 0, p.groups);
  Items reader = item;
  while (item.pixel < end) {
    const int64_t count = read_block<Storage>(&reader, points, end, block);
    locate_points(p, p.value_pitches.row / p.value_pitches.pixel, count, block);
    for (int64_t first = 0; first < count; first += points) {
      const int64_t group_channel = item.group * p.group_channels;
      const Storage* image = value + item.image * p.value_pitches.image + group_channel;
      Storage* result = output + item.pixel * p.groups * p.group_channels + group_channel;
      for_chunks<Real>(p.group_channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
        sum_samples<decltype(chunk)>(block, first, first + points, image + channel,
                                     p.value_pitches.pixel, result + channel);
      });
      item.next();
    }
  }
}

// The usual 3x3 kernel gets code of its own, in which the compiler unrolls the loops over points.
template <typename Storage>
void forward(const Params& p, int64_t begin, int64_t end, void* scratch) {
  if (p.points == 9) {
    forward_points<Storage>(p, 9, begin, end, scratch);
  } else {
    forward_points<Storage>(p, p.points, begin, end, scratch);
  }
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4::cpu
