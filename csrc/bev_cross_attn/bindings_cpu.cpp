// BEV cross-attention on CPU tensors: threads.

#include <torch/csrc/stable/library.h>

#include "bev_cross_attn/cpu.h"
#include "bev_cross_attn/cpu_order.h"
#include "bev_cross_attn/operators.h"
#include "common/cpu_bindings.h"
#include "common/cpu_isa.h"
#include "flash_deform_attn/cpu_bands.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

const cpu::Kernels& kernels_for(const Params& p) {
  const cpu::KernelTable* table = &cpu::kDefaultKernels;
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kAvx2) table = &cpu::kAvx2Kernels;
  if (cpu_isa() == CpuIsa::kAvx512) table = &cpu::kAvx512Kernels;
#endif
  return table->kernels[static_cast<int>(p.dtype)][p.float32_points];
}

// A head of a query that one camera sees takes about this many nanoseconds.
double item_nanoseconds(const Params& p) {
  return p.num_levels * p.num_points * (3.0 + 0.1 * p.channels);
}

// Divides the queries among threads; each of them is computed by one.
void for_queries(const Params& p, const cpu::Kernels& kernels,
                 void (*kernel)(const Params&, const int64_t*, int64_t, void*)) {
  const std::vector<int64_t> rows = rows_by_place(p);
  const int64_t grain = worth_a_thread(p.heads * item_nanoseconds(p));
  torch::stable::parallel_for(0, rows.size(), grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(kernels.scratch_bytes(p));
    kernel(p, rows.data() + begin, end - begin, scratch.get());
  });
}

// grad_value is divided into bands of the units of one head of one camera.
void backward_value_bands(const Params& p, int64_t bands, int64_t begin, int64_t end,
                          const cpu::Kernels& kernels) {
  const Scratch scratch = allocate(kernels.scratch_bytes(p));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t band = unit % bands, head = unit / bands % p.heads;
    const int64_t image = unit / bands / p.heads;
    const cpu::Slab slab{image / p.cameras, image % p.cameras, head,
                         flash_deform_attn::band_start(p, band, bands),
                         flash_deform_attn::band_start(p, band + 1, bands)};
    Scratch sums;
    if (element_bytes(p.dtype) == 2) {
      sums = allocate(sizeof(float) * (slab.pixel_end - slab.pixel_begin) * p.channels);
    }
    kernels.backward_value(p, slab, sums.get(), scratch.get());
  }
}

void backward_value(const Params& p, const cpu::Kernels& kernels) {
  const int64_t units = p.batch * p.cameras * p.heads;
  const int64_t bands = flash_deform_attn::bands_per_unit(p, units);
  // Mostly, one camera sees a query.
  const double nanoseconds =
      p.queries * item_nanoseconds(p) / p.cameras + p.pixels * p.channels * 0.1;
  torch::stable::parallel_for(
      0, units * bands, worth_a_thread(nanoseconds),
      [&](int64_t begin, int64_t end) { backward_value_bands(p, bands, begin, end, kernels); });
}

struct CpuKernels {
  static constexpr DeviceType kDevice = DeviceType::CPU;

  static Tensor readable_value(const Tensor& value) {
    return bev_cross_attn::readable_value(value);
  }

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
}  // namespace dcnv4_mm::bev_cross_attn

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CPU, m) {
  using dcnv4_mm::bev_cross_attn::CpuOperators;
  m.impl("bev_cross_attn_forward", TORCH_BOX(&CpuOperators::forward));
  m.impl("bev_cross_attn_backward", TORCH_BOX(&CpuOperators::backward));
}
