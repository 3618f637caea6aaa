#include "flash_deform_attn/kernels_bwd.cuh"

namespace dcnv4_mm::flash_deform_attn::cuda {

template void backward_points<Half>(const Params&, const Device&, cudaStream_t);
template void backward_value_fixed<Half>(const Params&, int64_t*, uint32_t*, const Device&,
                                         cudaStream_t);
template void backward_value_atomic<Half>(const Params&, void*, const Device&, cudaStream_t);

}  // namespace dcnv4_mm::flash_deform_attn::cuda
