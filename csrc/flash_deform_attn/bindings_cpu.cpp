// The attention operators on CPU tensors: threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/cpu_bindings.h"
#include "flash_deform_attn/cpu_bands.h"
#include "flash_deform_attn/cpu_choice.h"
#include "flash_deform_attn/operators.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// Divides the queries among threads; each of them is computed by one.
void for_queries(const Params& p, const cpu::Kernels& kernels,
                 void (*kernel)(const Params&, int64_t, int64_t, void*)) {
  const int64_t grain = worth_a_thread(p.heads * item_nanoseconds(p));
  torch::stable::parallel_for(0, p.batch * p.queries, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(kernels.scratch_bytes(p));
    kernel(p, begin, end, scratch.get());
  });
}

// grad_value is divided into bands of the units of one head of one image.
void backward_value_bands(const Params& p, int64_t bands, int64_t begin, int64_t end,
                          const cpu::Kernels& kernels) {
  const Scratch scratch = allocate(kernels.scratch_bytes(p));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t band = unit % bands;
    cpu::Slab slab;
    slab.image = unit / bands / p.heads;
    slab.head = unit / bands % p.heads;
    slab.pixel_begin = band_start(p, band, bands);
    slab.pixel_end = band_start(p, band + 1, bands);
    Scratch sums;
    if (element_bytes(p.dtype) == 2) {
      sums = allocate(sizeof(float) * (slab.pixel_end - slab.pixel_begin) * p.channels);
    }
    kernels.backward_value(p, slab, sums.get(), scratch.get());
  }
}

void backward_value(const Params& p, const cpu::Kernels& kernels) {
  // Every band visits all points of its head.
  const int64_t bands = bands_per_unit(p, p.batch * p.heads);
  const double nanoseconds = p.queries * item_nanoseconds(p) + p.pixels * p.channels * 0.1;
  torch::stable::parallel_for(
      0, p.batch * p.heads * bands, worth_a_thread(nanoseconds),
      [&](int64_t begin, int64_t end) { backward_value_bands(p, bands, begin, end, kernels); });
}

struct CpuKernels {
  static constexpr DeviceType kDevice = DeviceType::CPU;

  static Tensor readable_value(const Tensor& value) { return readable(value, 3); }

  static void forward(const Params& p, const Tensor&) {
    const cpu::Kernels& kernels = kernels_for(p);
    for_queries(p, kernels, kernels.forward);
  }

  // Always deterministic.
  static void backward(const Params& p, const Tensor&, const Tensor&, bool) {
    const cpu::Kernels& kernels = kernels_for(p);
    if (p.grad_weights) for_queries(p, kernels, kernels.backward_points);
    if (p.grad_value) backward_value(p, kernels);
  }
};

using CpuOperators = Operators<CpuKernels>;

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CPU, m) {
  using dcnv4_mm::flash_deform_attn::CpuOperators;
  m.impl("ms_deform_attn_forward", TORCH_BOX(&CpuOperators::ms_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&CpuOperators::ms_backward));
  m.impl("flash_deform_attn_forward", TORCH_BOX(&CpuOperators::flash_forward));
  m.impl("flash_deform_attn_backward", TORCH_BOX(&CpuOperators::flash_backward));
}
