// Checks of arguments, whatever library the tensors are of.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace dcnv4_mm {

using Ints = std::vector<int64_t>;

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

// A shape that is written only if a check fails: checks cost no text otherwise.
struct ShapeText {
  const Ints* shape;
};

inline ShapeText shape_text(const Ints& shape) { return {&shape}; }

inline std::ostream& operator<<(std::ostream& text, const ShapeText& shape) {
  text << "(";
  for (size_t i = 0; i < shape.shape->size(); ++i) text << (i ? ", " : "") << (*shape.shape)[i];
  return text << ")";
}

}  // namespace dcnv4_mm
