// How fixed-point sums (sums.h) are scaled and converted: pure functions of the problem.
#pragma once

#include <algorithm>

#include "common/launch.h"

namespace dcnv4_mm {

// How the largest exponents of an image and group are found: a block reads what a run of output
// pixels (queries of attention) has of them.
struct Magnitudes {
  // Adjacent numbers of each pixel and group; pitches are in elements.
  struct Numbers {
    const void* data;  // null where no number is above 1
    int64_t image, row, column, group;
    Divisor count;
    bool is_float32;  // whatever the storage type is
  };

  int32_t threads;
  int32_t shared_bytes;
  int64_t blocks;
  int32_t pixels, run;  // of an image, of a block
  Divisor runs, groups, columns;
  Numbers numbers[2];  // gradients of the output, weights
};

// Numbers that a block of the auxiliary kernels takes at a time.
constexpr int32_t kRun = 2048;

inline Magnitudes magnitudes_of(int64_t images, int64_t rows, int64_t columns, int64_t groups,
                                const Magnitudes::Numbers& grads,
                                const Magnitudes::Numbers& weights) {
  Magnitudes m{};
  const int32_t most = static_cast<int32_t>(std::max(grads.count.value, weights.count.value));
  m.threads = 256;
  m.shared_bytes = 2 * m.threads * static_cast<int32_t>(sizeof(uint32_t));
  m.pixels = static_cast<int32_t>(rows * columns);
  m.run = std::max(1, kRun / most);
  const int64_t runs = ceil_div(m.pixels, m.run);
  m.blocks = images * groups * runs;
  m.runs = divisor_of(std::max<int64_t>(1, runs));
  m.groups = divisor_of(groups);
  m.columns = divisor_of(std::max<int64_t>(1, columns));
  m.numbers[0] = grads;
  m.numbers[1] = weights;
  return m;
}

// How fixed-point sums [images, pixels, groups, channels] are converted: a block has a run of an
// image's pixels. `scaled` images in sequence share their scales.
struct Conversion {
  int32_t threads;
  int32_t shared_bytes;
  int64_t blocks;
  int32_t pixels, run;
  Divisor runs, channels, group_channels, groups, scaled;
};

inline Conversion conversion_of(int64_t images, int64_t pixels, int64_t groups, int64_t channels,
                                int64_t scaled = 1) {
  Conversion c{};
  c.threads = 256;
  c.pixels = static_cast<int32_t>(pixels);
  c.run = static_cast<int32_t>(std::max<int64_t>(1, kRun / (groups * channels)));
  const int64_t runs = ceil_div<int64_t>(pixels, c.run);
  c.blocks = images * runs;
  c.runs = divisor_of(runs);
  c.channels = divisor_of(groups * channels);
  c.group_channels = divisor_of(channels);
  c.groups = divisor_of(groups);
  c.scaled = divisor_of(scaled);
  return c;
}

// Bits of the largest product, so that the sum of so many fits into 63 bits. The minimum would be
// reached by 2^58 points of an image, which no memory holds.
inline int32_t product_bits(int64_t products) {
  int32_t bits = 62;
  while (bits > 4 && (int64_t(1) << (62 - bits)) < products) --bits;
  return bits;
}

}  // namespace dcnv4_mm
