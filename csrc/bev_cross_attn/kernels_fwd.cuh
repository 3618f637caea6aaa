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

template <typename Storage, int channels>
__global__ void __launch_bounds__(256, 4)
    forward_kernel(const __grid_constant__ Params params, const __grid_constant__ Geometry geometry,
                   const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  forward_block<Storage, channels>(params, geometry, tiling, blockIdx.x, team);
}

}  // namespace

template <typename Storage>
void forward(const Params& params, const Device& device, cudaStream_t stream) {
  with_forward_channels<Storage>(params, vector_channels(params), [&](auto channels) {
    const Tiling tiling = choose_tiling(params, channels, device.limits);
    launch_kernel(forward_kernel<Storage, channels>, tiling, stream, params, geometry_of(params),
                  tiling);
  });
}

}  // namespace dcnv4_mm::bev_cross_attn::cuda
