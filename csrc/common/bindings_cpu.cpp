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
