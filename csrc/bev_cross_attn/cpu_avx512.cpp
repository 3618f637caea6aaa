#include "bev_cross_attn/cpu_kernels.h"

namespace dcnv4_mm::bev_cross_attn::cpu {

const KernelTable kAvx512Kernels = kernel_table();

}  // namespace dcnv4_mm::bev_cross_attn::cpu
