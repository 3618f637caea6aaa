// The attention operators but for the kernels: reading the arguments, checking them, making the
// results. Whatever the arguments are, the kernels see a problem that they can solve. The same on
// every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/tensor_checks.h"
#include "flash_deform_attn/levels.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

using torch::headeronly::DeviceType;
using torch::stable::Tensor;

Pitches pitches_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// The tensor itself if the numbers of its axes from `axis` on are adjacent, as the kernels need
// them; otherwise a contiguous copy.
Tensor readable(const Tensor& tensor, int64_t axis) {
  int64_t distance = 1;
  for (int64_t i = tensor.dim() - 1; i >= axis; --i) {
    if (tensor.size(i) != 1 && tensor.stride(i) != distance) {
      return torch::stable::contiguous(tensor);
    }
    distance *= tensor.size(i);
  }
  return tensor;
}

// Checks that a tensor is on the device of value.
void check_beside(const char* name, const Tensor& tensor, const Tensor& value) {
  check(
      tensor.defined() && tensor.is_cuda() == value.is_cuda() && tensor.is_cpu() == value.is_cpu(),
      name, " must be on the device of value");
  check_same_device(name, tensor, value);
}

void check_shape(const char* name, const Tensor& tensor, const Ints& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(i) == shape[i];
  check(same, name, " must have the shape ", shape_text(shape), ", got ", shape_text(tensor));
}

// Reads and checks value, and what `points` has in common with it.
Params read_problem(DeviceType device, const Tensor& value, const Tensor& points,
                    const Levels& levels) {
  check_tensor("flash_deform_attn: value", value, 4, device);
  Params p{};
  p.dtype = dtype_of("flash_deform_attn: value", value);
  p.batch = value.size(0);
  p.pixels = value.size(1);
  p.heads = value.size(2);
  p.channels = value.size(3);
  check(p.heads > 0 && p.channels > 0,
        "flash_deform_attn: value must have at least one head and channel, got the shape ",
        shape_text(value));
  p.levels = levels.data();
  p.num_levels = static_cast<int64_t>(levels.size());
  const int64_t pixels = levels.back().start + levels.back().height * levels.back().width;
  check(p.pixels == pixels, "flash_deform_attn: the levels have ", pixels,
        " pixels together, value has the shape ", shape_text(value));
  check_beside("flash_deform_attn: locations", points, value);
  check(points.dim() > 2 && points.size(1) <= kMaxSize,
        "flash_deform_attn: locations must have queries on axis 1");
  p.queries = points.size(1);
  const DType dtype = dtype_of("flash_deform_attn: locations", points);
  p.float32_points = dtype != p.dtype;
  check(dtype == p.dtype || (dtype == DType::kFloat32 && element_bytes(p.dtype) == 2),
        "flash_deform_attn: locations must have the dtype of value, or float32 beside 16 bits");
  return p;
}

void check_grad_output(const Params& p, const Tensor& grad_output, const Tensor& value) {
  check_beside("flash_deform_attn: grad_output", grad_output, value);
  check(grad_output.scalar_type() == value.scalar_type(),
        "flash_deform_attn: grad_output must have the dtype of value");
  check_shape("flash_deform_attn: grad_output", grad_output,
              {p.batch, p.queries, p.heads * p.channels});
}

// Locations and weights in tensors of their own, the weights being used as they are.
struct SeparatePoints {
  Levels levels;
  Tensor locations, weights;
  Params params;

  SeparatePoints(DeviceType device, const Tensor& value, const Tensor& locations_in,
                 const Tensor& weights_in, const Ints& level_sizes)
      : levels(read_levels("flash_deform_attn", level_sizes)),
        params(read_problem(device, value, locations_in, levels)) {
    Params& p = params;
    p.num_points = locations_in.dim() == 6 ? locations_in.size(4) : 0;
    check(p.num_points > 0, "flash_deform_attn: locations must be (N, Q, G, L, P, 2), got ",
          shape_text(locations_in));
    check_beside("flash_deform_attn: weights", weights_in, value);
    check(weights_in.scalar_type() == locations_in.scalar_type(),
          "flash_deform_attn: weights must have the dtype of locations");
    Ints shape = {p.batch, p.queries, p.heads, p.num_levels, p.num_points};
    check_shape("flash_deform_attn: weights", weights_in, shape);
    shape.push_back(2);
    check_shape("flash_deform_attn: locations", locations_in, shape);
    locations = readable(locations_in, 3);
    weights = readable(weights_in, 3);
    p.locations = locations.const_data_ptr();
    p.location_pitches = pitches_of(locations);
    p.weights = weights.const_data_ptr();
    p.weight_pitches = pitches_of(weights);
  }
};

// Locations and logits of a head side by side in one tensor.
struct PackedPoints {
  Levels levels;
  Tensor packed;
  Params params;

  PackedPoints(DeviceType device, const Tensor& value, const Tensor& locations_logits,
               const Ints& level_sizes, int64_t num_points)
      : levels(read_levels("flash_deform_attn", level_sizes)),
        params(read_problem(device, value, locations_logits, levels)) {
    Params& p = params;
    check(num_points > 0 && num_points <= kMaxSize / (3 * p.num_levels),
          "flash_deform_attn: num_points must be positive and not huge, got ", num_points);
    p.num_points = num_points;
    p.softmax = true;
    check_shape("flash_deform_attn: locations_logits", locations_logits,
                {p.batch, p.queries, p.heads, numbers()});
    packed = readable(locations_logits, 3);
    p.locations = packed.const_data_ptr();
    p.weights = static_cast<const unsigned char*>(p.locations) + logits_at();
    p.location_pitches = p.weight_pitches = pitches_of(packed);
  }

  int64_t numbers() const { return 3 * params.num_levels * params.num_points; }

  // Bytes from the locations of a head to its logits.
  int64_t logits_at() const {
    const size_t bytes = params.float32_points ? sizeof(float) : element_bytes(params.dtype);
    return numbers() / 3 * 2 * bytes;
  }
};

// The operators of one device, by its kernels:
//   Kernels::kDevice
//   Kernels::readable_value(value), value as the kernels can read it
//   Kernels::forward(params, value), which computes params.output
//   Kernels::backward(params, value, grad_value, deterministic), which computes the gradients that
//       are not null in `params`
template <typename Kernels>
struct Operators {
  static Tensor forward(Params* p, const Tensor& value_in) {
    const Tensor value = Kernels::readable_value(value_in);
    p->value = value.const_data_ptr();
    p->value_pitches = pitches_of(value);
    const Ints shape = {p->batch, p->queries, p->heads * p->channels};
    Tensor output = torch::stable::new_empty(value, shape);
    p->output = output.mutable_data_ptr();
    Kernels::forward(*p, value);
    return output;
  }

  // Computes the gradient of value if it is needed, and those of the points if they have memory.
  static Tensor backward(Params* p, const Tensor& grad_output_in, const Tensor& value_in,
                         bool deterministic, bool need_value_grad) {
    const Tensor value = Kernels::readable_value(value_in);
    const Tensor grad_output = readable(grad_output_in, 2);
    p->value = value.const_data_ptr();
    p->value_pitches = pitches_of(value);
    p->grad_output = grad_output.const_data_ptr();
    p->grad_output_pitches = {grad_output.stride(0), grad_output.stride(1), p->channels};
    const Ints none = {0};
    const Ints shape = {p->batch, p->pixels, p->heads, p->channels};
    Tensor grad_value = torch::stable::new_empty(value, need_value_grad ? shape : none);
    if (need_value_grad) p->grad_value = grad_value.mutable_data_ptr();
    Kernels::backward(*p, value, grad_value, deterministic);
    return grad_value;
  }

  static Tensor ms_forward(const Tensor& value, const Tensor& locations, const Tensor& weights,
                           const Ints& level_sizes) {
    SeparatePoints points(Kernels::kDevice, value, locations, weights, level_sizes);
    return forward(&points.params, value);
  }

  static std::tuple<Tensor, Tensor, Tensor> ms_backward(
      const Tensor& grad_output, const Tensor& value, const Tensor& locations,
      const Tensor& weights, const Ints& level_sizes, bool deterministic, bool need_value_grad,
      bool need_points_grad) {
    SeparatePoints points(Kernels::kDevice, value, locations, weights, level_sizes);
    Params& p = points.params;
    check_grad_output(p, grad_output, value);
    const Ints none = {0};
    Ints shape = {p.batch, p.queries, p.heads, p.num_levels, p.num_points};
    Tensor grad_weights = torch::stable::new_empty(weights, need_points_grad ? shape : none);
    shape.push_back(2);
    Tensor grad_locations = torch::stable::new_empty(locations, need_points_grad ? shape : none);
    if (need_points_grad) {
      p.grad_locations = grad_locations.mutable_data_ptr();
      p.grad_location_pitch = 2 * p.num_levels * p.num_points;
      p.grad_weights = grad_weights.mutable_data_ptr();
      p.grad_weight_pitch = p.num_levels * p.num_points;
    }
    const Tensor grad_value = backward(&p, grad_output, value, deterministic, need_value_grad);
    return {grad_value, grad_locations, grad_weights};
  }

  static Tensor flash_forward(const Tensor& value, const Tensor& locations_logits,
                              const Ints& level_sizes, int64_t num_points) {
    PackedPoints points(Kernels::kDevice, value, locations_logits, level_sizes, num_points);
    return forward(&points.params, value);
  }

  static std::tuple<Tensor, Tensor> flash_backward(const Tensor& grad_output, const Tensor& value,
                                                   const Tensor& locations_logits,
                                                   const Ints& level_sizes, int64_t num_points,
                                                   bool deterministic, bool need_value_grad,
                                                   bool need_points_grad) {
    PackedPoints points(Kernels::kDevice, value, locations_logits, level_sizes, num_points);
    Params& p = points.params;
    check_grad_output(p, grad_output, value);
    const Ints none = {0};
    const Ints shape = {p.batch, p.queries, p.heads, points.numbers()};
    Tensor grad_points =
        torch::stable::new_empty(locations_logits, need_points_grad ? shape : none);
    if (need_points_grad) {
      p.grad_locations = grad_points.mutable_data_ptr();
      p.grad_weights = static_cast<unsigned char*>(p.grad_locations) + points.logits_at();
      p.grad_location_pitch = p.grad_weight_pitch = points.numbers();
    }
    const Tensor grad_value = backward(&p, grad_output, value, deterministic, need_value_grad);
    return {grad_value, grad_points};
  }
};

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
