// The order in which the CPU kernels process the queries: those that sample the same part of a
// camera's image one after the other. Row by row over the ground, queries would come back to a
// part long after it has left the cache.
#pragma once

#include <cstdint>
#include <vector>

#include "bev_cross_attn/params.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

// Vertical strips of an image, left to right: the points of a pillar lie above each other.
constexpr int64_t kSectors = 64;

// The bin of a query among cameras * kSectors + 1: its pillar's first point in the first camera
// that sees it. The last bin is for queries that no camera sees.
template <typename Real>
int64_t sort_key(const Params& p, int64_t sample, int64_t query) {
  const auto at = [&](const CameraPitches& pitches, int64_t camera) {
    return sample * pitches.sample + camera * pitches.camera + query * pitches.query;
  };
  int64_t camera = 0;
  while (camera < p.cameras && !p.bev_mask[at(p.bev_mask_pitches, camera)]) ++camera;
  if (camera == p.cameras) return camera * kSectors;
  const Real x = static_cast<const Real*>(p.reference_points)[at(p.reference_pitches, camera)];
  const int64_t sector = !(x > 0) ? 0 : x < 1 ? static_cast<int64_t>(x * kSectors) : kSectors - 1;
  return camera * kSectors + sector;
}

// The rows of the flattened (B, Q): sample by sample, bin by bin.
template <typename Real>
std::vector<int64_t> rows_by_place(const Params& p) {
  std::vector<int64_t> rows(p.batch * p.queries), keys(p.queries);
  for (int64_t sample = 0; sample < p.batch; ++sample) {
    // Where the rows of each bin begin.
    std::vector<int64_t> next(p.cameras * kSectors + 2);
    for (int64_t query = 0; query < p.queries; ++query) {
      keys[query] = sort_key<Real>(p, sample, query);
      ++next[keys[query] + 1];
    }
    next[0] = sample * p.queries;
    for (size_t key = 1; key < next.size(); ++key) next[key] += next[key - 1];
    for (int64_t query = 0; query < p.queries; ++query) {
      rows[next[keys[query]]++] = sample * p.queries + query;
    }
  }
  return rows;
}

std::vector<int64_t> rows_by_place(const Params& p) {
  return p.dtype == DType::kFloat64 ? rows_by_place<double>(p) : rows_by_place<float>(p);
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn
