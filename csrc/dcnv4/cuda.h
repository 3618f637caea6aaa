// The launches of the CUDA kernels of DCNv4, which know nothing of torch.
#pragma once

#include <cuda_runtime_api.h>

#include "common/storage.h"
#include "dcnv4/launch.h"

namespace dcnv4_mm::dcnv4::cuda {

// Every function needs `device` to be the current one, and only enqueues. All throw
// std::runtime_error if a launch fails. There is one instance per storage type.

// Computes params.output.
template <typename Storage>
void forward(const Params& params, bool fast, const Device& device, cudaStream_t stream);

// Computes params.grad_offset_mask.
template <typename Storage>
void backward_offset_mask(const Params& params, const Device& device, cudaStream_t stream);

// Adds the gradient of value to `sums` [N, H, W, G * D], of the type of the arithmetic.
template <typename Storage>
void backward_value_atomic(const Params& params, void* sums, const Device& device,
                           cudaStream_t stream);

// Computes params.grad_value, always with the same bits. `sums` [N, H, W, G * D] and `exponents`
// [N, G, 2] are workspace, 0 before.
template <typename Storage>
void backward_value_fixed(const Params& params, int64_t* sums, uint32_t* exponents,
                          const Device& device, cudaStream_t stream);

}  // namespace dcnv4_mm::dcnv4::cuda
