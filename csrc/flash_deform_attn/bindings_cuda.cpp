// The attention operators on CUDA tensors: memory and streams.
//
// Nothing here waits for the device or reads from it, and all memory is torch's, so that calls can
// be captured in CUDA graphs.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/cuda_bindings.h"
#include "common/dispatch.h"
#include "flash_deform_attn/cuda.h"
#include "flash_deform_attn/operators.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::accelerator::DeviceGuard;

void check_size(const Params& p) {
  const char* reason = why_too_large(p);
  check(reason == nullptr, "flash_deform_attn: the CUDA kernels cannot index ",
        reason ? reason : "");
}

// Sums of 16-bit gradients are kept in float32 until the last one is added.
void backward_value_atomic(const Params& p, const Tensor& grad_value_in, const Device& device) {
  Tensor grad_value = grad_value_in;
  const bool is_sum = element_bytes(p.dtype) == real_bytes(p.dtype);
  const Ints shape = {p.batch, p.pixels, p.heads, p.channels};
  Tensor sums = is_sum ? torch::stable::zero_(grad_value)
                       : torch::stable::new_zeros(grad_value, shape, ScalarType::Float);
  with_storage(p.dtype, [&](auto storage) {
    cuda::backward_value_atomic<decltype(storage)>(p, sums.mutable_data_ptr(), device,
                                                   current_stream(device.index));
  });
  if (!is_sum) torch::stable::copy_(grad_value, sums);
}

struct CudaKernels {
  static constexpr DeviceType kDevice = DeviceType::CUDA;

  static Tensor readable_value(const Tensor& value) {
    return value.stride(1) <= kMostPitch ? readable(value, 3) : torch::stable::contiguous(value);
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
      if (p.grad_value && deterministic) cuda::backward_value_owned<Storage>(p, device, stream);
    });
    if (p.grad_value && !deterministic) backward_value_atomic(p, grad_value, device);
  }
};

using CudaOperators = Operators<CudaKernels>;

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CUDA, m) {
  using dcnv4_mm::flash_deform_attn::CudaOperators;
  m.impl("ms_deform_attn_forward", TORCH_BOX(&CudaOperators::ms_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&CudaOperators::ms_backward));
  m.impl("flash_deform_attn_forward", TORCH_BOX(&CudaOperators::flash_forward));
  m.impl("flash_deform_attn_backward", TORCH_BOX(&CudaOperators::flash_backward));
}
