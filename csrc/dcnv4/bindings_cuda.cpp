// The operators dcnv4_forward and dcnv4_backward on CUDA tensors: checks, memory and streams.
//
// Nothing here waits for the device or reads from it, and all memory is torch's, so that calls can
// be captured in CUDA graphs.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/cuda_bindings.h"
#include "common/dispatch.h"
#include "common/workspace.h"
#include "dcnv4/cuda.h"
#include "dcnv4/problem.h"

namespace dcnv4_mm::dcnv4 {
namespace {

constexpr DeviceType kCuda = DeviceType::CUDA;

void check_size(const Params& p) {
  const char* reason = why_too_large(p);
  check(reason == nullptr, "dcnv4: the CUDA kernels cannot index ", reason ? reason : "");
}

// `value` where its pixels are not so far apart that the kernels could not index them.
Tensor indexable_value(const Params& p, const Tensor& value) {
  const Tensor result = readable_value(value);
  const bool fits = is_indexable(value_pitches_of(result), p.height);
  return fits ? result : torch::stable::contiguous(result);
}

Tensor forward(const Tensor& value_in, const Tensor& offset_mask_in, const Ints& kernel_size,
               const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
               double offset_scale, bool remove_center, bool fast) {
  Params p = read_problem(kCuda, value_in, offset_mask_in, kernel_size, stride, padding, dilation,
                          groups, offset_scale, remove_center);
  const Device device = device_at(value_in.get_device_index());
  const torch::stable::accelerator::DeviceGuard guard(device.index);
  const Tensor value = indexable_value(p, value_in);
  const Tensor offset_mask = readable(offset_mask_in);
  set_inputs(&p, value, offset_mask);
  check_size(p);
  const Tensor output = make_output(&p, value);
  with_storage(p.dtype, [&](auto storage) {
    cuda::forward<decltype(storage)>(p, fast, device, current_stream(device.index));
  });
  return output;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value_in,
                                    const Tensor& offset_mask_in, const Ints& kernel_size,
                                    const Ints& stride, const Ints& padding, const Ints& dilation,
                                    int64_t groups, double offset_scale, bool remove_center,
                                    bool /*fast*/, bool deterministic, bool need_value_grad,
                                    bool need_offset_mask_grad) {
  Params p = read_problem(kCuda, value_in, offset_mask_in, kernel_size, stride, padding, dilation,
                          groups, offset_scale, remove_center);
  const Device device = device_at(value_in.get_device_index());
  const torch::stable::accelerator::DeviceGuard guard(device.index);
  const Tensor value = indexable_value(p, value_in);
  const Tensor offset_mask = readable(offset_mask_in);
  set_inputs(&p, value, offset_mask);
  check_size(p);
  const Tensor grad_output = read_grad_output(kCuda, &p, grad_output_in, value);
  auto gradients = make_gradients(&p, value, need_value_grad, need_offset_mask_grad);
  if (p.batch == 0) return gradients;

  const cudaStream_t stream = current_stream(device.index);
  with_storage(p.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    if (need_offset_mask_grad) cuda::backward_offset_mask<Storage>(p, device, stream);
    if (!need_value_grad) return;
    const Tensor& grad_value = std::get<0>(gradients);
    if (deterministic) {
      sum_gradients_fixed(grad_value, p.dtype, p.batch * p.groups,
                          [&](int64_t* sums, uint32_t* exponents) {
                            cuda::backward_value_fixed<Storage>(p, sums, exponents, device, stream);
                          });
    } else {
      sum_gradients(grad_value, p.dtype, [&](void* sums) {
        cuda::backward_value_atomic<Storage>(p, sums, device, stream);
      });
    }
  });
  return gradients;
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CUDA, m) {
  m.impl("dcnv4_forward", TORCH_BOX(&dcnv4_mm::dcnv4::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&dcnv4_mm::dcnv4::backward));
}
