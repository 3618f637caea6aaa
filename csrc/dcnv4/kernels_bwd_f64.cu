#include "dcnv4/kernels_bwd.cuh"

namespace dcnv4_mm::dcnv4::cuda {

template void backward_offset_mask<double>(const Params&, const Device&, cudaStream_t);
template void backward_value_fixed<double>(const Params&, int64_t*, uint32_t*, const Device&,
                                           cudaStream_t);
template void backward_value_atomic<double>(const Params&, void*, const Device&, cudaStream_t);

}  // namespace dcnv4_mm::dcnv4::cuda
