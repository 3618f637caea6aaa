// One problem of multi-scale deformable attention as the kernels see it: sizes, and pointers with
// their pitches. Both operators, ms_deform_attn and flash_deform_attn, are such a problem.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace dcnv4_mm::flash_deform_attn {

struct Level {
  int64_t height, width;
  int64_t start;  // its first pixel among the pixels of all levels
};

// Distances in elements between neighbours of a tensor (N, rows, G, ...), a row being a pixel of
// value or a query of the others. The numbers of a head are adjacent.
struct Pitches {
  int64_t image;
  int64_t row;
  int64_t head;
};

// Symbols: N batch, S pixels of all levels, Q queries, G heads of D channels, L levels of P points.
// What a call does not use is null.
struct Params {
  DType dtype;          // of value, output and their gradients
  bool float32_points;  // locations, weights and their gradients are float32, otherwise `dtype`
  bool softmax;         // the weights are logits
  int64_t batch;        // N
  int64_t pixels;       // S
  int64_t queries;      // Q
  int64_t heads;        // G
  int64_t channels;     // D
  int64_t num_levels;   // L
  int64_t num_points;   // P
  const Level* levels;  // [L]

  const void* value;  // [N, S, G, D]
  Pitches value_pitches;
  const void* locations;  // [N, Q, G, L * P * 2]: x, y
  Pitches location_pitches;
  const void* weights;  // [N, Q, G, L * P]
  Pitches weight_pitches;
  void* output;  // [N, Q, G, D], contiguous

  const void* grad_output;  // [N, Q, G, D]
  Pitches grad_output_pitches;
  void* grad_value;  // [N, S, G, D], contiguous
  // [N * Q * G, L * P * 2] and [N * Q * G, L * P], with the distances between their rows.
  void* grad_locations;
  void* grad_weights;
  int64_t grad_location_pitch, grad_weight_pitch;
};

}  // namespace dcnv4_mm::flash_deform_attn
