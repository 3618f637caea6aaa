// Conversions between types, and comparisons.
#include <algorithm>
#include <cmath>
#include <limits>

#include "machine.h"
#include "values.h"

namespace ptx {
namespace {

double rounded(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::kNearest:
      return std::nearbyint(value);
    case Rounding::kToZero:
      return std::trunc(value);
    case Rounding::kDown:
      return std::floor(value);
    case Rounding::kUp:
      return std::ceil(value);
  }
  return value;
}

// Numbers beyond the integers become the nearest one. NaN becomes 0, or the sign alone where a
// double or a 64-bit integer is involved.
template <typename To, typename From>
To to_integer(From from, Rounding rounding) {
  const double value = rounded(static_cast<double>(from), rounding);
  if (value != value) {
    const bool is_long = sizeof(From) == 8 || sizeof(To) == 8;
    return is_long && sizeof(To) >= 4 ? To(To(1) << (8 * sizeof(To) - 1)) : To(0);
  }
  // The largest integer may not be a double: what it is rounded to is out of range.
  if (value >= std::ldexp(1.0, std::numeric_limits<To>::digits)) {
    return std::numeric_limits<To>::max();
  }
  if (value <= static_cast<double>(std::numeric_limits<To>::min())) {
    return std::numeric_limits<To>::min();
  }
  return static_cast<To>(value);
}

template <typename To, typename From>
void convert(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes& in = warp[code.in[0]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) {
    const From from = value_of<From>(in[lane]);
    To to;
    if constexpr (kIsFloat<From> && std::is_integral_v<To>) {
      to = to_integer<To>(from, code.rounding);
    } else if constexpr (kIsFloat<From>) {
      double value = static_cast<double>(from);
      if (code.rounds_to_integer) value = rounded(value, code.rounding);
      if (code.saturates) value = value > 0 ? std::min(value, 1.0) : 0.0;
      if constexpr (sizeof(To) < sizeof(float)) {
        to = static_cast<To>(static_cast<float>(value));
      } else {
        to = static_cast<To>(value);
      }
    } else if constexpr (kIsFloat<To> && sizeof(To) < sizeof(float)) {
      to = static_cast<To>(static_cast<float>(from));
    } else {
      to = static_cast<To>(from);
    }
    out[lane] = bits_of(to);
  });
}

// Two floats to 16 bits each, the first to the higher half.
template <typename To>
void convert_pair(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &high = warp[code.in[0]], &low = warp[code.in[1]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) {
    out[lane] = bits_of(Pair<To>{static_cast<To>(value_of<float>(low[lane])),
                                 static_cast<To>(value_of<float>(high[lane]))});
  });
}

template <typename Function>
void compare_by(Warp& warp, const Instruction& code, Mask mask, Function function) {
  Lanes& out = warp[code.out[0]];
  const Lanes* third = code.combine ? &warp[code.in[2]] : nullptr;
  each(mask, [&](int lane) {
    bool result = function(lane);
    if (third) {
      const bool other = (*third)[lane] & 1;
      if (code.combine == '&') result = result && other;
      if (code.combine == '|') result = result || other;
      if (code.combine == '^') result = result != other;
    }
    out[lane] = result;
    if (code.out.size() > 1) warp[code.out[1]][lane] = !result;
  });
}

// Those with U at the end are true of a NaN.
template <typename Value>
void compare(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &lanes_a = warp[code.in[0]], &lanes_b = warp[code.in[1]];
  const auto by = [&](auto function) {
    compare_by(warp, code, mask, [&](int lane) {
      const Value a = value_of<Value>(lanes_a[lane]), b = value_of<Value>(lanes_b[lane]);
      if constexpr (kIsFloat<Value>) return function(wide(a), wide(b));
      return function(a, b);
    });
  };
  switch (code.compare) {
    case Compare::kEq:
      return by([](auto a, auto b) { return a == b; });
    case Compare::kNe:
      return by([](auto a, auto b) { return a < b || a > b; });
    case Compare::kLt:
      return by([](auto a, auto b) { return a < b; });
    case Compare::kLe:
      return by([](auto a, auto b) { return a <= b; });
    case Compare::kGt:
      return by([](auto a, auto b) { return a > b; });
    case Compare::kGe:
      return by([](auto a, auto b) { return a >= b; });
    case Compare::kEqu:
      return by([](auto a, auto b) { return !(a < b || a > b); });
    case Compare::kNeu:
      return by([](auto a, auto b) { return !(a == b); });
    case Compare::kLtu:
      return by([](auto a, auto b) { return !(a >= b); });
    case Compare::kLeu:
      return by([](auto a, auto b) { return !(a > b); });
    case Compare::kGtu:
      return by([](auto a, auto b) { return !(a <= b); });
    case Compare::kGeu:
      return by([](auto a, auto b) { return !(a < b); });
  }
}

template <typename Function>
bool with_number(const std::string& type, Function function) {
  return with_integer(type, function) || with_float(type, function);
}

}  // namespace

Handler find_conversion(const Opcode& code) {
  if (code.types.size() != 2) return nullptr;
  const std::string &to = code.types[0], &from = code.types[1];
  if (from == "f32" && to == "f16x2") return convert_pair<Half>;
  if (from == "f32" && to == "bf16x2") return convert_pair<BFloat16>;
  Handler handler = nullptr;
  with_number(to, [&](auto to_tag) {
    with_number(from, [&](auto from_tag) {
      handler = convert<typename decltype(to_tag)::Type, typename decltype(from_tag)::Type>;
    });
  });
  return handler;
}

Handler find_comparison(const Opcode& code) {
  Handler handler = nullptr;
  with_number(code.type(), [&](auto tag) { handler = compare<typename decltype(tag)::Type>; });
  return handler;
}

}  // namespace ptx
