// What the bindings of every operator's CPU kernels need.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace dcnv4_mm {

using Scratch = std::unique_ptr<unsigned char[]>;

inline Scratch allocate(size_t bytes) { return Scratch(new unsigned char[bytes]); }

// A task for a thread should last 20 microseconds at least: how many parts of it that is.
inline int64_t worth_a_thread(double nanoseconds) {
  return static_cast<int64_t>(std::min(1e9, 20000.0 / nanoseconds)) + 1;
}

}  // namespace dcnv4_mm
