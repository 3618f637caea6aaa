// Compiled once for each storage type.
#include "flash_deform_attn/cuda.h"
#include "flash_deform_attn/kernels_fwd.cuh"
#include "flash_deform_attn/sampling.h"

namespace dcnv4_mm::flash_deform_attn::cuda {

template <>
void forward<DCNV4_MM_STORAGE>(const Params& params, const Device& device, cudaStream_t stream) {
  flash_deform_attn::cuda::launch_forward<DCNV4_MM_STORAGE, Sampling>(params, device, stream);
}

}  // namespace dcnv4_mm::flash_deform_attn::cuda
