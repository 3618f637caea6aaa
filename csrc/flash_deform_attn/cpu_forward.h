// The forward kernel of deformable attention on the CPU. The samples of a block are taken one point
// at a time, in vectors of channels.
#pragma once

#include "flash_deform_attn/cpu_points.h"

namespace dcnv4_mm::flash_deform_attn::cpu {
namespace {

template <typename Storage, typename Points>
void forward(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* value = static_cast<const Storage*>(p.value);
  Storage* output = static_cast<Storage*>(p.output);

  Items item(p, begin, 0, p.heads);
  Items reader = item;
  while (item.row < end) {
    const int64_t count = read_block<Points>(&reader, end, block);
    locate_points(count, block);
    for (int64_t first = 0; first < count; first += block.item_points) {
      const Storage* image =
          value + item.image * p.value_pitches.image + item.head * p.value_pitches.head;
      Storage* result = output + item.index() * p.channels;
      for_chunks<Real>(p.channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
        sum_samples<decltype(chunk)>(block, first, first + block.item_points, image + channel,
                                     p.value_pitches.row, result + channel);
      });
      item.next();
    }
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cpu
