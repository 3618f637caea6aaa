// Which CPU kernels serve a DCNv4 problem on this machine, and how long they take.
#pragma once

#include "common/cpu_isa.h"
#include "dcnv4/cpu.h"

namespace dcnv4_mm::dcnv4 {
namespace {

const cpu::Kernels& kernels_for(DType dtype) {
  const cpu::KernelTable* table = &cpu::kDefaultKernels;
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kAvx2) table = &cpu::kAvx2Kernels;
  if (cpu_isa() == CpuIsa::kAvx512) table = &cpu::kAvx512Kernels;
#endif
  return table->kernels[static_cast<int>(dtype)];
}

// An item, one group of one output pixel, takes about this many nanoseconds.
double item_nanoseconds(const Params& p) { return p.points * (3.0 + 0.1 * p.group_channels); }

}  // namespace
}  // namespace dcnv4_mm::dcnv4
