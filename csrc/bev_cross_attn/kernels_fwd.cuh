// The forward kernel of BEV cross-attention and its launch; included by one file for each storage
// type.
#pragma once

#include "bev_cross_attn/cuda.h"
#include "bev_cross_attn/forward_body.h"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/team.cuh"

namespace dcnv4_mm::bev_cross_attn::cuda {
namespace {

template <typename Storage, int vector>
__global__ void __launch_bounds__(256, 4)
    forward_kernel(const __grid_constant__ Params params, const __grid_constant__ Geometry geometry,
                   const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  forward_block<Storage, vector>(params, geometry, tiling, blockIdx.x, team);
}

}  // namespace

template <typename Storage>
void forward(const Params& params, const Device& device, cudaStream_t stream) {
  with_vector<kWidestLoad / int(sizeof(Storage))>(vector_channels(params), [&](auto vector) {
    const Tiling tiling = choose_tiling(params, vector, device.limits);
    launch_kernel(forward_kernel<Storage, vector>, tiling, stream, params, geometry_of(params),
                  tiling);
  });
}

}  // namespace dcnv4_mm::bev_cross_attn::cuda
