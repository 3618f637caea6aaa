// Checks of arguments at the border between torch and the kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace dcnv4_mm {

// Throws std::runtime_error, a RuntimeError in Python, with the parts as its text.
template <typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Every size, pitch product and index of the kernels then fits an int64, every coordinate an int32.
constexpr int64_t kMaxSize = (int64_t(1) << 31) - 1;

inline std::string shape_text(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

inline void check_cpu_tensor(const char* name, const torch::stable::Tensor& tensor, int64_t axes) {
  check(tensor.defined() && tensor.is_cpu(), name, " must be a CPU tensor");
  check(tensor.dim() == axes, name, " must have ", axes, " axes, got the shape ",
        shape_text(tensor));
  for (int64_t i = 0; i < axes; ++i) {
    check(tensor.size(i) <= kMaxSize, name, " must have sizes below 2^31, got the shape ",
          shape_text(tensor));
  }
}

}  // namespace dcnv4_mm
