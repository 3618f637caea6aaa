// Reading the arguments of dcnv4_forward and dcnv4_backward, and checking them: whatever they are,
// the kernels see a problem that they can solve. The same on every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/tensor_checks.h"
#include "dcnv4/geometry.h"

namespace dcnv4_mm::dcnv4 {
namespace {

using torch::headeronly::DeviceType;
using torch::stable::Tensor;

Pitches pitches_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// The pitches of `value`; along an axis of size 1 the stride is arbitrary, and is set to fit.
Pitches value_pitches_of(const Tensor& value) {
  Pitches pitches = pitches_of(value);
  if (value.size(2) == 1) pitches.pixel = value.size(1) == 1 ? value.size(3) : pitches.row;
  if (value.size(1) == 1) pitches.row = pitches.pixel * value.size(2);
  return pitches;
}

bool has_adjacent_channels(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) == 1;
}

// The tensor itself if the kernels can read it where it is, otherwise a contiguous copy.
Tensor readable(const Tensor& tensor) {
  return has_adjacent_channels(tensor) ? tensor : torch::stable::contiguous(tensor);
}

// The same for `value`, of which the kernels count in whole pixels.
Tensor readable_value(const Tensor& value) {
  const Pitches pitches = value_pitches_of(value);
  const bool counts = pitches.pixel > 0 && pitches.row % pitches.pixel == 0 &&
                      pitches.row / pitches.pixel <= kMaxSize / value.size(1);
  if (counts && has_adjacent_channels(value)) return value;
  return torch::stable::contiguous(value);
}

// Reads and checks everything but the tensors' pointers and pitches.
Params read_problem(DeviceType device, const Tensor& value, const Tensor& offset_mask,
                    const Ints& kernel_size, const Ints& stride, const Ints& padding,
                    const Ints& dilation, int64_t groups, double offset_scale, bool remove_center) {
  check_tensor("dcnv4: value", value, 4, device);
  check_tensor("dcnv4: offset_mask", offset_mask, 4, device);
  check_same_device("dcnv4: offset_mask", offset_mask, value);
  check(value.scalar_type() == offset_mask.scalar_type(),
        "dcnv4: value and offset_mask must have one dtype");

  Params p = read_geometry(shape_of(value), shape_of(offset_mask), kernel_size, stride, padding,
                           dilation, groups, offset_scale, remove_center);
  p.dtype = dtype_of("dcnv4: value", value);
  return p;
}

void set_inputs(Params* p, const Tensor& value, const Tensor& offset_mask) {
  p->value = value.const_data_ptr();
  p->value_pitches = value_pitches_of(value);
  p->offset_mask = offset_mask.const_data_ptr();
  p->offset_mask_pitches = pitches_of(offset_mask);
}

// Checks the output's gradient and sets its pointer and pitches; returns the tensor that these
// belong to.
Tensor read_grad_output(DeviceType device, Params* p, const Tensor& grad_output,
                        const Tensor& value) {
  check_tensor("dcnv4: grad_output", grad_output, 4, device);
  check_same_device("dcnv4: grad_output", grad_output, value);
  check(grad_output.scalar_type() == value.scalar_type(),
        "dcnv4: grad_output and value must have one dtype");
  const Ints shape = {p->batch, p->out_height, p->out_width, p->groups * p->group_channels};
  for (int i = 0; i < 4; ++i) {
    check(grad_output.size(i) == shape[i], "dcnv4: grad_output must have the output's shape, ",
          "size ", shape[i], " on axis ", i, ", got ", shape_text(grad_output));
  }
  const Tensor result = readable(grad_output);
  p->grad_output = result.const_data_ptr();
  p->grad_output_pitches = pitches_of(result);
  return result;
}

// Makes the output, which the kernels fill.
Tensor make_output(Params* p, const Tensor& value) {
  const Ints shape = {p->batch, p->out_height, p->out_width, p->groups * p->group_channels};
  const Tensor output = torch::stable::new_empty(value, shape);
  p->output = output.mutable_data_ptr();
  return output;
}

// Makes the gradients of value and offset_mask, which the kernels fill. One that is not needed is
// empty, and null in the Params.
std::tuple<Tensor, Tensor> make_gradients(Params* p, const Tensor& value, bool need_value_grad,
                                          bool need_offset_mask_grad) {
  const Ints none = {0};
  const Ints value_shape = {p->batch, p->height, p->width, p->groups * p->group_channels};
  const Ints row_shape = {p->batch, p->out_height, p->out_width, p->offset_mask_channels};
  const Tensor grad_value = torch::stable::new_empty(value, need_value_grad ? value_shape : none);
  const Tensor grad_offset_mask =
      torch::stable::new_empty(value, need_offset_mask_grad ? row_shape : none);
  if (need_value_grad) p->grad_value = grad_value.mutable_data_ptr();
  if (need_offset_mask_grad) p->grad_offset_mask = grad_offset_mask.mutable_data_ptr();
  return {grad_value, grad_offset_mask};
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
