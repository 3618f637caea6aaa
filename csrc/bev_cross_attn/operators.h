// The operator but for the kernels: reading the arguments, checking them, making the results.
// Whatever the arguments are, the kernels see a problem that they can solve. The same on every
// device.
#pragma once

#include "bev_cross_attn/params.h"
#include "flash_deform_attn/operators.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

using flash_deform_attn::check_beside;
using flash_deform_attn::check_shape;
using flash_deform_attn::Levels;
using flash_deform_attn::pitches_of;
using flash_deform_attn::read_levels;
using flash_deform_attn::readable;
using torch::headeronly::DeviceType;
using torch::stable::Tensor;

CameraPitches camera_pitches_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// Value with adjacent channels, and with all pixels of all cameras equally far apart.
Tensor readable_value(const Tensor& value) {
  const int64_t image = value.size(2) * value.stride(2);
  const bool even = value.stride(1) == image && value.stride(0) == value.size(1) * image;
  return even ? readable(value, 4) : torch::stable::contiguous(value);
}

// The tensors as the kernels read them, all but value.
struct Problem {
  Levels levels;
  Tensor points, reference_points;
  Params params{};

  Problem(DeviceType device, const Tensor& value, const Tensor& offsets_logits,
          const Tensor& reference_points_in, const Tensor& bev_mask, const Ints& level_sizes,
          int64_t num_points)
      : levels(read_levels("bev_cross_attn", level_sizes)) {
    Params& p = params;
    read_value(device, value);
    check(num_points > 0 && num_points <= kMaxSize / (3 * p.num_levels * p.cameras),
          "bev_cross_attn: num_points must be positive and not huge, got ", num_points);
    p.num_points = num_points;
    p.softmax = true;

    check_beside("bev_cross_attn: offsets_logits", offsets_logits, value);
    check(offsets_logits.dim() == 4 && offsets_logits.size(1) <= kMaxSize,
          "bev_cross_attn: offsets_logits must have four axes, got the shape ",
          shape_text(offsets_logits));
    p.queries = offsets_logits.size(1);
    check_shape("bev_cross_attn: offsets_logits", offsets_logits,
                {p.batch, p.queries, p.heads, numbers()});
    const DType dtype = dtype_of("bev_cross_attn: offsets_logits", offsets_logits);
    p.float32_points = dtype != p.dtype;
    check(dtype == p.dtype || (dtype == DType::kFloat32 && element_bytes(p.dtype) == 2),
          "bev_cross_attn: offsets_logits must have the dtype of value, or float32 beside 16 bits");
    points = readable(offsets_logits, 3);
    p.locations = points.const_data_ptr();
    p.weights = static_cast<const unsigned char*>(p.locations) + logits_at();
    p.location_pitches = p.weight_pitches = pitches_of(points);

    check_beside("bev_cross_attn: reference_points", reference_points_in, value);
    p.pillar = reference_points_in.dim() == 5 ? reference_points_in.size(3) : 0;
    check(p.pillar > 0 && p.pillar <= kMaxSize,
          "bev_cross_attn: reference_points must be (B, N, Q, Z, 2), got ",
          shape_text(reference_points_in));
    check_shape("bev_cross_attn: reference_points", reference_points_in,
                {p.batch, p.cameras, p.queries, p.pillar, 2});
    check(dtype_of("bev_cross_attn: reference_points", reference_points_in) ==
              (p.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32),
          "bev_cross_attn: reference_points must be float32, or float64 beside a float64 value");
    reference_points = readable(reference_points_in, 3);
    p.reference_points = reference_points.const_data_ptr();
    p.reference_pitches = camera_pitches_of(reference_points);

    check_beside("bev_cross_attn: bev_mask", bev_mask, value);
    check_shape("bev_cross_attn: bev_mask", bev_mask, {p.batch, p.cameras, p.queries});
    check(bev_mask.scalar_type() == torch::headeronly::ScalarType::Bool,
          "bev_cross_attn: bev_mask must be bool");
    p.bev_mask = static_cast<const bool*>(bev_mask.const_data_ptr());
    p.bev_mask_pitches = camera_pitches_of(bev_mask);
  }

  void read_value(DeviceType device, const Tensor& value) {
    Params& p = params;
    check_tensor("bev_cross_attn: value", value, 5, device);
    p.dtype = dtype_of("bev_cross_attn: value", value);
    p.batch = value.size(0);
    p.cameras = value.size(1);
    p.pixels = value.size(2);
    p.heads = value.size(3);
    p.channels = value.size(4);
    check(p.cameras > 0 && p.heads > 0 && p.channels > 0,
          "bev_cross_attn: value must have at least one camera, head and channel, got the shape ",
          shape_text(value));
    p.levels = levels.data();
    p.num_levels = static_cast<int64_t>(levels.size());
    const int64_t pixels = levels.back().start + levels.back().height * levels.back().width;
    check(p.pixels == pixels, "bev_cross_attn: the levels have ", pixels,
          " pixels together, value has the shape ", shape_text(value));
    check(p.cameras <= kMaxSize / p.pixels,
          "bev_cross_attn: all cameras together must have less than 2^31 pixels, got the shape ",
          shape_text(value));
  }

  int64_t numbers() const { return 3 * params.num_levels * params.num_points; }

  // Bytes from the offsets of a head to its logits.
  int64_t logits_at() const {
    const size_t bytes = params.float32_points ? sizeof(float) : element_bytes(params.dtype);
    return numbers() / 3 * 2 * bytes;
  }

  // `value` is what the kernels read.
  void set_value(const Tensor& value) {
    params.value = value.const_data_ptr();
    params.value_pitches = {value.stride(1), value.stride(2), value.stride(3)};
  }
};

// The operator of one device, by its kernels:
//   Kernels::kDevice
//   Kernels::readable_value(value), value as the kernels can read it
//   Kernels::forward(params, value), which computes params.output
//   Kernels::backward(params, value, grad_value, deterministic), which computes the gradients that
//       are not null in `params`
template <typename Kernels>
struct Operators {
  static Tensor forward(const Tensor& value_in, const Tensor& offsets_logits,
                        const Tensor& reference_points, const Tensor& bev_mask,
                        const Ints& level_sizes, int64_t num_points) {
    Problem problem(Kernels::kDevice, value_in, offsets_logits, reference_points, bev_mask,
                    level_sizes, num_points);
    Params& p = problem.params;
    const Tensor value = Kernels::readable_value(value_in);
    problem.set_value(value);
    const Ints shape = {p.batch, p.queries, p.heads * p.channels};
    Tensor output = torch::stable::new_empty(value, shape);
    p.output = output.mutable_data_ptr();
    Kernels::forward(p, value);
    return output;
  }

  static std::tuple<Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value_in,
                                             const Tensor& offsets_logits,
                                             const Tensor& reference_points, const Tensor& bev_mask,
                                             const Ints& level_sizes, int64_t num_points,
                                             bool deterministic, bool need_value_grad,
                                             bool need_points_grad) {
    Problem problem(Kernels::kDevice, value_in, offsets_logits, reference_points, bev_mask,
                    level_sizes, num_points);
    Params& p = problem.params;
    check_beside("bev_cross_attn: grad_output", grad_output_in, value_in);
    check(grad_output_in.scalar_type() == value_in.scalar_type(),
          "bev_cross_attn: grad_output must have the dtype of value");
    check_shape("bev_cross_attn: grad_output", grad_output_in,
                {p.batch, p.queries, p.heads * p.channels});
    const Tensor value = Kernels::readable_value(value_in);
    problem.set_value(value);
    const Tensor grad_output = readable(grad_output_in, 2);
    p.grad_output = grad_output.const_data_ptr();
    p.grad_output_pitches = {grad_output.stride(0), grad_output.stride(1), p.channels};

    const Ints none = {0}, value_shape = {p.batch, p.cameras, p.pixels, p.heads, p.channels};
    const Ints points_shape = {p.batch, p.queries, p.heads, problem.numbers()};
    Tensor grad_value = torch::stable::new_empty(value, need_value_grad ? value_shape : none);
    Tensor grad_points =
        torch::stable::new_empty(offsets_logits, need_points_grad ? points_shape : none);
    if (need_value_grad) p.grad_value = grad_value.mutable_data_ptr();
    if (need_points_grad) {
      p.grad_locations = grad_points.mutable_data_ptr();
      p.grad_weights = static_cast<unsigned char*>(p.grad_locations) + problem.logits_at();
      p.grad_location_pitch = p.grad_weight_pitch = problem.numbers();
    }
    Kernels::backward(p, value, grad_value, deterministic);
    return {grad_value, grad_points};
  }
};

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
