// The operators dcnv4_forward and dcnv4_backward on CPU tensors: checks, memory and threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "common/checks.h"
#include "common/cpu_bindings.h"
#include "common/cpu_isa.h"
#include "dcnv4/cpu.h"

namespace dcnv4_mm::dcnv4 {
namespace {

using torch::stable::Tensor;

const cpu::Kernels& kernels_for(DType dtype) {
  const cpu::KernelTable* table = &cpu::kDefaultKernels;
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kAvx2) table = &cpu::kAvx2Kernels;
  if (cpu_isa() == CpuIsa::kAvx512) table = &cpu::kAvx512Kernels;
#endif
  return table->kernels[static_cast<int>(dtype)];
}

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
Params read_problem(const Tensor& value, const Tensor& offset_mask, const Ints& kernel_size,
                    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                    double offset_scale, bool remove_center) {
  check_cpu_tensor("dcnv4: value", value, 4);
  check_cpu_tensor("dcnv4: offset_mask", offset_mask, 4);
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

// An item, one group of one output pixel, takes about this many nanoseconds.
double item_nanoseconds(const Params& p) { return p.points * (3.0 + 0.1 * p.group_channels); }

// Divides the output pixels among threads; each of them is computed by one.
void for_pixels(const Params& p, const cpu::Kernels& kernels,
                void (*kernel)(const Params&, int64_t, int64_t, void*)) {
  const int64_t pixels = p.batch * p.out_height * p.out_width;
  const int64_t grain = worth_a_thread(p.groups * item_nanoseconds(p));
  torch::stable::parallel_for(0, pixels, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(kernels.scratch_bytes(p));
    kernel(p, begin, end, scratch.get());
  });
}

Tensor forward(const Tensor& value_in, const Tensor& offset_mask_in, const Ints& kernel_size,
               const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
               double offset_scale, bool remove_center, bool /*fast*/) {
  Params p = read_problem(value_in, offset_mask_in, kernel_size, stride, padding, dilation, groups,
                          offset_scale, remove_center);
  const Tensor value = readable_value(value_in);
  const Tensor offset_mask = readable(offset_mask_in);
  set_inputs(&p, value, offset_mask);
  const Ints shape = {p.batch, p.out_height, p.out_width, p.groups * p.group_channels};
  Tensor output = torch::stable::new_empty(value, shape);
  p.output = output.mutable_data_ptr();

  const cpu::Kernels& kernels = kernels_for(p.dtype);
  for_pixels(p, kernels, kernels.forward);
  return output;
}

// How grad_value is divided among threads: into units of one group in one band of rows of one
// image. A unit has one owner, so that the order of its sums does not depend on the threads.
struct Division {
  int64_t bands;            // per image
  int64_t rows;             // per band
  int64_t groups_per_slab;  // units that are computed together at most
};

Division divide(const Params& p, int64_t threads) {
  const auto is_even = [threads](int64_t parts, int64_t enough) {
    return parts % threads == 0 || parts >= enough;
  };
  // Threads that own groups of the same pixels disturb each other's caches, so divide into images
  // and bands first. A band also looks at the points of some rows around it: not too thin.
  int64_t bands = 1;
  while (!is_even(p.batch * bands, 4 * threads) && p.height / (bands + 1) >= 8) ++bands;
  while (!is_even(p.batch * bands * p.groups, 2 * threads)) ++bands;
  int64_t groups_per_slab = p.groups;
  if (element_bytes(p.dtype) == 2) {
    // 16-bit gradients are summed in float32 beside the result. Keep all threads' sums together
    // near a tenth of the tensors, and one thread's in its L2 cache.
    const int64_t channels = p.groups * p.group_channels;
    const int64_t elements = 2 * p.height * p.width * channels +
                             p.out_height * p.out_width * (channels + 2 * p.offset_mask_channels);
    const int64_t budget =
        std::clamp<int64_t>(2 * p.batch * elements / 10 / threads, 64 << 10, 1 << 20);
    const int64_t row_bytes = sizeof(float) * p.width * p.group_channels;
    const int64_t rows = std::clamp<int64_t>(budget / row_bytes, 1, p.height);
    bands = std::max(bands, (p.height + rows - 1) / rows);
    groups_per_slab = std::max<int64_t>(1, budget / (row_bytes * rows));
  }
  const int64_t rows = (p.height + bands - 1) / bands;
  return {(p.height + rows - 1) / rows, rows, groups_per_slab};
}

// Computes the units [begin, end) of grad_value, in slabs as large as the division allows.
void backward_value_units(const Params& p, const Division& division, int64_t begin, int64_t end,
                          const cpu::Kernels& kernels) {
  const Scratch scratch = allocate(kernels.scratch_bytes(p));
  Scratch sums;
  if (element_bytes(p.dtype) == 2) {
    sums = allocate(sizeof(float) * division.rows * p.width * p.group_channels *
                    std::min(division.groups_per_slab, end - begin));
  }
  while (begin < end) {
    const int64_t group = begin % p.groups;
    const int64_t band = begin / p.groups % division.bands;
    const int64_t count = std::min({end - begin, p.groups - group, division.groups_per_slab});
    cpu::Slab slab;
    slab.image = begin / p.groups / division.bands;
    slab.row_begin = band * division.rows;
    slab.row_end = std::min(p.height, slab.row_begin + division.rows);
    slab.group_begin = group;
    slab.group_end = group + count;
    kernels.backward_value(p, slab, sums.get(), scratch.get());
    begin += count;
  }
}

void backward_value(const Params& p, const cpu::Kernels& kernels) {
  if (p.batch == 0) return;
  const Division division = divide(p, torch::stable::get_num_threads());
  const int64_t units = p.batch * division.bands * p.groups;
  const double nanoseconds = p.out_height * p.out_width * item_nanoseconds(p) / division.bands;
  torch::stable::parallel_for(
      0, units, worth_a_thread(nanoseconds),
      [&](int64_t begin, int64_t end) { backward_value_units(p, division, begin, end, kernels); });
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value_in,
                                    const Tensor& offset_mask_in, const Ints& kernel_size,
                                    const Ints& stride, const Ints& padding, const Ints& dilation,
                                    int64_t groups, double offset_scale, bool remove_center,
                                    bool /*fast*/, bool /*deterministic*/, bool need_value_grad,
                                    bool need_offset_mask_grad) {
  Params p = read_problem(value_in, offset_mask_in, kernel_size, stride, padding, dilation, groups,
                          offset_scale, remove_center);
  check_cpu_tensor("dcnv4: grad_output", grad_output_in, 4);
  check(grad_output_in.scalar_type() == value_in.scalar_type(),
        "dcnv4: grad_output and value must have one dtype");
  const Ints shape = {p.batch, p.out_height, p.out_width, p.groups * p.group_channels};
  for (int i = 0; i < 4; ++i) {
    check(grad_output_in.size(i) == shape[i], "dcnv4: grad_output must have the output's shape, ",
          "size ", shape[i], " on axis ", i, ", got ", shape_text(grad_output_in));
  }
  const Tensor value = readable_value(value_in);
  const Tensor offset_mask = readable(offset_mask_in);
  const Tensor grad_output = readable(grad_output_in);
  set_inputs(&p, value, offset_mask);
  p.grad_output = grad_output.const_data_ptr();
  p.grad_output_pitches = pitches_of(grad_output);

  const Ints none = {0};
  const Ints value_shape = {p.batch, p.height, p.width, p.groups * p.group_channels};
  const Ints row_shape = {p.batch, p.out_height, p.out_width, p.offset_mask_channels};
  Tensor grad_value = torch::stable::new_empty(value, need_value_grad ? value_shape : none);
  Tensor grad_offset_mask =
      torch::stable::new_empty(value, need_offset_mask_grad ? row_shape : none);
  p.grad_value = grad_value.mutable_data_ptr();
  p.grad_offset_mask = grad_offset_mask.mutable_data_ptr();

  const cpu::Kernels& kernels = kernels_for(p.dtype);
  if (need_offset_mask_grad) for_pixels(p, kernels, kernels.backward_offset_mask);
  if (need_value_grad) backward_value(p, kernels);
  return {grad_value, grad_offset_mask};
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CPU, m) {
  m.impl("dcnv4_forward", TORCH_BOX(&dcnv4_mm::dcnv4::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&dcnv4_mm::dcnv4::backward));
}
