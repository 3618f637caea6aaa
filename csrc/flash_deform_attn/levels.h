// The levels of an attention problem from their sizes.
#pragma once

#include <vector>

#include "common/argument_checks.h"
#include "flash_deform_attn/params.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

using Levels = std::vector<Level>;

// Beyond this, not every row and column is a float32 number.
constexpr int64_t kMaxSide = int64_t(1) << 24;

// `name` is the operator's.
Levels read_levels(const char* name, const Ints& sizes) {
  check(!sizes.empty() && sizes.size() % 2 == 0, name,
        ": level_sizes must be height and width of every level, got ", sizes.size(), " numbers");
  Levels levels;
  int64_t start = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const int64_t height = sizes[i], width = sizes[i + 1];
    check(height > 0 && width > 0 && height <= kMaxSide && width <= kMaxSide, name,
          ": a level must have 1 to 2^24 rows and columns, got ", height, " x ", width);
    check(start + height * width <= kMaxSize, name,
          ": all levels together must have less than 2^31 pixels");
    levels.push_back({height, width, start});
    start += height * width;
  }
  return levels;
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
