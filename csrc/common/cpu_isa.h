// Which instruction set the CPU kernels of this process use.
#pragma once

#include <atomic>
#include <cstdlib>
#include <string>

#include "common/argument_checks.h"

namespace dcnv4_mm {

enum class CpuIsa { kDefault, kAvx2, kAvx512 };

inline const char* name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

// Whether this machine has all instructions that the files of an instruction set are compiled for.
inline bool is_supported(CpuIsa isa) {
  if (isa == CpuIsa::kDefault) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == CpuIsa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// The widest instruction set of this machine, or the one that DCNV4_MM_CPU_ISA names. Raises if
// that one is unknown or not supported.
inline CpuIsa choose_cpu_isa() {
  const CpuIsa all[] = {CpuIsa::kAvx512, CpuIsa::kAvx2, CpuIsa::kDefault};
  const char* wish = std::getenv("DCNV4_MM_CPU_ISA");
  for (CpuIsa isa : all) {
    if (wish == nullptr || *wish == '\0') {
      if (is_supported(isa)) return isa;
    } else if (std::string(wish) == name_of(isa)) {
      check(is_supported(isa), "DCNV4_MM_CPU_ISA=", wish, ": this machine does not support it");
      return isa;
    }
  }
  check(false, "DCNV4_MM_CPU_ISA must be default, avx2 or avx512, got '", wish, "'");
  return CpuIsa::kDefault;
}

// Chosen at the first call; tests change it afterwards.
inline std::atomic<CpuIsa>& chosen_cpu_isa() {
  static std::atomic<CpuIsa> isa{choose_cpu_isa()};
  return isa;
}

inline CpuIsa cpu_isa() { return chosen_cpu_isa().load(std::memory_order_relaxed); }

}  // namespace dcnv4_mm
