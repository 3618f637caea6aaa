// BEV cross-attention on CUDA tensors: memory and streams.
//
// Nothing here waits for the device or reads from it, and all memory is torch's, so that calls can
// be captured in CUDA graphs.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "bev_cross_attn/cuda.h"
#include "bev_cross_attn/operators.h"
#include "common/cuda_bindings.h"
#include "common/dispatch.h"
#include "common/workspace.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

using torch::stable::accelerator::DeviceGuard;

void check_size(const Params& p) {
  const char* reason = why_too_large(p);
  check(reason == nullptr, "bev_cross_attn: the CUDA kernels cannot index ", reason ? reason : "");
}

struct CudaKernels {
  static constexpr DeviceType kDevice = DeviceType::CUDA;

  static Tensor readable_value(const Tensor& value) {
    return flash_deform_attn::is_indexable(value.size(2), value.stride(2))
               ? bev_cross_attn::readable_value(value)
               : torch::stable::contiguous(value);
  }

  static void forward(const Params& p, const Tensor& value) {
    check_size(p);
    const Device device = device_at(value.get_device_index());
    const DeviceGuard guard(device.index);
    with_storage(p.dtype, [&](auto storage) {
      cuda::forward<decltype(storage)>(p, device, current_stream(device.index));
    });
  }

  static void backward(const Params& p, const Tensor& value, const Tensor& grad_value,
                       bool deterministic) {
    check_size(p);
    const Device device = device_at(value.get_device_index());
    const DeviceGuard guard(device.index);
    with_storage(p.dtype, [&](auto storage) {
      using Storage = decltype(storage);
      const cudaStream_t stream = current_stream(device.index);
      if (p.grad_weights) cuda::backward_points<Storage>(p, device, stream);
      if (!p.grad_value) return;
      if (deterministic) {
        sum_gradients_fixed(
            grad_value, p.dtype, p.batch * p.heads, [&](int64_t* sums, uint32_t* exponents) {
              cuda::backward_value_fixed<Storage>(p, sums, exponents, device, stream);
            });
      } else {
        sum_gradients(grad_value, p.dtype, [&](void* sums) {
          cuda::backward_value_atomic<Storage>(p, sums, device, stream);
        });
      }
    });
  }
};

using CudaOperators = Operators<CudaKernels>;

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CUDA, m) {
  using dcnv4_mm::bev_cross_attn::CudaOperators;
  m.impl("bev_cross_attn_forward", TORCH_BOX(&CudaOperators::forward));
  m.impl("bev_cross_attn_backward", TORCH_BOX(&CudaOperators::backward));
}
