// Compiled once for each storage type.
#include "bev_cross_attn/cuda.h"
#include "bev_cross_attn/sampling.h"
#include "flash_deform_attn/kernels_fwd.cuh"

namespace dcnv4_mm::bev_cross_attn::cuda {

template <>
void forward<DCNV4_MM_STORAGE>(const Params& params, const Device& device, cudaStream_t stream) {
  flash_deform_attn::cuda::launch_forward<DCNV4_MM_STORAGE, Sampling>(params, device, stream);
}

}  // namespace dcnv4_mm::bev_cross_attn::cuda
