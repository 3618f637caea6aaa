#include "flash_deform_attn/cpu_kernels.h"

namespace dcnv4_mm::flash_deform_attn::cpu {

const KernelTable kDefaultKernels = kernel_table();

}  // namespace dcnv4_mm::flash_deform_attn::cpu
