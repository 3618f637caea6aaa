// Loads, stores and atomic additions.
#include <algorithm>
#include <cstring>

#include "machine.h"
#include "values.h"

namespace ptx {
namespace {

// The first operand is the address, to which the instruction adds a constant.
Lanes addresses_of(Warp& warp, const Instruction& code) {
  Lanes addresses = warp[code.in[0]];
  for (uint64_t& address : addresses) address += code.offset;
  return addresses;
}

uint64_t read(const void* address, const Instruction& code) {
  uint64_t bits = 0;
  std::memcpy(&bits, address, code.bytes);
  if (!code.extends || code.bytes == 8) return bits;
  // To 32 bits, as wide as the register is.
  const int unused = 64 - 8 * code.bytes;
  return static_cast<uint32_t>(static_cast<int64_t>(bits << unused) >> unused);
}

void load_parameter(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes addresses = addresses_of(warp, code);
  const std::vector<unsigned char>& parameters = warp.block->launch.parameters;
  const uint64_t bytes = code.bytes * code.out.size();
  each(mask, [&](int lane) {
    if (addresses[lane] + bytes > parameters.size()) throw Fault("read beyond the parameters");
    for (size_t i = 0; i < code.out.size(); ++i) {
      warp[code.out[i]][lane] = read(&parameters[addresses[lane] + i * code.bytes], code);
    }
  });
}

void count_shared(Warp& warp, const Lanes& addresses, int64_t bytes, Mask mask) {
  const Passes passes = count_passes(addresses, bytes, mask);
  warp.block->counters.shared_passes += passes.needed;
  warp.block->counters.shared_passes_at_best += passes.at_best;
}

void load_shared(Warp& warp, const Instruction& code, Mask mask) {
  Lanes addresses = addresses_of(warp, code);
  const int64_t bytes = code.bytes * code.out.size();
  each(mask, [&](int lane) {
    addresses[lane] &= 0xffffffff;
    warp.block->shared.check(addresses[lane], bytes, Access::kLoad, warp.thread(lane));
    for (size_t i = 0; i < code.out.size(); ++i) {
      warp[code.out[i]][lane] = read(warp.block->shared.at(addresses[lane] + i * code.bytes), code);
    }
  });
  count_shared(warp, addresses, bytes, mask);
}

void store_shared(Warp& warp, const Instruction& code, Mask mask) {
  Lanes addresses = addresses_of(warp, code);
  const int64_t bytes = code.bytes * (code.in.size() - 1);
  each(mask, [&](int lane) {
    addresses[lane] &= 0xffffffff;
    warp.block->shared.check(addresses[lane], bytes, Access::kStore, warp.thread(lane));
    for (size_t i = 1; i < code.in.size(); ++i) {
      const uint64_t address = addresses[lane] + (i - 1) * code.bytes;
      std::memcpy(warp.block->shared.at(address), &warp[code.in[i]][lane], code.bytes);
    }
  });
  count_shared(warp, addresses, bytes, mask);
}

void load_global(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes addresses = addresses_of(warp, code);
  const int64_t bytes = code.bytes * code.out.size();
  each(mask, [&](int lane) {
    warp.block->global.check(addresses[lane], bytes, Access::kLoad, warp.thread_in_grid(lane));
    for (size_t i = 0; i < code.out.size(); ++i) {
      const void* address = reinterpret_cast<const void*>(addresses[lane] + i * code.bytes);
      warp[code.out[i]][lane] = read(address, code);
    }
  });
  warp.block->counters.load_requests++;
  warp.block->counters.load_sectors += count_sectors(addresses, mask);
}

void store_global(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes addresses = addresses_of(warp, code);
  const int64_t bytes = code.bytes * (code.in.size() - 1);
  each(mask, [&](int lane) {
    warp.block->global.check(addresses[lane], bytes, Access::kStore, warp.thread_in_grid(lane));
    for (size_t i = 1; i < code.in.size(); ++i) {
      void* address = reinterpret_cast<void*>(addresses[lane] + (i - 1) * code.bytes);
      std::memcpy(address, &warp[code.in[i]][lane], code.bytes);
    }
  });
  warp.block->counters.store_sectors += count_sectors(addresses, mask);
}

struct Add {
  template <typename Value>
  Value operator()(Value a, Value b) const {
    return a + b;
  }
};
struct Or {
  template <typename Value>
  Value operator()(Value a, Value b) const {
    return a | b;
  }
};
struct Max {
  template <typename Value>
  Value operator()(Value a, Value b) const {
    return std::max(a, b);
  }
};

// The threads of a warp change memory in random order.
template <typename Value, typename Change>
void reduce_global(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes addresses = addresses_of(warp, code);
  const int64_t bytes = sizeof(Value) * (code.in.size() - 1);
  std::vector<int> order;
  each(mask, [&](int lane) {
    warp.block->global.check(addresses[lane], bytes, Access::kAtomic, warp.thread_in_grid(lane));
    order.push_back(lane);
  });
  std::shuffle(order.begin(), order.end(), warp.block->random);
  for (int lane : order) {
    Value* sums = reinterpret_cast<Value*>(addresses[lane]);
    for (size_t i = 1; i < code.in.size(); ++i) {
      sums[i - 1] = Change()(sums[i - 1], value_of<Value>(warp[code.in[i]][lane]));
    }
  }
  warp.block->counters.atomic_requests++;
  warp.block->counters.atomic_sectors += count_sectors(addresses, mask);
}

}  // namespace

Handler find_memory_access(const Opcode& code) {
  const std::string &base = code.base, &type = code.type();
  if (base == "ld") {
    if (code.has("param")) return load_parameter;
    if (code.has("shared")) return load_shared;
    return code.has("global") ? load_global : nullptr;
  }
  if (base == "st") {
    if (code.has("shared")) return store_shared;
    return code.has("global") ? store_global : nullptr;
  }
  // Atomic changes without a result.
  if (base != "red" || !code.has("global")) return nullptr;
  if (code.has("or")) return type == "b64" ? reduce_global<uint64_t, Or> : nullptr;
  if (code.has("max")) return type == "u32" ? reduce_global<uint32_t, Max> : nullptr;
  if (!code.has("add")) return nullptr;
  if (type == "f32") return reduce_global<float, Add>;
  if (type == "f64") return reduce_global<double, Add>;
  return type == "u64" || type == "s64" ? reduce_global<uint64_t, Add> : nullptr;
}

}  // namespace ptx
