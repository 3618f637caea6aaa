// Sampling points of the CPU kernels of deformable attention: reading them, locating them,
// differentiating by them. The loops run over vectors of points.
#pragma once

#include "common/cpu_samples.h"
#include "flash_deform_attn/cpu.h"
#include "flash_deform_attn/cpu_softmax.h"

namespace dcnv4_mm::flash_deform_attn::cpu {
namespace {

// Points per block: enough to amortise the loops over points, few enough to stay in the L1 cache,
// and whole vectors of whole items for 4 levels of 4 or 8 points.
constexpr int64_t kBlockPoints = 128;

// Walks over items, an item being one head of one query: first over the given heads, then over
// queries and images.
struct Items {
  const Params* params;
  int64_t head_begin, head_end;
  int64_t head, query, image;
  int64_t row;  // of the flattened (N, Q)

  Items(const Params& p, int64_t first_row, int64_t first_head, int64_t end_head)
      : params(&p), head_begin(first_head), head_end(end_head), head(first_head) {
    row = first_row;
    query = p.queries == 0 ? 0 : first_row % p.queries;
    image = p.queries == 0 ? 0 : first_row / p.queries;
  }

  void next() {
    if (++head < head_end) return;
    head = head_begin;
    ++row;
    if (++query < params->queries) return;
    query = 0;
    ++image;
  }

  template <typename Pointer>
  Pointer at(Pointer tensor, const Pitches& pitches) const {
    return tensor + image * pitches.image + query * pitches.row + head * pitches.head;
  }

  // Number of the item in a contiguous tensor (N, Q, G).
  int64_t index() const { return row * params->heads + head; }
};

// The sampling points of some items, in the caller's scratch memory. Whole vectors of points are
// computed: the arrays have room for that at their ends.
template <typename Real>
struct Block : Samples<Real> {
  using Samples<Real>::pixel, Samples<Real>::right, Samples<Real>::down;
  using Samples<Real>::weight, Samples<Real>::dots;
  using Int = IntOf<Real>;

  int64_t item_points;   // L * P
  int64_t capacity;      // points
  Real* xy;              // [points, 2]: locations
  Real* attention;       // [points]: weights, after the softmax if there is one
  Real* grad_attention;  // [points]
  Real *height, *width;  // [points]: of the point's level
  Int* start;            // [points]: the level's first pixel

  static int64_t capacity_of(const Params& p) {
    constexpr int64_t lanes = kLanes<Real>;
    const int64_t item_points = p.num_levels * p.num_points;
    const int64_t points = item_points < kBlockPoints ? kBlockPoints : item_points;
    return (points + lanes - 1) / lanes * lanes;
  }

  static size_t bytes(const Params& p) { return 18 * capacity_of(p) * sizeof(Real); }

  Block(const Params& p, void* scratch)
      : item_points(p.num_levels * p.num_points), capacity(capacity_of(p)) {
    // The ends of the last vectors are computed with, if never used.
    __builtin_memset(scratch, 0, bytes(p));
    Real* next = static_cast<Real*>(scratch);
    const auto take = [&next](int64_t count) { return (next += count) - count; };
    xy = take(2 * capacity);
    attention = take(capacity);
    grad_attention = take(capacity);
    dots = take(4 * capacity);
    for (Real*& array : weight) array = take(capacity);
    pixel = reinterpret_cast<Int*>(take(capacity));
    right = reinterpret_cast<Int*>(take(capacity));
    down = reinterpret_cast<Int*>(take(capacity));
    height = take(capacity);
    width = take(capacity);
    start = reinterpret_cast<Int*>(take(capacity));
    for (int64_t i = 0; i < capacity; ++i) {
      const Level& level = p.levels[i % item_points / p.num_points];
      height[i] = Real(level.height);
      width[i] = Real(level.width);
      start[i] = Int(level.start);
    }
  }
};

// Converts `size` neighbouring numbers.
template <typename From, typename To>
DCNV4_MM_INLINE void copy(const From* from, int64_t size, To* to) {
  for_vectors<kLanes<RealOf<To>>>(size, [&](auto chunk, int64_t i) DCNV4_MM_INLINE_LAMBDA {
    constexpr int lanes = decltype(chunk)::lanes;
    store<lanes>(to + i, load<lanes>(from + i));
  });
}

// Reads as many items as fit into a block, from `item` on, which moves behind them. Returns the
// number of their points.
template <typename Points, typename Real>
DCNV4_MM_INLINE int64_t read_block(Items* item, int64_t end_row, const Block<Real>& block) {
  const Params& p = *item->params;
  const Points* locations = static_cast<const Points*>(p.locations);
  const Points* weights = static_cast<const Points*>(p.weights);
  int64_t count = 0;
  while (count + block.item_points <= block.capacity && item->row < end_row) {
    copy(item->at(locations, p.location_pitches), 2 * block.item_points, block.xy + 2 * count);
    copy(item->at(weights, p.weight_pitches), block.item_points, block.attention + count);
    if (p.softmax) softmax(block.item_points, block.attention + count);
    count += block.item_points;
    item->next();
  }
  return count;
}

// The geometry of one vector of a block's points.
template <typename Real>
DCNV4_MM_INLINE Positions<Real> positions_of(const Block<Real>& block, int64_t first) {
  constexpr int lanes = kLanes<Real>;
  const auto low = load<lanes>(block.xy + 2 * first);
  const auto high = load<lanes>(block.xy + 2 * first + lanes);
  const auto height = load<lanes>(block.height + first);
  const auto width = load<lanes>(block.width + first);
  const auto half = broadcast<lanes>(Real(0.5));
  return Positions<Real>(every_second<1>(low, high) * height - half,
                         every_second<0>(low, high) * width - half, height, width);
}

// Finds the pixels and weights of the first `count` points of a block.
template <typename Real>
DCNV4_MM_INLINE void locate_points(int64_t count, const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t i = 0; i < count; i += lanes) {
    locate<Real>(positions_of(block, i), load_bits<Vector<IntOf<Real>, lanes>>(block.start + i),
                 truncate(load<lanes>(block.width + i)), load<lanes>(block.attention + i), i,
                 block);
  }
}

// Turns the dot products of the first `count` points into gradients: of the locations, which
// these overwrite, and of the weights.
template <typename Real>
DCNV4_MM_INLINE void differentiate_points(int64_t count, const Block<Real>& block) {
  constexpr int lanes = kLanes<Real>;
  const auto none = broadcast<lanes>(Real(0));
  for (int64_t i = 0; i < count; i += lanes) {
    const Positions<Real> positions = positions_of(block, i);
    const auto grad = differentiate(positions, block.dots + 4 * i);
    const auto factor = load<lanes>(block.attention + i);
    const auto scale_x = factor * load<lanes>(block.width + i);
    const auto scale_y = factor * load<lanes>(block.height + i);
    const auto grad_x = positions.inside ? scale_x * grad.by_x : none;
    const auto grad_y = positions.inside ? scale_y * grad.by_y : none;
    store<lanes>(block.xy + 2 * i, interleave<0>(grad_x, grad_y));
    store<lanes>(block.xy + 2 * i + lanes, interleave<1>(grad_x, grad_y));
    store<lanes>(block.grad_attention + i, positions.inside ? grad.sample : none);
  }
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn::cpu
