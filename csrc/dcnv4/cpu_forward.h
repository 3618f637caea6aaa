// The forward kernel of DCNv4 on the CPU. The samples of a block are taken one point at a time, in
// vectors of channels.
#pragma once

#include "dcnv4/cpu_points.h"

namespace dcnv4_mm::dcnv4::cpu {
namespace {

// Sums the samples of the points [begin, end) of a block, for one chunk of channels.
template <typename Chunk, typename Storage>
DCNV4_MM_INLINE void sum_samples(const Block<RealOf<Storage>>& block, int64_t begin, int64_t end,
                                 const Storage* image, int64_t pixel_pitch, Storage* output) {
  using Real = RealOf<Storage>;
  constexpr int lanes = Chunk::lanes;
  // Several sums per channel: one alone would wait for every addition before the next.
  constexpr int parts = Chunk::count <= 2 ? 4 : Chunk::count <= 4 ? 2 : 1;
  Vector<Real, lanes> sums[parts][Chunk::count] = {};
  for (int64_t k = begin; k < end; ++k) {
    if (block.pixel[k] < 0) continue;
    const Corners<const Storage> corners(image, pixel_pitch, block, k);
    for (int corner = 0; corner < 4; ++corner) {
      const auto weight = broadcast<lanes>(block.weight[corner][k]);
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
