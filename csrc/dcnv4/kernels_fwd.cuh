// The forward kernel of DCNv4 and its launch; included by one file for each storage type.
#pragma once

#include "common/launch.cuh"
#include "common/team.cuh"
#include "dcnv4/cuda.h"
#include "dcnv4/forward_body.h"
#include "dcnv4/instances.h"

namespace dcnv4_mm::dcnv4::cuda {
namespace {

template <typename Storage, int vector, int special, int way>
__global__ void __launch_bounds__(256, kHalfFull)
    forward_kernel(const __grid_constant__ Params params, const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  forward_block<Storage, vector, special, way>(params, tiling, blockIdx.x, team);
}

}  // namespace

template <typename Storage>
void forward(const Params& params, bool fast, const Device& device, cudaStream_t stream) {
  with_forward_instance<Storage>(params, fast, [&](auto vector, auto special, auto way) {
    const Tiling tiling = choose_forward_tiling<special, way>(params, vector, device.limits);
    launch_kernel(forward_kernel<Storage, vector, special, way>, tiling, stream, params, tiling);
  });
}

}  // namespace dcnv4_mm::dcnv4::cuda
