#include "bev_cross_attn/kernels_bwd.cuh"

namespace dcnv4_mm::bev_cross_attn::cuda {

template void backward_points<double>(const Params&, const Device&, cudaStream_t);
template void backward_value_owned<double>(const Params&, const Device&, cudaStream_t);
template void backward_value_atomic<double>(const Params&, void*, const Device&, cudaStream_t);

}  // namespace dcnv4_mm::bev_cross_attn::cuda
