// DCNv4 as a plugin of TensorRT (10.0 and later), on the CUDA kernels; of torch it knows nothing.
//
// IPluginRegistry::loadLibrary takes the plugin from this library. TensorRT's parser of ONNX then
// finds it by the name of the nodes that dcnv4_mm.export.onnx writes.
#include <NvInferRuntime.h>

#include <cstring>
#include <exception>
#include <vector>

#include "common/cuda_device.h"
#include "dcnv4/cuda.h"
#include "dcnv4/geometry.h"

namespace dcnv4_mm {
namespace {

namespace trt = nvinfer1;

constexpr const char* kName = "DCNv4";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";

trt::ILoggerFinder* logger_finder = nullptr;

// Calls `body` and returns 0; what it throws is logged, and makes the result 1.
template <typename Body>
int32_t guarded(const Body& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    trt::ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger) logger->log(trt::ILogger::Severity::kERROR, error.what());
    return 1;
  }
}

// Fields, and what TensorRT reads them by.
struct Fields {
  std::vector<trt::PluginField> fields;
  trt::PluginFieldCollection collection{};

  const trt::PluginFieldCollection* get() {
    collection = {static_cast<int32_t>(fields.size()), fields.data()};
    return &collection;
  }
};

// The attributes of a node.
struct Attributes {
  int32_t kernel_size[2], stride[2], padding[2], dilation[2], groups, remove_center;
  float offset_scale;

  // As fields, whose data are in this object.
  std::vector<trt::PluginField> fields() const {
    constexpr trt::PluginFieldType kInt = trt::PluginFieldType::kINT32;
    return {
        {"kernel_size", kernel_size, kInt, 2},
        {"stride", stride, kInt, 2},
        {"padding", padding, kInt, 2},
        {"dilation", dilation, kInt, 2},
        {"groups", &groups, kInt, 1},
        {"remove_center", &remove_center, kInt, 1},
        {"offset_scale", &offset_scale, trt::PluginFieldType::kFLOAT32, 1},
    };
  }
};

Attributes read_attributes(const trt::PluginFieldCollection& given) {
  Attributes result{};
  for (const trt::PluginField& field : result.fields()) {
    const trt::PluginField* found = nullptr;
    for (int32_t i = 0; i < given.nbFields; ++i) {
      if (!std::strcmp(given.fields[i].name, field.name)) found = &given.fields[i];
    }
    check(found && found->data && found->type == field.type && found->length == field.length,
          "dcnv4: the plugin needs ", field.length, " 32-bit numbers as ", field.name);
    // Both of its types have four bytes.
    std::memcpy(const_cast<void*>(field.data), found->data, 4 * field.length);
  }
  return result;
}

Ints ints(const int32_t (&pair)[2]) { return {pair[0], pair[1]}; }

Ints shape_of(const trt::PluginTensorDesc& tensor) {
  return Ints(tensor.dims.d, tensor.dims.d + tensor.dims.nbDims);
}

// value (N, H, W, C), offset_mask (N, Ho, Wo, M) -> (N, Ho, Wo, C), all float32 or all float16.
class DCNv4 final : public trt::IPluginV3,
                    public trt::IPluginV3OneCore,
                    public trt::IPluginV3OneBuild,
                    public trt::IPluginV3OneRuntime {
 public:
  explicit DCNv4(const Attributes& attributes) : attributes_(attributes) {}

  trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override {
    switch (type) {
      case trt::PluginCapabilityType::kCORE:
        return static_cast<trt::IPluginV3OneCore*>(this);
      case trt::PluginCapabilityType::kBUILD:
        return static_cast<trt::IPluginV3OneBuild*>(this);
      case trt::PluginCapabilityType::kRUNTIME:
        return static_cast<trt::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  trt::IPluginV3* clone() noexcept override {
    trt::IPluginV3* copy = nullptr;
    guarded([&] { copy = new DCNv4(attributes_); });
    return copy;
  }

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(trt::DataType* outputs, int32_t, const trt::DataType* inputs,
                             int32_t) const noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }

  int32_t getOutputShapes(const trt::DimsExprs* inputs, int32_t, const trt::DimsExprs*, int32_t,
                          trt::DimsExprs* outputs, int32_t, trt::IExprBuilder&) noexcept override {
    outputs[0] = inputs[1];
    outputs[0].d[3] = inputs[0].d[3];
    return 0;
  }

  bool supportsFormatCombination(int32_t index, const trt::DynamicPluginTensorDesc* tensors,
                                 int32_t, int32_t) noexcept override {
    const trt::PluginTensorDesc& tensor = tensors[index].desc;
    const bool known = tensor.type == trt::DataType::kFLOAT || tensor.type == trt::DataType::kHALF;
    return known && tensor.type == tensors[0].desc.type &&
           tensor.format == trt::TensorFormat::kLINEAR;
  }

  int32_t configurePlugin(const trt::DynamicPluginTensorDesc*, int32_t,
                          const trt::DynamicPluginTensorDesc*, int32_t) noexcept override {
    return 0;
  }

  int32_t onShapeChange(const trt::PluginTensorDesc* inputs, int32_t, const trt::PluginTensorDesc*,
                        int32_t) noexcept override {
    return guarded([&] { read_problem(inputs); });
  }

  int32_t enqueue(const trt::PluginTensorDesc* tensors, const trt::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void*,
                  cudaStream_t stream) noexcept override {
    return guarded([&] {
      dcnv4::Params p = read_problem(tensors);
      dcnv4::set_contiguous(&p, inputs[0], inputs[1], outputs[0]);
      int index = 0;
      const cudaError_t error = cudaGetDevice(&index);
      check(error == cudaSuccess, "dcnv4: CUDA: ", cudaGetErrorString(error));
      const bool half = p.dtype == DType::kFloat16;
      const auto forward = half ? dcnv4::cuda::forward<Half> : dcnv4::cuda::forward<float>;
      forward(p, false, device_at(index), stream);
    });
  }

  trt::IPluginV3* attachToContext(trt::IPluginResourceContext*) noexcept override {
    return clone();
  }

  const trt::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_.fields = attributes_.fields();
    return fields_.get();
  }

 private:
  dcnv4::Params read_problem(const trt::PluginTensorDesc* inputs) const {
    const Ints value = shape_of(inputs[0]), offset_mask = shape_of(inputs[1]);
    check(value.size() == 4 && offset_mask.size() == 4,
          "dcnv4: value and offset_mask must have 4 axes, got ", shape_text(value), " and ",
          shape_text(offset_mask));
    const Attributes& a = attributes_;
    dcnv4::Params p = dcnv4::read_geometry(value, offset_mask, ints(a.kernel_size), ints(a.stride),
                                           ints(a.padding), ints(a.dilation), a.groups,
                                           a.offset_scale, a.remove_center != 0);
    p.dtype = inputs[0].type == trt::DataType::kHALF ? DType::kFloat16 : DType::kFloat32;
    const char* reason = dcnv4::why_too_large(p);
    check(!reason, "dcnv4: the CUDA kernels cannot index ", reason ? reason : "");
    return p;
  }

  Attributes attributes_;
  Fields fields_;
};

class Creator final : public trt::IPluginCreatorV3One {
 public:
  trt::IPluginV3* createPlugin(const char*, const trt::PluginFieldCollection* fields,
                               trt::TensorRTPhase) noexcept override {
    trt::IPluginV3* plugin = nullptr;
    guarded([&] { plugin = new DCNv4(read_attributes(*fields)); });
    return plugin;
  }

  const trt::PluginFieldCollection* getFieldNames() noexcept override { return fields_.get(); }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  Attributes attributes_{};
  Fields fields_{attributes_.fields()};
};

}  // namespace
}  // namespace dcnv4_mm

// What TensorRT calls in a library of plugins.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(
    nvinfer1::ILoggerFinder* finder) {
  dcnv4_mm::logger_finder = finder;
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const*
getCreators(int32_t& count) {
  static dcnv4_mm::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
