#include "dcnv4/cpu_kernels.h"

namespace dcnv4_mm::dcnv4::cpu {

const KernelTable kAvx2Kernels = kernel_table();

}  // namespace dcnv4_mm::dcnv4::cpu
