// Asks the plugin of TensorRT what an engine asks it before there is a GPU, and prints the answers.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>

using namespace nvinfer1;

struct Logger : ILogger {
  void log(Severity, const char* message) noexcept override { std::printf("logged %s\n", message); }
};

struct Finder : ILoggerFinder {
  Logger logger;
  ILogger* findLogger() override { return &logger; }
};

PluginTensorDesc tensor(Dims dims, DataType type = DataType::kFLOAT,
                        TensorFormat format = TensorFormat::kLINEAR) {
  PluginTensorDesc result{};
  result.dims = dims;
  result.type = type;
  result.format = format;
  return result;
}

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return std::printf("%s\n", dlerror()), 1;
  static Finder finder;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t count = 0;
  const auto get_creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
      dlsym(library, "getCreators"));
  auto* creator = static_cast<IPluginCreatorV3One*>(get_creators(count)[0]);
  std::printf("creators %d: %s, version %s\n", count, creator->getPluginName(),
              creator->getPluginVersion());
  const PluginFieldCollection* names = creator->getFieldNames();
  for (int32_t i = 0; i < names->nbFields; ++i) {
    const PluginField& field = names->fields[i];
    std::printf("field %s: %d of type %d\n", field.name, field.length, int(field.type));
  }

  const int32_t kernel[] = {3, 3}, stride[] = {2, 1}, ones[] = {1, 1}, groups = 2, remove = 1;
  const float scale = 0.5f;
  const PluginField fields[] = {
      {"offset_scale", &scale, PluginFieldType::kFLOAT32, 1},
      {"kernel_size", kernel, PluginFieldType::kINT32, 2},
      {"stride", stride, PluginFieldType::kINT32, 2},
      {"padding", ones, PluginFieldType::kINT32, 2},
      {"dilation", ones, PluginFieldType::kINT32, 2},
      {"groups", &groups, PluginFieldType::kINT32, 1},
      {"remove_center", &remove, PluginFieldType::kINT32, 1},
  };
  const PluginFieldCollection all{7, fields}, some{6, fields};
  std::printf("without remove_center %p\n",
              static_cast<void*>(creator->createPlugin("", &some, TensorRTPhase::kBUILD)));
  IPluginV3* built = creator->createPlugin("", &all, TensorRTPhase::kBUILD);
  auto* runtime = static_cast<IPluginV3OneRuntime*>(
      built->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  // An engine that is loaded makes its plugin from these.
  IPluginV3* plugin =
      creator->createPlugin("", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME)->clone();
  auto* core =
      static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  auto* build =
      static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  runtime = static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::printf("plugin %s, outputs %d\n", core->getPluginName(), build->getNbOutputs());
  const PluginFieldCollection* saved = runtime->getFieldsToSerialize();
  for (int32_t i = 0; i < saved->nbFields; ++i) {
    const PluginField& field = saved->fields[i];
    std::printf("saved %s", field.name);
    for (int32_t j = 0; j < field.length; ++j) {
      if (field.type == PluginFieldType::kFLOAT32) {
        std::printf(" %g", static_cast<const float*>(field.data)[j]);
      } else {
        std::printf(" %d", static_cast<const int32_t*>(field.data)[j]);
      }
    }
    std::printf("\n");
  }

  // Sizes are expressions, of which the plugin only passes on the pointers.
  DimsExprs inputs[2]{}, output{};
  for (size_t i = 0; i < 8; ++i) {
    inputs[i / 4].nbDims = 4;
    inputs[i / 4].d[i % 4] = reinterpret_cast<const IDimensionExpr*>(i);
  }
  alignas(IExprBuilder) char builder[sizeof(IExprBuilder)];
  build->getOutputShapes(inputs, 2, nullptr, 0, &output, 1,
                         reinterpret_cast<IExprBuilder&>(builder));
  std::printf("output of %d axes:", output.nbDims);
  for (int i = 0; i < 4; ++i) std::printf(" %zu", reinterpret_cast<size_t>(output.d[i]));
  std::printf("\n");

  const Dims value{4, {2, 8, 6, 32}}, rows{4, {2, 4, 6, 48}}, wrong{4, {2, 5, 6, 48}};
  const auto supports = [&](PluginTensorDesc first, PluginTensorDesc second) {
    const DynamicPluginTensorDesc tensors[] = {
        {first, {}, {}, {}}, {second, {}, {}, {}}, {first, {}, {}, {}}};
    bool all = true;
    for (int i = 0; i < 3; ++i) all = all && build->supportsFormatCombination(i, tensors, 2, 1);
    return all;
  };
  std::printf("supports float %d half %d both %d int %d chw4 %d\n",
              supports(tensor(value), tensor(rows)),
              supports(tensor(value, DataType::kHALF), tensor(rows, DataType::kHALF)),
              supports(tensor(value), tensor(rows, DataType::kHALF)),
              supports(tensor(value, DataType::kINT32), tensor(rows, DataType::kINT32)),
              supports(tensor(value, DataType::kFLOAT, TensorFormat::kCHW4), tensor(rows)));
  const PluginTensorDesc right[] = {tensor(value), tensor(rows)};
  const PluginTensorDesc other[] = {tensor(value), tensor(wrong)};
  std::printf("fits %d\n", runtime->onShapeChange(right, 2, right, 1));
  std::printf("does not %d\n", runtime->onShapeChange(other, 2, right, 1));
}
