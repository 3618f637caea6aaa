// How grad_value is divided among threads: each unit, one head of one image, into bands of pixels.
// A band has one owner, so that the order of its sums does not depend on the threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "flash_deform_attn/params.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// Every band visits all points of its unit: as few bands as keep the threads busy, and 16-bit
// gradients' float32 sums small beside the tensors.
int64_t bands_per_unit(const Params& p, int64_t units) {
  constexpr int64_t max_sum_bytes = 16 << 20;
  const int64_t threads = torch::stable::get_num_threads();
  int64_t bands = 1;
  if (element_bytes(p.dtype) == 2) {
    const int64_t sum_bytes = sizeof(float) * p.pixels * p.channels;
    bands = (sum_bytes + max_sum_bytes - 1) / max_sum_bytes;
  }
  while (units * bands % threads != 0 && units * bands < 2 * threads) ++bands;
  return bands;
}

// The first pixel of a band: the first one of a row.
int64_t band_start(const Params& p, int64_t band, int64_t bands) {
  if (band == bands) return p.pixels;
  const int64_t pixel = p.pixels * band / bands;
  const Level* level = p.levels + p.num_levels - 1;
  while (level->start > pixel) --level;
  return pixel - (pixel - level->start) % level->width;
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
