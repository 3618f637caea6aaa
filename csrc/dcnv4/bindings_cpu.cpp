// The operators dcnv4_forward and dcnv4_backward on CPU tensors: checks, memory and threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/cpu_bindings.h"
#include "dcnv4/cpu_choice.h"
#include "dcnv4/problem.h"

namespace dcnv4_mm::dcnv4 {
namespace {

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
  Params p = read_problem(DeviceType::CPU, value_in, offset_mask_in, kernel_size, stride, padding,
                          dilation, groups, offset_scale, remove_center);
  const Tensor value = readable_value(value_in);
  const Tensor offset_mask = readable(offset_mask_in);
  set_inputs(&p, value, offset_mask);
  const Tensor output = make_output(&p, value);

  const cpu::Kernels& kernels = kernels_for(p.dtype);
  for_pixels(p, kernels, kernels.forward);
  return output;
}

int64_t segments_of(const Params& p) {
  return (p.out_height * p.out_width + cpu::kSegmentPixels - 1) / cpu::kSegmentPixels;
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
  // and bands first. A band also visits the points of some rows around it: not too thin.
  int64_t bands = 1;
  while (!is_even(p.batch * bands, 4 * threads) && p.height / (bands + 1) >= 8) ++bands;
  while (!is_even(p.batch * bands * p.groups, 2 * threads)) ++bands;
  int64_t groups_per_slab = p.groups;
  if (element_bytes(p.dtype) == 2) {
    // 16-bit gradients are summed in float32 beside the result. Keep all threads' sums together
    // near a tenth of the tensors. They need not fit into a cache: the points go through them row
    // by row.
    const int64_t channels = p.groups * p.group_channels;
    const int64_t elements = 2 * p.height * p.width * channels +
                             p.out_height * p.out_width * (channels + 2 * p.offset_mask_channels);
    const int64_t budget =
        std::clamp<int64_t>(2 * p.batch * elements / 10 / threads, 64 << 10, 16 << 20);
    const int64_t row_bytes = sizeof(float) * p.width * p.group_channels;
    const int64_t rows = std::clamp<int64_t>(budget / row_bytes, 1, p.height);
    bands = std::max(bands, (p.height + rows - 1) / rows);
    groups_per_slab = std::max<int64_t>(1, budget / (row_bytes * rows));
  }
  const int64_t rows = (p.height + bands - 1) / bands;
  return {(p.height + rows - 1) / rows, rows, groups_per_slab};
}

// The rows of all segments of output pixels, if there are enough bands for them to pay: most bands
// then skip most segments, and the time does not grow with the number of bands.
std::vector<cpu::SegmentRows> find_segments(const Params& p, int64_t bands,
                                            const cpu::Kernels& kernels) {
  std::vector<cpu::SegmentRows> segments;
  if (bands < 3) return segments;
  segments.resize(p.batch * segments_of(p));
  const double nanoseconds = cpu::kSegmentPixels * p.groups * p.points;
  torch::stable::parallel_for(0, segments.size(), worth_a_thread(nanoseconds),
                              [&](int64_t begin, int64_t end) {
                                const Scratch scratch = allocate(kernels.scratch_bytes(p));
                                kernels.find_rows(p, begin, end, segments.data(), scratch.get());
                              });
  return segments;
}

// Computes the units [begin, end) of grad_value, in slabs as large as the division allows.
void backward_value_units(const Params& p, const Division& division,
                          const std::vector<cpu::SegmentRows>& segments, int64_t begin, int64_t end,
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
    slab.segments = segments.empty() ? nullptr : segments.data() + slab.image * segments_of(p);
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
  const std::vector<cpu::SegmentRows> segments = find_segments(p, division.bands, kernels);
  const int64_t units = p.batch * division.bands * p.groups;
  const double nanoseconds = p.out_height * p.out_width * item_nanoseconds(p) / division.bands;
  torch::stable::parallel_for(0, units, worth_a_thread(nanoseconds),
                              [&](int64_t begin, int64_t end) {
                                backward_value_units(p, division, segments, begin, end, kernels);
                              });
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output_in, const Tensor& value_in,
                                    const Tensor& offset_mask_in, const Ints& kernel_size,
                                    const Ints& stride, const Ints& padding, const Ints& dilation,
                                    int64_t groups, double offset_scale, bool remove_center,
                                    bool /*fast*/, bool /*deterministic*/, bool need_value_grad,
                                    bool need_offset_mask_grad) {
  Params p = read_problem(DeviceType::CPU, value_in, offset_mask_in, kernel_size, stride, padding,
                          dilation, groups, offset_scale, remove_center);
  const Tensor value = readable_value(value_in);
  const Tensor offset_mask = readable(offset_mask_in);
  set_inputs(&p, value, offset_mask);
  const Tensor grad_output = read_grad_output(DeviceType::CPU, &p, grad_output_in, value);
  const auto gradients = make_gradients(&p, value, need_value_grad, need_offset_mask_grad);

  const cpu::Kernels& kernels = kernels_for(p.dtype);
  if (need_offset_mask_grad) for_pixels(p, kernels, kernels.backward_offset_mask);
  if (need_value_grad) backward_value(p, kernels);
  return gradients;
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CPU, m) {
  m.impl("dcnv4_forward", TORCH_BOX(&dcnv4_mm::dcnv4::forward));
  m.impl("dcnv4_backward", TORCH_BOX(&dcnv4_mm::dcnv4::backward));
}
