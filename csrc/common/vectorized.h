// Runs of adjacent numbers that the GPU loads, stores or adds at once. The host has the same
// functions, number by number, to run kernel bodies in tests.
#pragma once

#include "common/bilinear.h"
#include "common/storage.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// Code of a kernel's body: functions, and those of a class.
#define DCNV4_MM_DEVICE __device__ __forceinline__
#define DCNV4_MM_DEVICE_METHOD __device__ __forceinline__
#else
#include <cstring>
#include <stdexcept>
#define DCNV4_MM_DEVICE DCNV4_MM_INLINE
#define DCNV4_MM_DEVICE_METHOD inline
#endif

namespace dcnv4_mm {

// Keeps the compiler from taking a number or an address apart: from keeping its terms in registers,
// and from 64-bit additions where one multiplication with a 64-bit sum does.
template <typename Element>
DCNV4_MM_DEVICE Element* whole(Element* address) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(address));
#endif
  return address;
}

DCNV4_MM_DEVICE uint32_t whole(uint32_t number) {
#if defined(__CUDA_ARCH__)
  asm("" : "+r"(number));
#endif
  return number;
}

// Bytes of the widest load of a thread.
constexpr int kWidestLoad = 16;

// [count] numbers of a storage type as the words that hold them; a single 16-bit number is the low
// half of a word.
template <typename Storage, int count>
struct Words {
  static constexpr int bytes = count * int(sizeof(Storage));
  static_assert(bytes <= kWidestLoad, "");
  uint32_t words[(bytes + 3) / 4];
};

#if defined(__CUDACC__)

DCNV4_MM_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DCNV4_MM_DEVICE double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

DCNV4_MM_DEVICE __half2 as_half2(uint32_t word) {
  __half2 pair;
  __builtin_memcpy(&pair, &word, sizeof(pair));
  return pair;
}
DCNV4_MM_DEVICE uint32_t as_word(__half2 pair) {
  uint32_t word;
  __builtin_memcpy(&word, &pair, sizeof(word));
  return word;
}

// Reads memory that no thread writes while the kernel runs.
template <int count, typename Storage>
DCNV4_MM_DEVICE Words<Storage, count> load_words(const Storage* address) {
  constexpr int bytes = Words<Storage, count>::bytes;
  if constexpr (bytes == 16) {
    const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(address));
    return {loaded.x, loaded.y, loaded.z, loaded.w};
  } else if constexpr (bytes == 8) {
    const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(address));
    return {loaded.x, loaded.y};
  } else if constexpr (bytes == 4) {
    return {__ldg(reinterpret_cast<const uint32_t*>(address))};
  } else {
    return {__ldg(reinterpret_cast<const uint16_t*>(address))};
  }
}

template <int count, typename Storage>
DCNV4_MM_DEVICE void store_words(Storage* address, const Words<Storage, count>& v) {
  constexpr int bytes = Words<Storage, count>::bytes;
  if constexpr (bytes == 16) {
    // An assignment is not always compiled to one store.
    asm volatile(
        "st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
        "r"(v.words[0]), "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3])
        : "memory");
  } else if constexpr (bytes == 8) {
    *reinterpret_cast<uint2*>(address) = make_uint2(v.words[0], v.words[1]);
  } else if constexpr (bytes == 4) {
    *reinterpret_cast<uint32_t*>(address) = v.words[0];
  } else {
    *reinterpret_cast<uint16_t*>(address) = v.words[0];
  }
}

template <int count>
DCNV4_MM_DEVICE void unpack(const Words<double, count>& v, double* numbers) {
  for (int i = 0; i < count; ++i) {
    numbers[i] = __hiloint2double(v.words[2 * i + 1], v.words[2 * i]);
  }
}
template <int count>
DCNV4_MM_DEVICE void unpack(const Words<float, count>& v, float* numbers) {
  for (int i = 0; i < count; ++i) numbers[i] = __uint_as_float(v.words[i]);
}
template <int count>
DCNV4_MM_DEVICE void unpack(const Words<Half, count>& v, float* numbers) {
  for (int i = 0; i < count; i += 2) {
    const float2 pair = __half22float2(as_half2(v.words[i / 2]));
    numbers[i] = pair.x;
    if (i + 1 < count) numbers[i + 1] = pair.y;
  }
}
template <int count>
DCNV4_MM_DEVICE void unpack(const Words<BFloat16, count>& v, float* numbers) {
  for (int i = 0; i < count; i += 2) {
    numbers[i] = __uint_as_float(v.words[i / 2] << 16);
    if (i + 1 < count) numbers[i + 1] = __uint_as_float(v.words[i / 2] & 0xffff0000u);
  }
}

// Each number is rounded once.
template <int count>
DCNV4_MM_DEVICE void pack(const double* numbers, Words<double, count>* v) {
  for (int i = 0; i < count; ++i) {
    v->words[2 * i] = __double2loint(numbers[i]);
    v->words[2 * i + 1] = __double2hiint(numbers[i]);
  }
}
template <int count>
DCNV4_MM_DEVICE void pack(const float* numbers, Words<float, count>* v) {
  for (int i = 0; i < count; ++i) v->words[i] = __float_as_uint(numbers[i]);
}
template <int count>
DCNV4_MM_DEVICE void pack(const float* numbers, Words<Half, count>* v) {
  for (int i = 0; i < count; i += 2) {
    v->words[i / 2] = as_word(__floats2half2_rn(numbers[i], i + 1 < count ? numbers[i + 1] : 0.f));
  }
}
template <int count>
DCNV4_MM_DEVICE void pack(const float* numbers, Words<BFloat16, count>* v) {
  for (int i = 0; i < count; i += 2) {
    const __nv_bfloat162 pair =
        __floats2bfloat162_rn(numbers[i], i + 1 < count ? numbers[i + 1] : 0.f);
    __builtin_memcpy(&v->words[i / 2], &pair, sizeof(pair));
  }
}

// Two float16 products and sums in one word, each with one rounding.
DCNV4_MM_DEVICE uint32_t multiply_add_halves(uint32_t a, uint32_t b, uint32_t c) {
  return as_word(__hfma2(as_half2(a), as_half2(b), as_half2(c)));
}

// Adds numbers to memory to which other threads add as well, in any order.
template <int count>
DCNV4_MM_DEVICE void atomic_add(float* address, const float* numbers) {
  const size_t global = __cvta_generic_to_global(address);
#if __CUDA_ARCH__ >= 900
  constexpr bool wide = count % 4 == 0;
#else
  constexpr bool wide = false;
#endif
  for (int i = 0; i < count; i += wide ? 4 : 1) {
    if constexpr (wide) {
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(global + 4 * i),
                   "f"(numbers[i]), "f"(numbers[i + 1]), "f"(numbers[i + 2]), "f"(numbers[i + 3])
                   : "memory");
    } else {
      asm volatile("red.global.add.f32 [%0], %1;" ::"l"(global + 4 * i), "f"(numbers[i])
                   : "memory");
    }
  }
}
template <int count>
DCNV4_MM_DEVICE void atomic_add(double* address, const double* numbers) {
  const size_t global = __cvta_generic_to_global(address);
  for (int i = 0; i < count; ++i) {
    asm volatile("red.global.add.f64 [%0], %1;" ::"l"(global + 8 * i), "d"(numbers[i]) : "memory");
  }
}

#else  // the host

inline void check_alignment(const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) throw std::logic_error("misaligned vector");
}

template <int count, typename Storage>
DCNV4_MM_DEVICE Words<Storage, count> load_words(const Storage* address) {
  Words<Storage, count> v{};
  check_alignment(address, v.bytes);
  std::memcpy(v.words, address, v.bytes);
  return v;
}

template <int count, typename Storage>
DCNV4_MM_DEVICE void store_words(Storage* address, const Words<Storage, count>& v) {
  check_alignment(address, v.bytes);
  std::memcpy(address, v.words, v.bytes);
}

template <typename Storage, int count>
DCNV4_MM_DEVICE void unpack(const Words<Storage, count>& v, RealOf<Storage>* numbers) {
  Storage stored[count];
  std::memcpy(stored, v.words, sizeof(stored));
  for (int i = 0; i < count; ++i) numbers[i] = load<1>(stored + i);
}

template <typename Storage, int count>
DCNV4_MM_DEVICE void pack(const RealOf<Storage>* numbers, Words<Storage, count>* v) {
  Storage stored[count];
  for (int i = 0; i < count; ++i) store<1>(stored + i, numbers[i]);
  std::memcpy(v->words, stored, sizeof(stored));
}

DCNV4_MM_DEVICE uint32_t multiply_add_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto half = [shift](uint32_t word) { return half_to_float<1>(word >> shift & 0xffffu); };
    result |= float_to_half<1>(half(a) * half(b) + half(c)) << shift;
  }
  return result;
}

template <int count, typename Real>
DCNV4_MM_DEVICE void atomic_add(Real* address, const Real* numbers) {
  check_alignment(address, count * sizeof(Real) < 16 ? count * sizeof(Real) : 16);
  for (int i = 0; i < count; ++i) address[i] += numbers[i];
}

#endif

template <int count, typename Storage>
DCNV4_MM_DEVICE void read(const Storage* address, RealOf<Storage>* numbers) {
  unpack(load_words<count>(address), numbers);
}

template <typename Storage>
DCNV4_MM_DEVICE RealOf<Storage> read(const Storage* address) {
  RealOf<Storage> number;
  read<1>(address, &number);
  return number;
}

template <int count, typename Storage>
DCNV4_MM_DEVICE void write(Storage* address, const RealOf<Storage>* numbers) {
  Words<Storage, count> v;
  pack(numbers, &v);
  store_words<count>(address, v);
}

template <typename Storage>
DCNV4_MM_DEVICE void write(Storage* address, RealOf<Storage> number) {
  write<1>(address, &number);
}

}  // namespace dcnv4_mm
