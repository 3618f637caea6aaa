#include "bev_cross_attn/kernels_fwd.cuh"

namespace dcnv4_mm::bev_cross_attn::cuda {

template void forward<float>(const Params&, const Device&, cudaStream_t);

}  // namespace dcnv4_mm::bev_cross_attn::cuda
