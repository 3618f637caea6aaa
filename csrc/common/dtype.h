// The storage types of the operators' tensors.
#pragma once

namespace dcnv4_mm {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16 };

}  // namespace dcnv4_mm
