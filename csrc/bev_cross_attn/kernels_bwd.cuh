// The backward kernels of BEV cross-attention and their launches; included by one file for each
// storage type.
#pragma once

#include <atomic>

#include "bev_cross_attn/backward_body.h"
#include "bev_cross_attn/cuda.h"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/team.cuh"

namespace dcnv4_mm::bev_cross_attn::cuda {
namespace {

// With three blocks a multiprocessor, the float32 kernel would spill.
template <typename Storage, int vector>
__global__ void __launch_bounds__(256, sizeof(Storage) < sizeof(float) ? 3 : 2)
    backward_points_kernel(const __grid_constant__ Params params,
                           const __grid_constant__ Geometry geometry,
                           const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  backward_points_block<Storage, vector>(params, geometry, tiling, blockIdx.x, team);
}

template <typename Storage>
__global__ void __launch_bounds__(256, 2)
    backward_value_owned_kernel(const __grid_constant__ Params params,
                                const __grid_constant__ Geometry geometry,
                                const __grid_constant__ Ownership ownership) {
  DeviceTeam team;
  backward_value_owned_block<Storage>(params, geometry, ownership, blockIdx.x, team);
}

template <typename Storage, int unit, int units>
__global__ void __launch_bounds__(256, 4)
    backward_value_atomic_kernel(const __grid_constant__ Params params,
                                 const __grid_constant__ Geometry geometry,
                                 const __grid_constant__ Tiling tiling, RealOf<Storage>* sums) {
  DeviceTeam team;
  backward_value_atomic_block<Storage, unit, units>(params, geometry, tiling, blockIdx.x, sums,
                                                    team);
}

// Allows a kernel all the shared memory that a block can have; requested once per device.
template <typename Storage>
void allow_shared_memory(const Device& device) {
  static std::atomic<uint64_t> allowed{0};  // one bit per device
  const uint64_t bit = device.index < 64 ? uint64_t(1) << device.index : 0;
  if (allowed.load(std::memory_order_relaxed) & bit) return;
  check_cuda(cudaFuncSetAttribute(backward_value_owned_kernel<Storage>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  device.limits.shared_per_block));
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace

template <typename Storage>
void backward_points(const Params& params, const Device& device, cudaStream_t stream) {
  with_vector<kWidestLoad / int(sizeof(Storage))>(vector_channels(params), [&](auto vector) {
    const Tiling tiling = choose_point_tiling(params, vector, device.limits);
    launch_kernel(backward_points_kernel<Storage, vector>, tiling, stream, params,
                  geometry_of(params), tiling);
  });
}

template <typename Storage>
void backward_value_owned(const Params& params, const Device& device, cudaStream_t stream) {
  const Ownership ownership = choose_ownership(params, device.limits);
  if (ownership.shared_bytes > kSharedByDefault) allow_shared_memory<Storage>(device);
  launch_kernel(backward_value_owned_kernel<Storage>, ownership, stream, params,
                geometry_of(params), ownership);
}

template <typename Storage>
void backward_value_atomic(const Params& params, void* sums, const Device& device,
                           cudaStream_t stream) {
  const Spread spread =
      choose_spread(params.channels, params.dtype, vector_channels(params), device.limits);
  with_spread<Storage>(spread, [&](auto unit, auto units) {
    const Tiling tiling = choose_tiling(params, unit * units, device.limits);
    launch_kernel(backward_value_atomic_kernel<Storage, unit, units>, tiling, stream, params,
                  geometry_of(params), tiling, static_cast<RealOf<Storage>*>(sums));
  });
}

}  // namespace dcnv4_mm::bev_cross_attn::cuda
