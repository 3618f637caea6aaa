// The forward operators as custom operators of onnxruntime's CPU provider, in the domain dcnv4_mm.
// A session takes them from this library by name; of torch it knows nothing.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <exception>
#include <iterator>

#include "common/cpu_bindings.h"
#include "dcnv4/cpu_choice.h"
#include "dcnv4/geometry.h"
#include "flash_deform_attn/cpu_choice.h"
#include "flash_deform_attn/levels.h"

namespace dcnv4_mm {
namespace {

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

// Calls `body`; what it throws becomes a status, which onnxruntime raises.
template <typename Body>
OrtStatus* guarded(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return Ort::Status(error.what(), ORT_FAIL).release();
  }
}

Ints shape_of(const Ort::ConstValue& tensor) {
  return tensor.GetTensorTypeAndShapeInfo().GetShape();
}

void check_shape(const char* name, const Ort::ConstValue& tensor, const Ints& shape) {
  check(shape_of(tensor) == shape, "dcnv4_mm: ", name, " must have the shape ", shape_text(shape),
        ", got ", shape_text(shape_of(tensor)));
}

// Calls body(begin, end) for parts of [0, count) on the session's threads, at least `grain` each.
template <typename Body>
void parallel_for(const Ort::KernelContext& context, int64_t count, int64_t grain,
                  const Body& body) {
  struct Work {
    int64_t count, grain;
    const Body& body;
  } work{count, grain, body};
  const auto part = [](void* data, size_t index) {
    const Work& work = *static_cast<Work*>(data);
    const int64_t begin = static_cast<int64_t>(index) * work.grain;
    work.body(begin, std::min(work.count, begin + work.grain));
  };
  context.ParallelFor(part, (count + grain - 1) / grain, 0, &work);
}

// dcnv4_forward: value (N, H, W, C), offset_mask (N, Ho, Wo, M) -> (N, Ho, Wo, C).
class DCNv4 {
 public:
  static constexpr const char* kName = "DCNv4";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat};

  explicit DCNv4(const Ort::ConstKernelInfo& info)
      : kernel_size_(info.GetAttributes<int64_t>("kernel_size")),
        stride_(info.GetAttributes<int64_t>("stride")),
        padding_(info.GetAttributes<int64_t>("padding")),
        dilation_(info.GetAttributes<int64_t>("dilation")),
        groups_(info.GetAttribute<int64_t>("groups")),
        offset_scale_(info.GetAttribute<float>("offset_scale")),
        remove_center_(info.GetAttribute<int64_t>("remove_center") != 0) {}

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue value = context.GetInput(0), offset_mask = context.GetInput(1);
    const Ints in = shape_of(value), rows = shape_of(offset_mask);
    check(in.size() == 4 && rows.size() == 4, "dcnv4: value and offset_mask must have 4 axes, got ",
          shape_text(in), " and ", shape_text(rows));
    dcnv4::Params p = dcnv4::read_geometry(in, rows, kernel_size_, stride_, padding_, dilation_,
                                           groups_, offset_scale_, remove_center_);
    p.dtype = DType::kFloat32;
    Ort::UnownedValue output = context.GetOutput(0, {in[0], rows[1], rows[2], in[3]});
    dcnv4::set_contiguous(&p, value.GetTensorRawData(), offset_mask.GetTensorRawData(),
                          output.GetTensorMutableRawData());

    const dcnv4::cpu::Kernels& kernels = dcnv4::kernels_for(p.dtype);
    const int64_t grain = worth_a_thread(p.groups * dcnv4::item_nanoseconds(p));
    parallel_for(context, p.batch * p.out_height * p.out_width, grain,
                 [&](int64_t begin, int64_t end) {
                   const Scratch scratch = allocate(kernels.scratch_bytes(p));
                   kernels.forward(p, begin, end, scratch.get());
                 });
  }

 private:
  Ints kernel_size_, stride_, padding_, dilation_;
  int64_t groups_;
  double offset_scale_;
  bool remove_center_;
};

using flash_deform_attn::Levels;

Levels read_levels(const Ort::ConstValue& level_sizes) {
  const int64_t* sizes = level_sizes.GetTensorData<int64_t>();
  const size_t count = level_sizes.GetTensorTypeAndShapeInfo().GetElementCount();
  return flash_deform_attn::read_levels("dcnv4_mm", Ints(sizes, sizes + count));
}

// Reads value, (N, S, G, D), which both attention operators have first.
flash_deform_attn::Params read_value(const Ort::ConstValue& value, const Levels& levels) {
  const Ints shape = shape_of(value);
  check(shape.size() == 4 && shape[2] > 0 && shape[3] > 0,
        "dcnv4_mm: value must be (N, S, G, D) with a head and a channel, got ", shape_text(shape));
  const int64_t pixels = levels.back().start + levels.back().height * levels.back().width;
  check(shape[1] == pixels, "dcnv4_mm: the levels have ", pixels,
        " pixels together, value has the shape ", shape_text(shape));
  flash_deform_attn::Params p{};
  p.dtype = DType::kFloat32;
  p.levels = levels.data();
  p.num_levels = static_cast<int64_t>(levels.size());
  p.batch = shape[0];
  p.pixels = shape[1];
  p.heads = shape[2];
  p.channels = shape[3];
  p.value = value.GetTensorRawData();
  p.value_pitches = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3]};
  return p;
}

// Distances in a contiguous tensor of `numbers` for each head of each query.
flash_deform_attn::Pitches pitches_of(const flash_deform_attn::Params& p, int64_t numbers) {
  return {p.queries * p.heads * numbers, p.heads * numbers, numbers};
}

// Computes the output, (N, Q, G * D).
void attend(const Ort::KernelContext& context, flash_deform_attn::Params* p) {
  const Ints shape = {p->batch, p->queries, p->heads * p->channels};
  p->output = context.GetOutput(0, shape).GetTensorMutableRawData();
  const flash_deform_attn::cpu::Kernels& kernels = flash_deform_attn::kernels_for(*p);
  const int64_t grain = worth_a_thread(p->heads * flash_deform_attn::item_nanoseconds(*p));
  parallel_for(context, p->batch * p->queries, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(kernels.scratch_bytes(*p));
    kernels.forward(*p, begin, end, scratch.get());
  });
}

// ms_deform_attn_forward: value (N, S, G, D), locations (N, Q, G, L, P, 2), weights (N, Q, G, L,
// P), level_sizes (2 * L) -> (N, Q, G * D).
class MSDeformAttn {
 public:
  static constexpr const char* kName = "MSDeformAttn";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kInt64};

  explicit MSDeformAttn(const Ort::ConstKernelInfo&) {}

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue locations = context.GetInput(1), weights = context.GetInput(2);
    const Levels levels = read_levels(context.GetInput(3));
    flash_deform_attn::Params p = read_value(context.GetInput(0), levels);
    const Ints rows = shape_of(weights);
    check(rows.size() == 5 && rows[4] > 0, "dcnv4_mm: weights must be (N, Q, G, L, P), got ",
          shape_text(rows));
    p.queries = rows[1];
    p.num_points = rows[4];
    Ints shape = {p.batch, p.queries, p.heads, p.num_levels, p.num_points};
    check_shape("weights", weights, shape);
    shape.push_back(2);
    check_shape("locations", locations, shape);
    const int64_t points = p.num_levels * p.num_points;
    p.locations = locations.GetTensorRawData();
    p.location_pitches = pitches_of(p, 2 * points);
    p.weights = weights.GetTensorRawData();
    p.weight_pitches = pitches_of(p, points);
    attend(context, &p);
  }
};

// flash_deform_attn_forward: value (N, S, G, D), locations_logits (N, Q, G, 3 * L * P), level_sizes
// (2 * L) -> (N, Q, G * D).
class FlashDeformAttn {
 public:
  static constexpr const char* kName = "FlashDeformAttn";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kInt64};

  explicit FlashDeformAttn(const Ort::ConstKernelInfo& info)
      : num_points_(info.GetAttribute<int64_t>("num_points")) {}

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue packed = context.GetInput(1);
    const Levels levels = read_levels(context.GetInput(2));
    flash_deform_attn::Params p = read_value(context.GetInput(0), levels);
    const Ints rows = shape_of(packed);
    check(num_points_ > 0 && num_points_ <= kMaxSize / (3 * p.num_levels) && rows.size() == 4,
          "dcnv4_mm: locations_logits must be (N, Q, G, 3 * L * P), got ", shape_text(rows));
    p.softmax = true;
    p.queries = rows[1];
    p.num_points = num_points_;
    const int64_t points = p.num_levels * p.num_points;
    check_shape("locations_logits", packed, {p.batch, p.queries, p.heads, 3 * points});
    p.locations = packed.GetTensorRawData();
    p.weights = packed.GetTensorData<float>() + 2 * points;
    p.location_pitches = p.weight_pitches = pitches_of(p, 3 * points);
    attend(context, &p);
  }

 private:
  int64_t num_points_;
};

// A node of a graph.
template <typename Op>
struct Node {
  Op op;

  OrtStatus* ComputeV2(OrtKernelContext* context) const {
    return guarded([&] { op.compute(Ort::KernelContext(context)); });
  }
};

// What onnxruntime asks of an operator.
template <typename Op>
struct Operator : Ort::CustomOpBase<Operator<Op>, Node<Op>, true> {
  OrtStatus* CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** node) const {
    return guarded([&] { *node = new Node<Op>{Op(Ort::ConstKernelInfo(info))}; });
  }
  const char* GetName() const { return Op::kName; }
  size_t GetInputTypeCount() const { return std::size(Op::kInputs); }
  ONNXTensorElementDataType GetInputType(size_t index) const { return Op::kInputs[index]; }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return kFloat; }
};

}  // namespace
}  // namespace dcnv4_mm

// What onnxruntime calls in a library of custom operators.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, "dcnv4_mm: built with the headers of a newer onnxruntime than this one");
  }
  Ort::InitApi(api);
  return dcnv4_mm::guarded([&] {
    static const dcnv4_mm::Operator<dcnv4_mm::DCNv4> dcnv4;
    static const dcnv4_mm::Operator<dcnv4_mm::MSDeformAttn> ms_deform_attn;
    static const dcnv4_mm::Operator<dcnv4_mm::FlashDeformAttn> flash_deform_attn;
    Ort::CustomOpDomain domain("dcnv4_mm");
    domain.Add(&dcnv4);
    domain.Add(&ms_deform_attn);
    domain.Add(&flash_deform_attn);
    Ort::UnownedSessionOptions(options).Add(domain);
    // Sessions may outlive any time at which it could be freed.
    domain.release();
  });
}
