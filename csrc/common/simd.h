// Short vectors of the compiled instruction set, and their loads and stores from tensors.
//
// This header is compiled once per instruction set. Everything in it has internal linkage and it
// includes no C++ library header: otherwise the linker could merge, say, an AVX-512 copy of an
// inline function into the code that runs on every machine.
//
// Vectors are the compiler's own: + - * / & | < and ?: act on every lane. Code that is templated
// over the number of lanes works with one lane too, the vector then being the plain number.
#pragma once

#include <stdint.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/storage.h"

#define DCNV4_MM_INLINE static inline __attribute__((always_inline))
#define DCNV4_MM_INLINE_LAMBDA __attribute__((always_inline))

namespace dcnv4_mm {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename Scalar, int lanes>
struct VectorOf {
  typedef Scalar Type __attribute__((vector_size(lanes * sizeof(Scalar))));
};
template <typename Scalar>
struct VectorOf<Scalar, 1> {
  using Type = Scalar;
};
template <typename Scalar, int lanes>
using Vector = typename VectorOf<Scalar, lanes>::Type;

// Lanes of the widest vector.
template <typename Scalar>
constexpr int kLanes = kVectorBytes / int(sizeof(Scalar));

// Lanes of a vector of floats or doubles.
template <typename V>
constexpr int kLanesOf = sizeof(V) / sizeof(V{}[0]);
template <>
constexpr int kLanesOf<float> = 1;
template <>
constexpr int kLanesOf<double> = 1;

template <typename To, typename From>
DCNV4_MM_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename Scalar, int lanes, typename From>
DCNV4_MM_INLINE Vector<Scalar, lanes> convert(From from) {
  if constexpr (lanes == 1) {
    return static_cast<Scalar>(from);
  } else {
    return __builtin_convertvector(from, Vector<Scalar, lanes>);
  }
}

template <int lanes, typename Scalar>
DCNV4_MM_INLINE Vector<Scalar, lanes> broadcast(Scalar scalar) {
  return scalar - Vector<Scalar, lanes>{};  // folded away, unlike a sum: -0 + 0 is 0
}

// To integers as wide as the numbers, and back. There are never more than 32 significant bits: few
// instruction sets convert 64.
DCNV4_MM_INLINE int32_t truncate(float number) { return static_cast<int32_t>(number); }
DCNV4_MM_INLINE int64_t truncate(double number) { return static_cast<int32_t>(number); }
template <typename Scalar>
using IntOf = decltype(truncate(Scalar{}));
template <typename V>
DCNV4_MM_INLINE auto truncate(V vector) {
  constexpr int lanes = kLanesOf<V>;
  using Int = decltype(truncate(+vector[0]));
  return convert<Int, lanes>(convert<int32_t, lanes>(vector));
}

DCNV4_MM_INLINE float to_real(int32_t number) { return static_cast<float>(number); }
DCNV4_MM_INLINE double to_real(int64_t number) { return static_cast<double>(number); }
template <typename V>
DCNV4_MM_INLINE auto to_real(V vector) {
  constexpr int lanes = kLanesOf<V>;
  using Real = decltype(to_real(+vector[0]));
  return convert<Real, lanes>(convert<int32_t, lanes>(vector));
}

// a * b + c with one rounding where the machine can. The code is compiled with -ffp-contract=off:
// everything else, the sampling positions above all, is rounded alike on every machine.
template <typename V>
DCNV4_MM_INLINE V multiply_add(V a, V b, V c) {
#if defined(__FMA__)
  [[maybe_unused]] constexpr bool is_float = sizeof(V) == kLanesOf<V> * sizeof(float);
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && is_float) return _mm512_fmadd_ps(a, b, c);
  if constexpr (sizeof(V) == 64 && !is_float) return _mm512_fmadd_pd(a, b, c);
#endif
  if constexpr (sizeof(V) == 32 && is_float) return _mm256_fmadd_ps(a, b, c);
  if constexpr (sizeof(V) == 32 && !is_float) return _mm256_fmadd_pd(a, b, c);
  if constexpr (sizeof(V) == 16 && is_float) return _mm_fmadd_ps(a, b, c);
  if constexpr (sizeof(V) == 16 && !is_float) return _mm_fmadd_pd(a, b, c);
#endif
  return a * b + c;
}

// Lane i of the result is lane picks(i) of a, or of b counted on from a's lanes.
template <typename V, typename Picks>
DCNV4_MM_INLINE V pick(V a, V b, Picks picks) {
  constexpr int lanes = kLanesOf<V>;
#if defined(__clang__)
  V result;
  for (int i = 0; i < lanes; ++i) result[i] = picks(i) < lanes ? a[picks(i)] : b[picks(i) - lanes];
  return result;
#else
  decltype(a < b) index;
  for (int i = 0; i < lanes; ++i) index[i] = picks(i);
  return __builtin_shuffle(a, b, index);
#endif
}

// a0 a2 a4 ... b0 b2 ..., or with first = 1 a1 a3 a5 ....
template <int first, typename V>
DCNV4_MM_INLINE V every_second(V a, V b) {
  return pick(a, b, [](int i) { return 2 * i + first; });
}

// The first half of a0 b0 a1 b1 ..., or with half = 1 the second.
template <int half, typename V>
DCNV4_MM_INLINE V interleave(V a, V b) {
  constexpr int lanes = kLanesOf<V>;
  return pick(a, b, [](int i) { return half * lanes / 2 + i / 2 + i % 2 * lanes; });
}

// [lanes] float16 bit patterns, each in 32 bits -> float. Shifted into place, the number is off by
// the difference of the exponents' biases, which the multiplication puts right, denormals too.
template <int lanes>
DCNV4_MM_INLINE Vector<float, lanes> half_to_float(Vector<uint32_t, lanes> half) {
  using Bits = Vector<uint32_t, lanes>;
  const Bits magnitude = half & 0x7fffu;
  const Bits scaled = bit_cast<Bits>(bit_cast<Vector<float, lanes>>(magnitude << 13) * 0x1p112f);
  const Bits infinite_or_nan = (magnitude << 13) | 0x7f800000u;
  const Bits result = magnitude >= 0x7c00u ? infinite_or_nan : scaled;
  return bit_cast<Vector<float, lanes>>(result | ((half & 0x8000u) << 16));
}

// [lanes] float -> float16 bit patterns, each in 32 bits; rounds to nearest, ties to even.
template <int lanes>
DCNV4_MM_INLINE Vector<uint32_t, lanes> float_to_half(Vector<float, lanes> number) {
  using Bits = Vector<uint32_t, lanes>;
  const Bits bits = bit_cast<Bits>(number);
  const Bits sign = (bits >> 16) & 0x8000u;
  const Bits magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is denormal: adding 0.5 leaves its bits, rounded, in the last place.
  const Vector<float, lanes> shifted = bit_cast<Vector<float, lanes>>(magnitude) + 0.5f;
  const Bits denormal = bit_cast<Bits>(shifted) - 0x3f000000u;
  const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Bits infinite_or_nan = (magnitude > 0x7f800000u) ? Bits{} + 0x7e00u : Bits{} + 0x7c00u;
  const Bits finite = magnitude < 0x38800000u ? denormal : normal;
  return (magnitude >= 0x47800000u ? infinite_or_nan : finite) | sign;
}

// [lanes] float -> bfloat16 bit patterns, each in 32 bits; rounds to nearest, ties to even.
template <int lanes>
DCNV4_MM_INLINE Vector<uint32_t, lanes> float_to_bfloat16(Vector<float, lanes> number) {
  using Bits = Vector<uint32_t, lanes>;
  const Bits bits = bit_cast<Bits>(number);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits quiet_nan = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

template <typename V>
DCNV4_MM_INLINE V load_bits(const void* address) {
  V vector;
  __builtin_memcpy(&vector, address, sizeof(vector));
  return vector;
}

template <typename V>
DCNV4_MM_INLINE void store_bits(void* address, V vector) {
  __builtin_memcpy(address, &vector, sizeof(vector));
}

// Loads `lanes` neighbouring numbers from unaligned memory in the type of the arithmetic.
template <int lanes>
DCNV4_MM_INLINE Vector<double, lanes> load(const double* address) {
  return load_bits<Vector<double, lanes>>(address);
}
template <int lanes>
DCNV4_MM_INLINE Vector<float, lanes> load(const float* address) {
  return load_bits<Vector<float, lanes>>(address);
}
template <int lanes>
DCNV4_MM_INLINE Vector<float, lanes> load(const BFloat16* address) {
  const auto bits = convert<uint32_t, lanes>(load_bits<Vector<uint16_t, lanes>>(address));
  return bit_cast<Vector<float, lanes>>(bits << 16);
}
template <int lanes>
DCNV4_MM_INLINE Vector<float, lanes> load(const Half* address) {
#if defined(__AVX512F__)
  if constexpr (lanes == 16) return _mm512_cvtph_ps(load_bits<__m256i>(address));
#endif
#if defined(__F16C__)
  if constexpr (lanes == 8) return _mm256_cvtph_ps(load_bits<__m128i>(address));
#endif
  return half_to_float<lanes>(
      convert<uint32_t, lanes>(load_bits<Vector<uint16_t, lanes>>(address)));
}

// Stores with one rounding to the storage type.
template <int lanes>
DCNV4_MM_INLINE void store(double* address, Vector<double, lanes> vector) {
  store_bits(address, vector);
}
template <int lanes>
DCNV4_MM_INLINE void store(float* address, Vector<float, lanes> vector) {
  store_bits(address, vector);
}
template <int lanes>
DCNV4_MM_INLINE void store(BFloat16* address, Vector<float, lanes> vector) {
  store_bits(address, convert<uint16_t, lanes>(float_to_bfloat16<lanes>(vector)));
}
template <int lanes>
DCNV4_MM_INLINE void store(Half* address, Vector<float, lanes> vector) {
#if defined(__AVX512F__)
  if constexpr (lanes == 16) {
    return store_bits(address, _mm512_cvtps_ph(vector, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
#if defined(__F16C__)
  if constexpr (lanes == 8) {
    return store_bits(address, _mm256_cvtps_ph(vector, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  store_bits(address, convert<uint16_t, lanes>(float_to_half<lanes>(vector)));
}

// Sum of every fourth lane: [lanes] -> [4].
template <typename V>
DCNV4_MM_INLINE auto fold(V vector) {
  constexpr int lanes = kLanesOf<V>;
  if constexpr (lanes == 4) {
    return vector;
  } else {
    struct Halves {
      Vector<decltype(+vector[0]), lanes / 2> low, high;
    };
    const Halves halves = bit_cast<Halves>(vector);
    return fold(halves.low + halves.high);
  }
}

// Adds the sums over the lanes of four vectors to sums[0..3].
template <typename V, typename Scalar>
DCNV4_MM_INLINE void add_sums(V a, V b, V c, V d, Scalar* sums) {
  constexpr int lanes = kLanesOf<V>;
  if constexpr (lanes >= 4) {
    // In every four lanes: two partial sums each of a and b, and of c and d; then one of all four.
    const auto first_pairs = [](int i) { return (i & ~3) + (i & 3) / 2 + i % 2 * lanes; };
    const auto second_pairs = [](int i) { return (i & ~3) + (i & 3) / 2 + 2 + i % 2 * lanes; };
    const auto lower = [](int i) { return (i & ~3) + (i & 1) + (i & 2) / 2 * lanes; };
    const auto upper = [](int i) { return (i & ~3) + (i & 1) + 2 + (i & 2) / 2 * lanes; };
    const V ab = pick(a, b, first_pairs) + pick(a, b, second_pairs);
    const V cd = pick(c, d, first_pairs) + pick(c, d, second_pairs);
    const V abcd = pick(ab, cd, lower) + pick(ab, cd, upper);
    store<4>(sums, load<4>(sums) + fold(abcd));
  } else if constexpr (lanes == 2) {
    sums[0] += a[0] + a[1];
    sums[1] += b[0] + b[1];
    sums[2] += c[0] + c[1];
    sums[3] += d[0] + d[1];
  } else {
    sums[0] += a;
    sums[1] += b;
    sums[2] += c;
    sums[3] += d;
  }
}

// `count` vectors of `lanes` numbers: a piece of a row that is held in registers.
template <int lanes_, int count_>
struct Chunk {
  static constexpr int lanes = lanes_;
  static constexpr int count = count_;
};

template <int lanes, typename Function>
DCNV4_MM_INLINE void for_narrow_chunks(int64_t begin, int64_t size, Function&& function) {
  for (; begin + lanes <= size; begin += lanes) function(Chunk<lanes, 1>{}, begin);
  if constexpr (lanes > 1) for_narrow_chunks<lanes / 2>(begin, size, function);
}

// Calls function(Chunk, first number) for pieces that make up a row of `size` numbers, widest
// first.
template <typename Scalar, typename Function>
DCNV4_MM_INLINE void for_chunks(int64_t size, Function&& function) {
  constexpr int lanes = kLanes<Scalar>;
  int64_t begin = 0;
  for (; begin + 8 * lanes <= size; begin += 8 * lanes) function(Chunk<lanes, 8>{}, begin);
  if (begin + 4 * lanes <= size) {
    function(Chunk<lanes, 4>{}, begin);
    begin += 4 * lanes;
  }
  if (begin + 2 * lanes <= size) {
    function(Chunk<lanes, 2>{}, begin);
    begin += 2 * lanes;
  }
  for_narrow_chunks<lanes>(begin, size, function);
}

// Calls function(Chunk, first number) for vectors that cover a row of `size` numbers, a multiple of
// `narrowest`. The last one may overlap the one before: cheaper than several narrower ones, where
// numbers are only stored.
template <int lanes, int narrowest = 1, typename Function>
DCNV4_MM_INLINE void for_vectors(int64_t size, Function&& function) {
  if (size >= lanes) {
    int64_t begin = 0;
    for (; begin + lanes <= size; begin += lanes) function(Chunk<lanes, 1>{}, begin);
    if (begin < size) function(Chunk<lanes, 1>{}, size - lanes);
  } else if constexpr (lanes > narrowest) {
    for_vectors<lanes / 2, narrowest>(size, function);
  }
}

}  // namespace
}  // namespace dcnv4_mm
