// The GPU kernels of DCNv4 on the host, for tests.

#include "../host_team.h"
#include "common/dispatch.h"
#include "dcnv4/backward_body.h"
#include "dcnv4/forward_body.h"
#include "dcnv4/instances.h"

namespace dcnv4_mm::dcnv4 {
namespace {

template <typename Storage>
void forward(const Params& p, const DeviceLimits& limits, bool fast, std::mt19937& random) {
  with_forward_instance<Storage>(p, fast, [&](auto vector, auto special, auto way) {
    const Tiling t = choose_forward_tiling<special, way>(p, vector, limits);
    run_blocks(t, random, [&](uint32_t block, HostTeam& team) {
      forward_block<Storage, vector, special, way>(p, t, block, team);
    });
  });
}

template <typename Storage>
void backward_value_atomic(const Params& p, const DeviceLimits& limits, std::mt19937& random) {
  using Real = RealOf<Storage>;
  const int64_t size = p.batch * p.height * p.width * p.groups * p.group_channels;
  std::vector<Real> sums(size);
  with_spread<Storage>(choose_spread(p, limits), [&](auto unit, auto units) {
    const Tiling t = choose_tiling(p, unit * units, limits);
    run_blocks(t, random, [&](uint32_t block, HostTeam& team) {
      backward_value_atomic_block<Storage, unit, units>(p, t, block, sums.data(), team);
    });
  });
  for (int64_t i = 0; i < size; ++i) write(static_cast<Storage*>(p.grad_value) + i, sums[i]);
}

template <typename Storage>
void backward(const Params& p, const DeviceLimits& limits, bool deterministic,
              std::mt19937& random) {
  if (p.grad_offset_mask) {
    with_instance<Storage>(p, [&](auto vector, auto special) {
      const Tiling t = choose_point_tiling(p, vector, limits);
      run_blocks(t, random, [&](uint32_t block, HostTeam& team) {
        backward_offset_mask_block<Storage, vector, special>(p, t, block, team);
      });
    });
  }
  if (!p.grad_value) return;
  const ValueLaunch launch = choose_value_launch(p, deterministic, limits);
  if (launch.mode == ValueMode::kAtomic) return backward_value_atomic<Storage>(p, limits, random);
  const Ownership& o = launch.ownership;
  run_blocks(o, random, [&](uint32_t block, HostTeam& team) {
    backward_value_owned_block<Storage>(p, o, block, team);
  });
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4

using namespace dcnv4_mm;
using namespace dcnv4_mm::dcnv4;

extern "C" {

const char* forward_on_host(const Params* p, const DeviceLimits* limits, bool fast, uint32_t seed) {
  return error_of([&] {
    std::mt19937 random(seed);
    with_storage(p->dtype,
                 [&](auto storage) { forward<decltype(storage)>(*p, *limits, fast, random); });
  });
}

const char* backward_on_host(const Params* p, const DeviceLimits* limits, bool deterministic,
                             uint32_t seed) {
  return error_of([&] {
    std::mt19937 random(seed);
    with_storage(p->dtype, [&](auto storage) {
      backward<decltype(storage)>(*p, *limits, deterministic, random);
    });
  });
}

const char* too_large(const Params* p) { return why_too_large(*p); }

int32_t vector_of(const Params* p) { return vector_channels(*p); }

void tiling_of(const Params* p, int32_t vector, const DeviceLimits* limits, Tiling* tiling) {
  *tiling = choose_tiling(*p, vector, *limits);
}

void value_launch_of(const Params* p, bool deterministic, const DeviceLimits* limits,
                     ValueLaunch* launch) {
  *launch = choose_value_launch(*p, deterministic, *limits);
}

// Counts for every output [N, Ho, Wo, G, vectors] how many threads of the forward compute it.
void count_outputs(const Params* p, const Tiling* t, int32_t* counts) {
  for (int64_t block = 0; block < t->blocks; ++block) {
    const Tile tile = tile_of(*t, static_cast<uint32_t>(block));
    for (int32_t thread = 0; thread < t->threads; ++thread) {
      const Item item = item_of<1>(*t, tile, thread);
      if (!item.exists) continue;
      const int64_t pixel =
          (tile.image * p->out_height + item.pair.row) * p->out_width + item.pair.column;
      ++counts[pixel * p->groups * p->group_channels + item.channel];
    }
  }
}

// Counts for every element of grad_value [N, H, W, G * D] how many threads own it.
void count_owned(const Params* p, const Ownership* o, int32_t* counts) {
  const int32_t width = o->width.value;
  for (int64_t block = 0; block < o->blocks; ++block) {
    const Part part = part_of(*p, *o, static_cast<uint32_t>(block));
    for (int32_t i = 0; i < width * o->owners; ++i) {
      const Channel channel = channel_of(*p, *o, part, i % width);
      if (!channel.exists) continue;
      const int32_t begin = i / width * o->owner_pixels;
      for (int32_t q = begin; q < smaller(begin + o->owner_pixels, part.pixels); ++q) {
        const int64_t pixel = part.image * p->height * p->width + part.pixel + q;
        ++counts[pixel * p->groups * p->group_channels + channel.index];
      }
    }
  }
}

int32_t divide_on_host(int32_t number, int32_t divisor) {
  return divide(number, divisor_of(divisor));
}
}
