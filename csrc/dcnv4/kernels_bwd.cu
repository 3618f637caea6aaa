// Compiled once for each storage type.
#include "dcnv4/kernels_bwd.cuh"

namespace dcnv4_mm::dcnv4::cuda {

template void backward_offset_mask<DCNV4_MM_STORAGE>(const Params&, const Device&, cudaStream_t);
template void backward_value_fixed<DCNV4_MM_STORAGE>(const Params&, int64_t*, uint32_t*,
                                                     const Device&, cudaStream_t);
template void backward_value_atomic<DCNV4_MM_STORAGE>(const Params&, void*, const Device&,
                                                      cudaStream_t);

}  // namespace dcnv4_mm::dcnv4::cuda
