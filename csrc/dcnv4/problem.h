// Reading the arguments of dcnv4_forward and dcnv4_backward, and checking them: whatever they are,
// the kernels see a problem that they can solve. The same on every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/checks.h"
#include "dcnv4/params.h"

namespace dcnv4_mm::dcnv4 {
namespace {

using torch::headeronly::DeviceType;
using torch::stable::Tensor;

void read_pair(const char* name, const Ints& pair, int64_t minimum, int64_t* result) {
  check(pair.size() == 2, "dcnv4: ", name, " must be two numbers (rows, columns), got ",
        pair.size());
  for (int i = 0; i < 2; ++i) {
    check(pair[i] >= minimum && pair[i] <= kMaxSize, "dcnv4: ", name, " must be in [", minimum,
          ", 2^31), got ", pair[i]);
    result[i] = pair[i];
  }
}

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

  Params p{};
  p.dtype = dtype_of("dcnv4: value", value);
  read_pair("kernel_size", kernel_size, 1, p.kernel);
  read_pair("stride", stride, 1, p.stride);
  read_pair("padding", padding, 0, p.padding);
  read_pair("dilation", dilation, 1, p.dilation);
  p.batch = value.size(0);
  p.height = value.size(1);
  p.width = value.size(2);
  check(p.height > 0 && p.width > 0 && p.height * p.width <= kMaxSize,
        "dcnv4: an image of value must have 1 to 2^31 - 1 pixels, got the shape ",
        shape_text(value));
  const int64_t channels = value.size(3);
  check(groups > 0 && channels > 0 && channels % groups == 0, "dcnv4: the channels of value (",
        channels, ") must be a positive multiple of groups (", groups, ")");
  p.groups = groups;
  p.group_channels = channels / groups;
  p.offset_scale = offset_scale;
  p.remove_center = remove_center;
  p.points = p.kernel[0] * p.kernel[1] - (remove_center ? 1 : 0);
  check(p.points > 0, "dcnv4: remove_center leaves a 1x1 kernel without points");

  int64_t out_size[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t padded = value.size(1 + i) + 2 * p.padding[i];
    const int64_t extent = p.dilation[i] * (p.kernel[i] - 1) + 1;
    check(extent <= padded, "dcnv4: the kernel covers ", extent, " pixels, the padded value ",
          padded);
    out_size[i] = (padded - extent) / p.stride[i] + 1;
    check(offset_mask.size(1 + i) == out_size[i], "dcnv4: offset_mask must have the output size ",
          out_size[i], " on axis ", 1 + i, ", got the shape ", shape_text(offset_mask));
  }
  p.out_height = out_size[0];
  p.out_width = out_size[1];
  p.offset_mask_channels = offset_mask.size(3);
  check(offset_mask.size(0) == p.batch, "dcnv4: offset_mask must have the batch size ", p.batch,
        ", got the shape ", shape_text(offset_mask));
  // A division, as the product of three large numbers could overflow.
  check(p.points <= p.offset_mask_channels / (3 * groups), "dcnv4: a row of offset_mask has ",
        p.offset_mask_channels, " numbers, fewer than 3 * groups (", groups, ") * points (",
        p.points, ")");
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
