// The forward kernel of BEV cross-attention on the CPU. The samples of a head in all cameras are
// summed in registers, in vectors of channels, and written once.
#pragma once

#include "bev_cross_attn/cpu_points.h"

namespace dcnv4_mm::bev_cross_attn::cpu {
namespace {

template <typename Storage, typename Points>
void forward(const Params& p, const int64_t* rows, int64_t count, void* scratch) {
  using Real = RealOf<Storage>;
  const Block<Real> block(p, scratch);
  const Storage* value = static_cast<const Storage*>(p.value);
  Storage* output = static_cast<Storage*>(p.output);

  CameraCounts counts{};
  for_items(p, rows, count, [&](const Items& item) DCNV4_MM_INLINE_LAMBDA {
    if (item.head == 0) counts = find_cameras(p, item, 0, p.cameras, block);
    Storage* result = output + item.index() * p.channels;
    if (counts.all == 0) {
      __builtin_memset(result, 0, p.channels * sizeof(Storage));
      return;
    }
    read_points<Points>(p, item, block);
    locate_samples(p, counts, block);
    const Storage* image =
        value + item.image * p.cameras * p.value_pitches.image + item.head * p.value_pitches.head;
    for_chunks<Real>(p.channels, [&](auto chunk, int64_t channel) DCNV4_MM_INLINE_LAMBDA {
      sum_samples<decltype(chunk)>(block, 0, counts.listed * block.points, image + channel,
                                   p.value_pitches.row, result + channel);
    });
  });
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn::cpu
