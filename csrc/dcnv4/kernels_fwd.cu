// Compiled once for each storage type.
#include "dcnv4/kernels_fwd.cuh"

namespace dcnv4_mm::dcnv4::cuda {

template void forward<DCNV4_MM_STORAGE>(const Params&, bool, const Device&, cudaStream_t);

}  // namespace dcnv4_mm::dcnv4::cuda
