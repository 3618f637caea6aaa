// The attention operators on CPU tensors: checks, memory and threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/cpu_bindings.h"
#include "common/cpu_isa.h"
#include "flash_deform_attn/cpu.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

using torch::stable::Tensor;

using Levels = std::vector<Level>;

const cpu::Kernels& kernels_for(const Params& p) {
  const cpu::KernelTable* table = &cpu::kDefaultKernels;
#if defined(__x86_64__)
  if (cpu_isa() == CpuIsa::kAvx2) table = &cpu::kAvx2Kernels;
  if (cpu_isa() == CpuIsa::kAvx512) table = &cpu::kAvx512Kernels;
#endif
  return table->kernels[static_cast<int>(p.dtype)][p.float32_points];
}

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

void check_shape(const char* name, const Tensor& tensor, const Ints& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  std::ostringstream text;
  for (size_t i = 0; i < shape.size(); ++i) {
    same = same && tensor.size(i) == shape[i];
    text << (i ? ", " : "") << shape[i];
  }
  check(same, name, " must have the shape (", text.str(), "), got ", shape_text(tensor));
}

// Beyond this, not every row and column is a float32 number.
constexpr int64_t kMaxSide = int64_t(1) << 24;

Levels read_levels(const Ints& sizes) {
  check(!sizes.empty() && sizes.size() % 2 == 0,
        "flash_deform_attn: level_sizes must be height and width of every level, got ",
        sizes.size(), " numbers");
  Levels levels;
  int64_t start = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const int64_t height = sizes[i], width = sizes[i + 1];
    check(height > 0 && width > 0 && height <= kMaxSide && width <= kMaxSide,
          "flash_deform_attn: a level must have 1 to 2^24 rows and columns, got ", height, " x ",
          width);
    check(start + height * width <= kMaxSize,
          "flash_deform_attn: all levels together must have less than 2^31 pixels");
    levels.push_back({height, width, start});
    start += height * width;
  }
  return levels;
}

// Reads and checks value, and what `points` has in common with it.
Params read_problem(const Tensor& value, const Tensor& points, const Levels& levels) {
  check_tensor("flash_deform_attn: value", value, 4, torch::headeronly::DeviceType::CPU);
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
  check(points.defined() && points.is_cpu() && points.dim() > 2 && points.size(1) <= kMaxSize,
        "flash_deform_attn: locations must be a CPU tensor with queries on axis 1");
  p.queries = points.size(1);
  const DType dtype = dtype_of("flash_deform_attn: locations", points);
  p.float32_points = dtype != p.dtype;
  check(dtype == p.dtype || (dtype == DType::kFloat32 && element_bytes(p.dtype) == 2),
        "flash_deform_attn: locations must have the dtype of value, or float32 beside 16 bits");
  return p;
}

// An item, one head of one query, takes about this many nanoseconds.
double item_nanoseconds(const Params& p) {
  return p.num_levels * p.num_points * (3.0 + 0.1 * p.channels);
}

// Divides the queries among threads; each of them is computed by one.
void for_queries(const Params& p, const cpu::Kernels& kernels,
                 void (*kernel)(const Params&, int64_t, int64_t, void*)) {
  const int64_t grain = worth_a_thread(p.heads * item_nanoseconds(p));
  torch::stable::parallel_for(0, p.batch * p.queries, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(kernels.scratch_bytes(p));
    kernel(p, begin, end, scratch.get());
  });
}

Tensor forward(Params* p, const Tensor& value_in) {
  const Tensor value = readable(value_in, 3);
  p->value = value.const_data_ptr();
  p->value_pitches = pitches_of(value);
  const Ints shape = {p->batch, p->queries, p->heads * p->channels};
  Tensor output = torch::stable::new_empty(value, shape);
  p->output = output.mutable_data_ptr();
  const cpu::Kernels& kernels = kernels_for(*p);
  for_queries(*p, kernels, kernels.forward);
  return output;
}

// The first pixel of the row of a level that a pixel is in.
int64_t row_start(const Params& p, int64_t pixel) {
  const Level* level = p.levels + p.num_levels - 1;
  while (level->start > pixel) --level;
  return pixel - (pixel - level->start) % level->width;
}

// grad_value is divided into units of one head in one band of pixels of one image. A unit has one
// owner, so that the order of its sums does not depend on the threads. Every band looks at all
// points: as few as keep the threads busy, and 16-bit gradients' float32 sums in a cache.
int64_t bands_per_head(const Params& p) {
  constexpr int64_t max_sum_bytes = 4 << 20;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t heads = p.batch * p.heads;
  int64_t bands = 1;
  if (element_bytes(p.dtype) == 2) {
    const int64_t sum_bytes = sizeof(float) * p.pixels * p.channels;
    bands = (sum_bytes + max_sum_bytes - 1) / max_sum_bytes;
  }
  while (heads * bands % threads != 0 && heads * bands < 2 * threads) ++bands;
  return bands;
}

void backward_value_units(const Params& p, int64_t bands, int64_t begin, int64_t end,
                          const cpu::Kernels& kernels) {
  const Scratch scratch = allocate(kernels.scratch_bytes(p));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t band = unit % bands;
    cpu::Slab slab;
    slab.image = unit / bands / p.heads;
    slab.head = unit / bands % p.heads;
    slab.pixel_begin = row_start(p, p.pixels * band / bands);
    slab.pixel_end = band + 1 == bands ? p.pixels : row_start(p, p.pixels * (band + 1) / bands);
    Scratch sums;
    if (element_bytes(p.dtype) == 2) {
      sums = allocate(sizeof(float) * (slab.pixel_end - slab.pixel_begin) * p.channels);
    }
    kernels.backward_value(p, slab, sums.get(), scratch.get());
  }
}

// Computes the gradient of value if it is needed, and those of the points if they have memory.
Tensor backward(Params* p, const Tensor& grad_output_in, const Tensor& value_in,
                bool need_value_grad) {
  const Tensor value = readable(value_in, 3);
  const Tensor grad_output = readable(grad_output_in, 2);
  p->value = value.const_data_ptr();
  p->value_pitches = pitches_of(value);
  p->grad_output = grad_output.const_data_ptr();
  p->grad_output_pitches = {grad_output.stride(0), grad_output.stride(1), p->channels};
  const Ints none = {0};
  const Ints shape = {p->batch, p->pixels, p->heads, p->channels};
  Tensor grad_value = torch::stable::new_empty(value, need_value_grad ? shape : none);
  p->grad_value = grad_value.mutable_data_ptr();

  const cpu::Kernels& kernels = kernels_for(*p);
  if (p->grad_weights != nullptr) for_queries(*p, kernels, kernels.backward_points);
  if (need_value_grad) {
    const int64_t bands = bands_per_head(*p);
    const double nanoseconds = p->queries * item_nanoseconds(*p) + p->pixels * p->channels * 0.1;
    torch::stable::parallel_for(
        0, p->batch * p->heads * bands, worth_a_thread(nanoseconds),
        [&](int64_t begin, int64_t end) { backward_value_units(*p, bands, begin, end, kernels); });
  }
  return grad_value;
}

void check_grad_output(const Params& p, const Tensor& grad_output, const Tensor& value) {
  check(grad_output.defined() && grad_output.is_cpu() &&
            grad_output.scalar_type() == value.scalar_type(),
        "flash_deform_attn: grad_output must be a CPU tensor in the dtype of value");
  check_shape("flash_deform_attn: grad_output", grad_output,
              {p.batch, p.queries, p.heads * p.channels});
}

// Locations and weights in tensors of their own, the weights being used as they are.
struct SeparatePoints {
  Levels levels;
  Tensor locations, weights;
  Params params;

  SeparatePoints(const Tensor& value, const Tensor& locations_in, const Tensor& weights_in,
                 const Ints& level_sizes)
      : levels(read_levels(level_sizes)), params(read_problem(value, locations_in, levels)) {
    Params& p = params;
    p.num_points = locations_in.dim() == 6 ? locations_in.size(4) : 0;
    check(p.num_points > 0, "flash_deform_attn: locations must be (N, Q, G, L, P, 2), got ",
          shape_text(locations_in));
    check(weights_in.defined() && weights_in.is_cpu() &&
              weights_in.scalar_type() == locations_in.scalar_type(),
          "flash_deform_attn: weights must be a CPU tensor in the dtype of locations");
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

Tensor ms_forward(const Tensor& value, const Tensor& locations, const Tensor& weights,
                  const Ints& level_sizes) {
  SeparatePoints points(value, locations, weights, level_sizes);
  return forward(&points.params, value);
}

std::tuple<Tensor, Tensor, Tensor> ms_backward(const Tensor& grad_output, const Tensor& value,
                                               const Tensor& locations, const Tensor& weights,
                                               const Ints& level_sizes, bool /*deterministic*/,
                                               bool need_value_grad, bool need_points_grad) {
  SeparatePoints points(value, locations, weights, level_sizes);
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
  const Tensor grad_value = backward(&p, grad_output, value, need_value_grad);
  return {grad_value, grad_locations, grad_weights};
}

// Locations and logits of a head side by side in one tensor.
struct PackedPoints {
  Levels levels;
  Tensor packed;
  Params params;

  PackedPoints(const Tensor& value, const Tensor& locations_logits, const Ints& level_sizes,
               int64_t num_points)
      : levels(read_levels(level_sizes)), params(read_problem(value, locations_logits, levels)) {
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

Tensor flash_forward(const Tensor& value, const Tensor& locations_logits, const Ints& level_sizes,
                     int64_t num_points) {
  PackedPoints points(value, locations_logits, level_sizes, num_points);
  return forward(&points.params, value);
}

std::tuple<Tensor, Tensor> flash_backward(const Tensor& grad_output, const Tensor& value,
                                          const Tensor& locations_logits, const Ints& level_sizes,
                                          int64_t num_points, bool /*deterministic*/,
                                          bool need_value_grad, bool need_points_grad) {
  PackedPoints points(value, locations_logits, level_sizes, num_points);
  Params& p = points.params;
  check_grad_output(p, grad_output, value);
  const Ints none = {0};
  const Ints shape = {p.batch, p.queries, p.heads, points.numbers()};
  Tensor grad_points = torch::stable::new_empty(locations_logits, need_points_grad ? shape : none);
  if (need_points_grad) {
    p.grad_locations = grad_points.mutable_data_ptr();
    p.grad_weights = static_cast<unsigned char*>(p.grad_locations) + points.logits_at();
    p.grad_location_pitch = p.grad_weight_pitch = points.numbers();
  }
  const Tensor grad_value = backward(&p, grad_output, value, need_value_grad);
  return {grad_value, grad_points};
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn

STABLE_TORCH_LIBRARY_IMPL(dcnv4_mm, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&dcnv4_mm::flash_deform_attn::ms_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&dcnv4_mm::flash_deform_attn::ms_backward));
  m.impl("flash_deform_attn_forward", TORCH_BOX(&dcnv4_mm::flash_deform_attn::flash_forward));
  m.impl("flash_deform_attn_backward", TORCH_BOX(&dcnv4_mm::flash_deform_attn::flash_backward));
}
