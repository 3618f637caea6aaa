// The backward kernels of DCNv4 and their launches; included by one file for each storage type.
#pragma once

#include "common/launch.cuh"
#include "common/team.cuh"
#include "dcnv4/backward_body.h"
#include "dcnv4/cuda.h"
#include "dcnv4/instances.h"

namespace dcnv4_mm::dcnv4::cuda {
namespace {

template <typename Storage, int vector, int special>
__global__ void __launch_bounds__(128, sizeof(Storage) == sizeof(double) || special == 9 ? 4 : 5)
    backward_offset_mask_kernel(const __grid_constant__ Params params,
                                const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  backward_offset_mask_block<Storage, vector, special>(params, tiling, blockIdx.x, team);
}

template <typename Storage, int unit, int units>
__global__ void __launch_bounds__(256, 4)
    backward_value_atomic_kernel(const __grid_constant__ Params params,
                                 const __grid_constant__ Tiling tiling,
                                 const RealSums<RealOf<Storage>> sums) {
  DeviceTeam team;
  backward_value_block<Storage, unit, units>(params, tiling, blockIdx.x, sums, team);
}

template <typename Storage, int units>
__global__ void __launch_bounds__(256, 4)
    backward_value_fixed_kernel(const __grid_constant__ Params params,
                                const __grid_constant__ Tiling tiling,
                                const FixedSums<RealOf<Storage>> sums) {
  DeviceTeam team;
  backward_value_block<Storage, 1, units>(params, tiling, blockIdx.x, sums, team);
}

template <typename Storage>
__global__ void __launch_bounds__(256)
    backward_magnitudes_kernel(const __grid_constant__ Magnitudes magnitudes, uint32_t* exponents) {
  DeviceTeam team;
  magnitudes_block<Storage>(magnitudes, blockIdx.x, exponents, team);
}

template <typename Storage>
__global__ void __launch_bounds__(256)
    backward_conversion_kernel(const __grid_constant__ Conversion conversion,
                               const FixedSums<RealOf<Storage>> sums, void* result) {
  DeviceTeam team;
  convert_block<Storage>(conversion, blockIdx.x, sums, result, team);
}

}  // namespace

template <typename Storage>
void backward_offset_mask(const Params& params, const Device& device, cudaStream_t stream) {
  with_instance<Storage>(params, [&](auto vector, auto special) {
    const Tiling tiling = choose_point_tiling<special>(params, vector, device.limits);
    launch_kernel(backward_offset_mask_kernel<Storage, vector, special>, tiling, stream, params,
                  tiling);
  });
}

template <typename Storage>
void backward_value_atomic(const Params& params, void* sums, const Device& device,
                           cudaStream_t stream) {
  using Real = RealOf<Storage>;
  const Spread spread = choose_spread(params, false, device.limits);
  with_spread<Storage>(spread, [&](auto unit, auto units) {
    const Tiling tiling = choose_tiling(params, unit * units, device.limits);
    launch_kernel(backward_value_atomic_kernel<Storage, unit, units>, tiling, stream, params,
                  tiling, RealSums<Real>{static_cast<Real*>(sums)});
  });
}

template <typename Storage>
void backward_value_fixed(const Params& params, int64_t* sums, uint32_t* exponents,
                          const Device& device, cudaStream_t stream) {
  using Fixed = FixedSums<RealOf<Storage>>;
  const int64_t size =
      params.batch * params.height * params.width * params.groups * params.group_channels;
  const int32_t bits = product_bits(most_products(params));
  const Spread spread = choose_spread(params, true, device.limits);
  launch_kernel(backward_magnitudes_kernel<Storage>, magnitudes_of(params), stream,
                magnitudes_of(params), exponents);
  with_fixed_spread<Storage>(spread, [&](auto units) {
    const Tiling tiling = choose_tiling(params, units, device.limits);
    launch_kernel(backward_value_fixed_kernel<Storage, units>, tiling, stream, params, tiling,
                  Fixed{sums, exponents, bits, size});
  });
  const Conversion conversion = conversion_of(params.batch, params.height * params.width,
                                              params.groups, params.group_channels);
  launch_kernel(backward_conversion_kernel<Storage>, conversion, stream, conversion,
                Fixed{sums, exponents, bits, size}, params.grad_value);
}

}  // namespace dcnv4_mm::dcnv4::cuda
