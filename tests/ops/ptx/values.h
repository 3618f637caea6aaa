// Values in registers: types by their PTX names, and what is computed with them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <type_traits>

#include "program.h"

namespace ptx {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

// Two values of 16 bits in a register: .f16x2 and .bf16x2.
template <typename Value>
struct Pair {
  Value low, high;
};

template <typename Value>
struct Tag {
  using Type = Value;
};

template <typename Value>
constexpr bool kIsFloat = !std::is_integral_v<Value>;

template <typename Value>
Value value_of(uint64_t bits) {
  if constexpr (std::is_same_v<Value, bool>) return bits & 1;
  Value value;
  std::memcpy(&value, &bits, sizeof(Value));
  return value;
}

template <typename Value>
uint64_t bits_of(const Value& value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(Value));
  return bits;
}

// What sums and products are computed in: integers wrap around, 16-bit floats are rounded at last.
template <typename Value>
auto wide(Value value) {
  if constexpr (std::is_integral_v<Value>) {
    return static_cast<uint64_t>(value);
  } else if constexpr (sizeof(Value) < sizeof(float)) {
    return static_cast<float>(value);
  } else {
    return value;
  }
}

// Calls function(Tag<Value>) for the integer type of a PTX name; false for other names.
template <typename Function>
bool with_integer(const std::string& name, Function function) {
  const bool is_signed = name[0] == 's';
  switch (name == "pred" || name[0] == 'f' || name.rfind("bf", 0) == 0 ? 0 : bytes_of_type(name)) {
    case 1:
      is_signed ? function(Tag<int8_t>()) : function(Tag<uint8_t>());
      return true;
    case 2:
      is_signed ? function(Tag<int16_t>()) : function(Tag<uint16_t>());
      return true;
    case 4:
      is_signed ? function(Tag<int32_t>()) : function(Tag<uint32_t>());
      return true;
    case 8:
      is_signed ? function(Tag<int64_t>()) : function(Tag<uint64_t>());
      return true;
  }
  return false;
}

template <typename Function>
bool with_float(const std::string& name, Function function) {
  if (name == "f32") return function(Tag<float>()), true;
  if (name == "f64") return function(Tag<double>()), true;
  if (name == "f16") return function(Tag<Half>()), true;
  if (name == "bf16") return function(Tag<BFloat16>()), true;
  return false;
}

template <typename Function>
bool with_pair(const std::string& name, Function function) {
  if (name == "f16x2") return function(Tag<Pair<Half>>()), true;
  if (name == "bf16x2") return function(Tag<Pair<BFloat16>>()), true;
  return false;
}

}  // namespace ptx
