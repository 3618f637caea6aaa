// Compiled once for each storage type.
#include "flash_deform_attn/cuda.h"
#include "flash_deform_attn/kernels_bwd.cuh"
#include "flash_deform_attn/sampling.h"

namespace dcnv4_mm::flash_deform_attn::cuda {

template <>
void backward_points<DCNV4_MM_STORAGE>(const Params& params, const Device& device,
                                       cudaStream_t stream) {
  flash_deform_attn::cuda::launch_points<DCNV4_MM_STORAGE, Sampling>(params, device, stream);
}

template <>
void backward_value_atomic<DCNV4_MM_STORAGE>(const Params& params, void* sums, const Device& device,
                                             cudaStream_t stream) {
  flash_deform_attn::cuda::launch_value_atomic<DCNV4_MM_STORAGE, Sampling>(params, sums, device,
                                                                           stream);
}

template <>
void backward_value_fixed<DCNV4_MM_STORAGE>(const Params& params, int64_t* sums,
                                            uint32_t* exponents, const Device& device,
                                            cudaStream_t stream) {
  flash_deform_attn::cuda::launch_value_fixed<DCNV4_MM_STORAGE, Sampling>(params, sums, exponents,
                                                                          device, stream);
}

}  // namespace dcnv4_mm::flash_deform_attn::cuda
