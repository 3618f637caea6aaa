// The launches of the CUDA kernels of BEV cross-attention, which know nothing of torch.
#pragma once

#include <cuda_runtime_api.h>

#include "bev_cross_attn/launch.h"
#include "common/storage.h"

namespace dcnv4_mm::bev_cross_attn::cuda {

// Every function needs `device` to be the current one, and only enqueues. All throw
// std::runtime_error if a launch fails. There is one instance per storage type of value.

// Computes params.output.
template <typename Storage>
void forward(const Params& params, const Device& device, cudaStream_t stream);

// Computes params.grad_locations and params.grad_weights.
template <typename Storage>
void backward_points(const Params& params, const Device& device, cudaStream_t stream);

// Adds the gradient of value to `sums` [B, N, S, G, D], of the type of the arithmetic.
template <typename Storage>
void backward_value_atomic(const Params& params, void* sums, const Device& device,
                           cudaStream_t stream);

// Computes params.grad_value, always with the same bits. `sums` [B, N, S, G, D] and `exponents`
// [B, G, 2] are workspace, 0 before.
template <typename Storage>
void backward_value_fixed(const Params& params, int64_t* sums, uint32_t* exponents,
                          const Device& device, cudaStream_t stream);

}  // namespace dcnv4_mm::bev_cross_attn::cuda
