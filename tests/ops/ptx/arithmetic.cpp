// Arithmetic and logic.
#include <algorithm>
#include <cmath>

#include "machine.h"
#include "values.h"

namespace ptx {
namespace {

// The operations on values. Pairs have each of their halves computed.
template <typename Function, typename Value, typename... Others>
Value apply(Value a, Others... others) {
  return static_cast<Value>(Function()(a, others...));
}

template <typename Function, typename Half, typename... Others>
Pair<Half> apply(Pair<Half> a, Others... others) {
  return {apply<Function>(a.low, others.low...), apply<Function>(a.high, others.high...)};
}

// Handlers: one operation for each thread, on so many operands of one type.
template <typename Function, typename Value, int operands>
void elementwise(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes& a = warp[code.in[0]];
  const Lanes& b = warp[code.in[std::min(1, operands - 1)]];
  const Lanes& c = warp[code.in[operands - 1]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) {
    const Value x = value_of<Value>(a[lane]);
    Value result;
    if constexpr (operands == 1) {
      result = apply<Function>(x);
    } else if constexpr (operands == 2) {
      result = apply<Function>(x, value_of<Value>(b[lane]));
    } else {
      result = apply<Function>(x, value_of<Value>(b[lane]), value_of<Value>(c[lane]));
    }
    if constexpr (std::is_same_v<Value, float>) {
      if (code.saturates) result = result > 0 ? std::min(result, 1.0f) : 0.0f;
    }
    out[lane] = bits_of(result);
  });
}

// a * b, with all bits of the product, + c.
template <typename Value, bool adds>
void multiply_wide(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &a = warp[code.in[0]], &b = warp[code.in[1]], &c = warp[code.in[adds ? 2 : 0]];
  Lanes& out = warp[code.out[0]];
  constexpr int bits = std::min<int>(16 * sizeof(Value), 64);
  each(mask, [&](int lane) {
    const uint64_t product = wide(value_of<Value>(a[lane])) * wide(value_of<Value>(b[lane]));
    out[lane] = (product + (adds ? c[lane] : 0)) & (~uint64_t(0) >> (64 - bits));
  });
}

template <typename Value>
using Product = std::conditional_t<std::is_signed_v<Value>, __int128, unsigned __int128>;

struct Add {
  template <typename V>
  auto operator()(V a, V b) const {
    return wide(a) + wide(b);
  }
};
struct Subtract {
  template <typename V>
  auto operator()(V a, V b) const {
    return wide(a) - wide(b);
  }
};
struct Multiply {
  template <typename V>
  auto operator()(V a, V b) const {
    return wide(a) * wide(b);
  }
};
struct MultiplyHigh {
  template <typename V>
  auto operator()(V a, V b) const {
    return static_cast<Product<V>>(a) * b >> (8 * sizeof(V));
  }
};
struct MultiplyAdd {
  template <typename V>
  auto operator()(V a, V b, V c) const {
    if constexpr (std::is_integral_v<V>) {
      return wide(a) * wide(b) + wide(c);
    } else if constexpr (sizeof(V) < sizeof(float)) {
      // Exact up to the last rounding.
      return static_cast<float>(double(a) * double(b) + double(c));
    } else {
      return std::fma(a, b, c);
    }
  }
};
struct MultiplyHighAdd {
  template <typename V>
  auto operator()(V a, V b, V c) const {
    return wide(static_cast<V>(MultiplyHigh()(a, b))) + wide(c);
  }
};
struct Divide {
  template <typename V>
  auto operator()(V a, V b) const {
    if constexpr (std::is_integral_v<V>) {
      if (b == 0) throw Fault("division by zero");
    }
    return a / b;
  }
};
struct Remainder {
  template <typename V>
  auto operator()(V a, V b) const {
    if (b == 0) throw Fault("division by zero");
    return a % b;
  }
};
// Of a NaN and a number, the number.
struct Minimum {
  template <typename V>
  auto operator()(V a, V b) const {
    if constexpr (kIsFloat<V>) {
      return std::fmin(wide(a), wide(b));
    } else {
      return std::min(a, b);
    }
  }
};
struct Maximum {
  template <typename V>
  auto operator()(V a, V b) const {
    if constexpr (kIsFloat<V>) {
      return std::fmax(wide(a), wide(b));
    } else {
      return std::max(a, b);
    }
  }
};
struct Negate {
  template <typename V>
  auto operator()(V a) const {
    return -wide(a);
  }
};
struct Absolute {
  template <typename V>
  auto operator()(V a) const {
    if constexpr (kIsFloat<V>) {
      return std::fabs(wide(a));
    } else {
      return a < 0 ? -wide(a) : wide(a);
    }
  }
};
struct And {
  template <typename V>
  auto operator()(V a, V b) const {
    return a & b;
  }
};
struct Or {
  template <typename V>
  auto operator()(V a, V b) const {
    return a | b;
  }
};
struct Xor {
  template <typename V>
  auto operator()(V a, V b) const {
    return a ^ b;
  }
};
struct Not {
  template <typename V>
  auto operator()(V a) const {
    return ~a;
  }
};
struct Power2 {
  float operator()(float a) const { return std::exp2(a); }
};
struct Logarithm2 {
  float operator()(float a) const { return std::log2(a); }
};
struct Reciprocal {
  template <typename V>
  auto operator()(V a) const {
    return V(1) / a;
  }
};
struct SquareRoot {
  template <typename V>
  auto operator()(V a) const {
    return std::sqrt(a);
  }
};
struct CountBits {
  template <typename V>
  auto operator()(V a) const {
    return __builtin_popcountll(a);
  }
};

void not_predicate(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes& a = warp[code.in[0]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) { out[lane] = !(a[lane] & 1); });
}

template <typename Function, int operands>
Handler for_integers(const std::string& type) {
  Handler handler = nullptr;
  with_integer(type, [&](auto tag) {
    handler = elementwise<Function, typename decltype(tag)::Type, operands>;
  });
  return handler;
}

template <typename Function, int operands>
Handler for_floats(const std::string& type) {
  Handler handler = nullptr;
  const auto set = [&](auto tag) {
    handler = elementwise<Function, typename decltype(tag)::Type, operands>;
  };
  with_float(type, set) || with_pair(type, set);
  return handler;
}

template <typename Function, int operands>
Handler for_numbers(const std::string& type) {
  const Handler handler = for_integers<Function, operands>(type);
  return handler ? handler : for_floats<Function, operands>(type);
}

// float and double.
template <typename Function>
Handler for_wide_floats(const std::string& type) {
  if (type == "f32") return elementwise<Function, float, 1>;
  return type == "f64" ? elementwise<Function, double, 1> : nullptr;
}

// Bits; of predicates the lowest one.
template <typename Function>
Handler for_bits(const std::string& type) {
  return type == "pred" ? elementwise<Function, uint64_t, 2> : for_integers<Function, 2>(type);
}

Handler find_product(const Opcode& code) {
  const std::string& type = code.type();
  const bool adds = code.base == "mad";
  if (code.has("wide")) {
    Handler handler = nullptr;
    with_integer(type, [&](auto tag) {
      using Value = typename decltype(tag)::Type;
      handler = adds ? multiply_wide<Value, true> : multiply_wide<Value, false>;
    });
    return handler;
  }
  if (code.has("hi")) {
    return adds ? for_integers<MultiplyHighAdd, 3>(type) : for_integers<MultiplyHigh, 2>(type);
  }
  return adds ? for_integers<MultiplyAdd, 3>(type) : for_numbers<Multiply, 2>(type);
}

}  // namespace

Handler find_arithmetic(const Opcode& code) {
  const std::string &base = code.base, &type = code.types.empty() ? code.base : code.types[0];
  if (base == "mul" || base == "mad") return find_product(code);
  if (base == "add") return for_numbers<Add, 2>(type);
  if (base == "sub") return for_numbers<Subtract, 2>(type);
  if (base == "fma") return for_floats<MultiplyAdd, 3>(type);
  if (base == "min") return for_numbers<Minimum, 2>(type);
  if (base == "max") return for_numbers<Maximum, 2>(type);
  if (base == "neg") return for_numbers<Negate, 1>(type);
  if (base == "abs") return for_numbers<Absolute, 1>(type);
  if (base == "rem") return for_integers<Remainder, 2>(type);
  if (base == "and") return for_bits<And>(type);
  if (base == "or") return for_bits<Or>(type);
  if (base == "xor") return for_bits<Xor>(type);
  if (base == "not") return type == "pred" ? not_predicate : for_integers<Not, 1>(type);
  if (base == "popc") return for_integers<CountBits, 1>(type);
  if (base == "ex2" && type == "f32") return elementwise<Power2, float, 1>;
  if (base == "lg2" && type == "f32") return elementwise<Logarithm2, float, 1>;
  if (base == "rcp") return for_wide_floats<Reciprocal>(type);
  if (base == "sqrt") return for_wide_floats<SquareRoot>(type);
  if (base == "div") {
    if (type == "f32") return elementwise<Divide, float, 2>;
    return type == "f64" ? elementwise<Divide, double, 2> : for_integers<Divide, 2>(type);
  }
  return nullptr;
}

}  // namespace ptx
