// The body of the forward kernel of the attention operators on the GPU. For each camera, first the
// threads of a pair locate its sampling points, each some, and make their weights; then each thread
// adds the samples of one or two vectors of channels to its sums. These are in registers, and are
// written once.
//
// A body is a sequence of phases. `team.phase(f)` calls f(thread) for every thread of the block and
// ends with a barrier, so no thread may read in a phase what another one writes in it.
#pragma once

#include "flash_deform_attn/tile.h"

namespace dcnv4_mm::flash_deform_attn {
namespace {

// What a thread keeps from one phase to the next.
template <typename Real, int width, int vectors>
struct ForwardState {
  Item item;
  Sums<Real, width> sums[vectors];
};

// Adds `count` samples from shared memory, from the one at `slot` on. A thread has `vectors`
// vectors of `width` channels, which are `step` channels apart, in an image that starts at `image`.
template <typename Storage, int width, int vectors>
DCNV4_MM_DEVICE void add_samples(const Samples<RealOf<Storage>>& samples, int32_t slot,
                                 int32_t count, const Storage* image, int32_t step,
                                 Sums<RealOf<Storage>, width>* sums) {
  const Storage* origins[vectors];
  for (int v = 0; v < vectors; ++v) origins[v] = whole(image + v * step);
#pragma unroll 4
  for (int32_t k = 0; k < count; ++k) {
    const Offsets offsets = samples.offsets[slot + k];
    if (offsets.corner[0] == kNone) continue;
    const Weights<RealOf<Storage>> weights = samples.weights[slot + k];
    for (int v = 0; v < vectors; ++v) {
      add_sample<Storage>(corners_at<width>(origins[v], offsets), weights, &sums[v]);
    }
  }
}

// `channels` per thread: one or two vectors.
template <typename Storage, int channels, typename Sampling, typename Team>
DCNV4_MM_DEVICE void forward_block(const Sampling& s, const Tiling& t, uint32_t block, Team& team) {
  using Real = RealOf<Storage>;
  constexpr int width = load_width<Storage>(channels), vectors = channels / width;
  // Where many registers are needed, a thread does not keep its item: it is found again.
  constexpr bool is_scarce = vectors > 1 || sizeof(Real) == sizeof(double);
  constexpr bool is_kept = !is_scarce || (vectors > 1 && Sampling::kOneImage);
  const auto& p = s.p;
  const Tile tile = tile_of(p, t, block);
  const int32_t points = static_cast<int32_t>(p.num_levels * p.num_points);
  const Samples<Real> samples = samples_in<Real>(team.shared(), t.pairs, t.points);
  typename Team::template PerThread<ForwardState<Real, width, vectors>> states(team);

  const auto find_again = [&](int32_t thread) {
    return item_of<channels>(t, tile_of(p, t, whole(block)), whole(static_cast<uint32_t>(thread)));
  };
  own_phase(team,
            [&](int32_t thread) { states[thread].item = item_of<channels>(t, tile, thread); });
  prepare_softmax<Storage>(s, t, tile, samples.softmax, team);
  for (int32_t camera = 0; camera < s.cameras(); ++camera) {
    if (!s.sees_tile(t, tile, camera, team)) continue;
    for (int32_t first = 0; first < points; first += t.points) {
      team.phase([&](int32_t thread) {
        const Item item = is_kept ? states[thread].item : find_again(thread);
        locate_own<Storage>(
            s, t, tile, samples.softmax, item, camera, first, points,
            [&](int32_t slot, const LevelTable::Entry& level, const Point<Real>& point) {
              samples.offsets[slot] = reading_offsets(level, point, pixel_vectors<width>(p));
              samples.weights[slot] = reading_weights(point);
            });
      });
      team.phase([&](int32_t thread) {
        const Item item = is_kept ? states[thread].item : find_again(thread);
        if (!item.exists || !s.sees(item.pair, camera)) return;
        const auto [channel, step] = units_in<width, vectors>(t, tile, item);
        add_samples<Storage, width, vectors>(
            samples, item.pair_index * sample_stride(t.points), smaller(t.points, points - first),
            image_of<Storage>(s, item.pair, camera) + channel, step, states[thread].sums);
      });
    }
  }
  own_phase(team, [&](int32_t thread) {
    const Item item = !is_scarce ? states[thread].item : find_again(thread);
    if (!item.exists) return;
    const auto [channel, step] = units_in<width, vectors>(t, tile, item);
    Storage* output = static_cast<Storage*>(p.output) + index_of(p, item.pair) * p.channels;
    for (int v = 0; v < vectors; ++v) {
      write<width>(output + channel + v * step, states[thread].sums[v].channel);
    }
  });
}

}  // namespace
}  // namespace dcnv4_mm::flash_deform_attn
