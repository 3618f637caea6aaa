// Which CPU kernels serve an attention problem on this machine, and how long they take.
#pragma once

#include "common/cpu_isa.h"
#include "flash_deform_attn/cpu.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

const cpu::Kernels& kernels_for(const Params& p) {
  const cpu::KernelTable* table = &cpu::kDefaultKernels;
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kAvx2) table = &cpu::kAvx2Kernels;
  if (cpu_isa() == CpuIsa::kAvx512) table = &cpu::kAvx512Kernels;
#endif
  return table->kernels[static_cast<int>(p.dtype)][p.float32_points];
}

// An item, one head of one query, takes about this many nanoseconds.
double item_nanoseconds(const Params& p) {
  return p.num_levels * p.num_points * (3.0 + 0.1 * p.channels);
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
