// Moves of bits: between registers, and inside of them.
#include "machine.h"
#include "values.h"

namespace ptx {
namespace {

// The second operand has 32 bits.
template <typename Value, bool left>
void shift(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &a = warp[code.in[0]], &b = warp[code.in[1]];
  Lanes& out = warp[code.out[0]];
  constexpr uint32_t bits = 8 * sizeof(Value);
  each(mask, [&](int lane) {
    const uint32_t by = static_cast<uint32_t>(b[lane]);
    const Value value = value_of<Value>(a[lane]);
    if (by >= bits) {
      out[lane] = bits_of(static_cast<Value>(!left && value < 0 ? -1 : 0));
    } else {
      out[lane] = bits_of(static_cast<Value>(left ? wide(value) << by : value >> by));
    }
  });
}

// Inserts bits of a into b.
template <typename Value>
void insert_bits(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &a = warp[code.in[0]], &b = warp[code.in[1]];
  const Lanes &first = warp[code.in[2]], &count = warp[code.in[3]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) {
    const uint32_t from = first[lane] & 0xff, bits = count[lane] & 0xff;
    const uint64_t ones = bits >= 64 ? ~uint64_t(0) : (uint64_t(1) << bits) - 1;
    const uint64_t place = from >= 64 ? 0 : ones << from;
    const uint64_t value = from >= 64 ? 0 : a[lane] << from;
    out[lane] = bits_of(static_cast<Value>((b[lane] & ~place) | (value & place)));
  });
}

// Any bytes of two registers, chosen by four bits each.
void permute_bytes(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &a = warp[code.in[0]], &b = warp[code.in[1]], &choice = warp[code.in[2]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) {
    const uint64_t bytes = (b[lane] << 32) | (a[lane] & 0xffffffff);
    uint64_t result = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t chosen = choice[lane] >> (4 * i) & 0xf;
      uint64_t byte = bytes >> (8 * (chosen & 7)) & 0xff;
      if (chosen & 8) byte = byte & 0x80 ? 0xff : 0;  // its sign
      result |= byte << (8 * i);
    }
    out[lane] = result;
  });
}

void move(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes& a = warp[code.in[0]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) { out[lane] = a[lane]; });
}

// Between a register and its parts, the lowest first.
void unpack(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes source = warp[code.in[0]];
  const int bits = 8 * code.bytes;
  for (size_t part = 0; part < code.out.size(); ++part) {
    Lanes& out = warp[code.out[part]];
    each(mask, [&](int lane) {
      out[lane] = source[lane] >> (bits * part) & (~uint64_t(0) >> (64 - bits));
    });
  }
}

void pack(Warp& warp, const Instruction& code, Mask mask) {
  Lanes packed{};
  const int bits = 8 * code.bytes;
  for (size_t part = 0; part < code.in.size(); ++part) {
    const Lanes& in = warp[code.in[part]];
    each(mask, [&](int lane) {
      packed[lane] |= (in[lane] & (~uint64_t(0) >> (64 - bits))) << (bits * part);
    });
  }
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) { out[lane] = packed[lane]; });
}

void select(Warp& warp, const Instruction& code, Mask mask) {
  const Lanes &a = warp[code.in[0]], &b = warp[code.in[1]], &condition = warp[code.in[2]];
  Lanes& out = warp[code.out[0]];
  each(mask, [&](int lane) { out[lane] = condition[lane] & 1 ? a[lane] : b[lane]; });
}

Handler find_shift(const Opcode& code) {
  Handler handler = nullptr;
  with_integer(code.type(), [&](auto tag) {
    using Value = typename decltype(tag)::Type;
    handler = code.base == "shl" ? shift<Value, true> : shift<Value, false>;
  });
  return handler;
}

}  // namespace

Handler find_move(const Opcode& code) {
  const std::string& base = code.base;
  if (base == "mov") return move;
  // Addresses of global memory are the same as generic ones.
  if (base == "cvta") return code.has("to") && code.has("global") ? move : nullptr;
  if (base == "unpack") return unpack;
  if (base == "pack") return pack;
  if (base == "selp") return select;
  if (base == "shl" || base == "shr") return find_shift(code);
  if (base == "prmt") return permute_bytes;
  if (base == "bfi") return code.type() == "b64" ? insert_bits<uint64_t> : insert_bits<uint32_t>;
  return nullptr;
}

}  // namespace ptx
