// The operator cpu_isa, which says what instruction set the CPU kernels use.

#include <torch/csrc/stable/library.h>

#include <string>

#include "common/cpu_isa.h"

namespace {

std::string cpu_isa() { return dcnv4_mm::name_of(dcnv4_mm::cpu_isa()); }

}  // namespace

// It takes no tensor that would choose a device.
STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

// For tests, which run all kernels in one process: uses another instruction set from now on, if
// this machine has it.
extern "C" __attribute__((visibility("default"))) bool dcnv4_mm_use_cpu_isa(const char* name) {
  using namespace dcnv4_mm;
  for (CpuIsa isa : {CpuIsa::kDefault, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (name_of(isa) != std::string(name) || !is_supported(isa)) continue;
    chosen_cpu_isa() = isa;
    return true;
  }
  return false;
}
