// The backward kernels of the attention operators and their launches; included by one file for each
// operator and storage type.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/team.cuh"
#include "flash_deform_attn/backward_body.h"
#include "flash_deform_attn/cuda.h"

namespace dcnv4_mm::flash_deform_attn::cuda {
namespace {

// With more blocks a multiprocessor, the kernels would spill.
template <typename Storage, typename Sampling>
constexpr int kPointBlocks =
    sizeof(Storage) == sizeof(double) || (kHalfFull == 3 && !Sampling::kOneImage) ? 2 : 3;

template <typename Storage, int vector, typename Sampling>
__global__ void __launch_bounds__(256, (kPointBlocks<Storage, Sampling>))
    backward_points_kernel(const __grid_constant__ typename Sampling::Params params,
                           const __grid_constant__ typename Sampling::Geometry geometry,
                           const __grid_constant__ Tiling tiling) {
  DeviceTeam team;
  backward_points_block<Storage, vector>(Sampling{params, geometry}, tiling, blockIdx.x, team);
}

template <typename Storage, int unit, int units, typename Sampling>
__global__ void __launch_bounds__(256, sizeof(Storage) == sizeof(double) ? 3 : 4)
    backward_value_atomic_kernel(const __grid_constant__ typename Sampling::Params params,
                                 const __grid_constant__ typename Sampling::Geometry geometry,
                                 const __grid_constant__ Tiling tiling,
                                 const RealSums<RealOf<Storage>> sums) {
  DeviceTeam team;
  backward_value_block<Storage, unit, units>(Sampling{params, geometry}, tiling, blockIdx.x, sums,
                                             team);
}

template <typename Storage, int units, typename Sampling>
__global__ void __launch_bounds__(256, sizeof(Storage) == sizeof(double) ? 3 : 4)
    backward_value_fixed_kernel(const __grid_constant__ typename Sampling::Params params,
                                const __grid_constant__ typename Sampling::Geometry geometry,
                                const __grid_constant__ Tiling tiling,
                                const FixedSums<RealOf<Storage>> sums) {
  DeviceTeam team;
  backward_value_block<Storage, 1, units>(Sampling{params, geometry}, tiling, blockIdx.x, sums,
                                          team);
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

template <typename Storage, typename Sampling>
void launch_points(const typename Sampling::Params& params, const Device& device,
                   cudaStream_t stream) {
  with_vector<kWidestLoad / int(sizeof(Storage))>(vector_channels(params), [&](auto vector) {
    const Tiling tiling = choose_point_tiling(params, vector, device.limits);
    launch_kernel(backward_points_kernel<Storage, vector, Sampling>, tiling, stream, params,
                  geometry_of(params), tiling);
  });
}

template <typename Storage, typename Sampling>
void launch_value_atomic(const typename Sampling::Params& params, void* sums, const Device& device,
                         cudaStream_t stream) {
  using Real = RealOf<Storage>;
  const Spread spread =
      choose_spread(params.channels, params.dtype, vector_channels(params), false, device.limits);
  with_spread<Storage>(spread, [&](auto unit, auto units) {
    const Tiling tiling = choose_tiling(params, unit * units, device.limits);
    launch_kernel(backward_value_atomic_kernel<Storage, unit, units, Sampling>, tiling, stream,
                  params, geometry_of(params), tiling, RealSums<Real>{static_cast<Real*>(sums)});
  });
}

template <typename Storage, typename Sampling>
void launch_value_fixed(const typename Sampling::Params& params, int64_t* sums, uint32_t* exponents,
                        const Device& device, cudaStream_t stream) {
  using Fixed = FixedSums<RealOf<Storage>>;
  const int64_t images = params.batch * images_per_query(params);
  const Fixed fixed{sums, exponents, product_bits(most_products(params)),
                    images * params.pixels * params.heads * params.channels};
  const Spread spread =
      choose_spread(params.channels, params.dtype, vector_channels(params), true, device.limits);
  const Magnitudes magnitudes = magnitudes_of(params);
  launch_kernel(backward_magnitudes_kernel<Storage>, magnitudes, stream, magnitudes, exponents);
  with_fixed_spread<Storage>(spread, [&](auto units) {
    const Tiling tiling = choose_tiling(params, units, device.limits);
    launch_kernel(backward_value_fixed_kernel<Storage, units, Sampling>, tiling, stream, params,
                  geometry_of(params), tiling, fixed);
  });
  const Conversion conversion =
      conversion_of(images, params.pixels, params.heads, params.channels, images_per_query(params));
  launch_kernel(backward_conversion_kernel<Storage>, conversion, stream, conversion, fixed,
                params.grad_value);
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cuda
