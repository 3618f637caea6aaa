// The forward kernel of the attention operators and its launch; included by one file for each
// operator and storage type.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/team.cuh"
#include "flash_deform_attn/cuda.h"
#include "flash_deform_attn/forward_body.h"

namespace dcnv4_mm::flash_deform_attn::cuda {
namespace {

// With three blocks a multiprocessor, two vectors of several cameras would spill.
template <typename Storage, int channels, typename Sampling>
constexpr int kForwardBlocks =
    kHalfFull == 3 && load_width<Storage>(channels) < channels && !Sampling::kOneImage ? 2
                                                                                       : kHalfFull;

template <typename Storage, int channels, typename Sampling>
__global__ void __launch_bounds__(256, (kForwardBlocks<Storage, channels, Sampling>))
    forward_kernel(const __grid_constant__ typename Sampling::Params params,
                   const __grid_constant__ typename Sampling::Geometry geometry,
                   const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  forward_block<Storage, channels>(Sampling{params, geometry}, tiling, blockIdx.x, team);
}

template <typename Storage, typename Sampling>
void launch_forward(const typename Sampling::Params& params, const Device& device,
                    cudaStream_t stream) {
  with_forward_channels<Storage>(params, vector_channels(params), [&](auto channels) {
    const Tiling tiling = choose_tiling(params, channels, device.limits);
    launch_kernel(forward_kernel<Storage, channels, Sampling>, tiling, stream, params,
                  geometry_of(params), tiling);
  });
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cuda
