// The GPU kernels of BEV cross-attention on the host, for tests.

#include "../host_team.h"
#include "bev_cross_attn/backward_body.h"
#include "bev_cross_attn/forward_body.h"
#include "common/dispatch.h"

namespace dcnv4_mm::bev_cross_attn {
namespace {

// Calls body(storage, vector) with constants, as the launches do.
template <typename Body>
void with_instance(const Params& p, Body body) {
  with_storage(p.dtype, [&](auto storage) {
    with_vector<kWidestLoad / int(sizeof(storage))>(vector_channels(p),
                                                    [&](auto vector) { body(storage, vector); });
  });
}

void forward(const Params& p, const DeviceLimits& limits, std::mt19937& random) {
  with_storage(p.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    with_forward_channels<Storage>(p, vector_channels(p), [&](auto channels) {
      const Tiling t = choose_tiling(p, channels, limits);
      run_blocks(t, random, [&](uint32_t block, HostTeam& team) {
        forward_block<Storage, channels>(p, geometry_of(p), t, block, team);
      });
    });
  });
}

void backward_points(const Params& p, const DeviceLimits& limits, std::mt19937& random) {
  with_instance(p, [&](auto storage, auto vector) {
    const Tiling t = choose_point_tiling(p, vector, limits);
    run_blocks(t, random, [&](uint32_t block, HostTeam& team) {
      backward_points_block<decltype(storage), vector>(p, geometry_of(p), t, block, team);
    });
  });
}

void backward_value_owned(const Params& p, const DeviceLimits& limits, std::mt19937& random) {
  const Ownership o = choose_ownership(p, limits);
  with_storage(p.dtype, [&](auto storage) {
    run_blocks(o, random, [&](uint32_t block, HostTeam& team) {
      backward_value_owned_block<decltype(storage)>(p, geometry_of(p), o, block, team);
    });
  });
}

void backward_value_atomic(const Params& p, const DeviceLimits& limits, std::mt19937& random) {
  const Spread spread = choose_spread(p.channels, p.dtype, vector_channels(p), limits);
  with_storage(p.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    std::vector<RealOf<Storage>> sums(p.batch * p.cameras * p.pixels * p.heads * p.channels);
    with_spread<Storage>(spread, [&](auto unit, auto units) {
      const Tiling t = choose_tiling(p, unit * units, limits);
      run_blocks(t, random, [&](uint32_t block, HostTeam& team) {
        backward_value_atomic_block<Storage, unit, units>(p, geometry_of(p), t, block, sums.data(),
                                                          team);
      });
    });
    for (size_t i = 0; i < sums.size(); ++i)
      write(static_cast<Storage*>(p.grad_value) + i, sums[i]);
  });
}

}  // namespace
}  // namespace dcnv4_mm::bev_cross_attn

using namespace dcnv4_mm;
using namespace dcnv4_mm::bev_cross_attn;

extern "C" {

const char* forward_on_host(const Params* p, const DeviceLimits* limits, uint32_t seed) {
  return error_of([&] {
    std::mt19937 random(seed);
    forward(*p, *limits, random);
  });
}

const char* backward_on_host(const Params* p, const DeviceLimits* limits, bool deterministic,
                             uint32_t seed) {
  return error_of([&] {
    std::mt19937 random(seed);
    if (p->grad_weights) backward_points(*p, *limits, random);
    if (!p->grad_value) return;
    const auto backward_value = deterministic ? backward_value_owned : backward_value_atomic;
    backward_value(*p, *limits, random);
  });
}

const char* too_large(const Params* p) { return why_too_large(*p); }

int32_t vector_of(const Params* p) { return vector_channels(*p); }

void tiling_of(const Params* p, int32_t vector, const DeviceLimits* limits, Tiling* tiling) {
  *tiling = choose_tiling(*p, vector, *limits);
}

void point_tiling_of(const Params* p, int32_t vector, const DeviceLimits* limits, Tiling* tiling) {
  *tiling = choose_point_tiling(*p, vector, *limits);
}

void ownership_of(const Params* p, const DeviceLimits* limits, Ownership* ownership) {
  *ownership = choose_ownership(*p, *limits);
}

// Counts for every element of grad_value [B, N, S, G, D] how many threads own it.
void count_owned(const Params* p, const Ownership* o, int32_t* counts) {
  for (int64_t block = 0; block < o->blocks; ++block) {
    const Part part = part_of(*p, *o, static_cast<uint32_t>(block));
    for (int32_t owner = 0; owner < o->owners; ++owner) {
      const int32_t begin = owner * o->owner_pixels;
      for (int32_t i = begin; i < smaller(begin + o->owner_pixels, part.pixels); ++i) {
        const int64_t row = (part.image * p->pixels + part.pixel + i) * p->heads + part.head;
        for (int32_t c = 0; c < part.channels; ++c) ++counts[row * p->channels + part.channel + c];
      }
    }
  }
}
}
