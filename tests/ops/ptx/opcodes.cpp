// What opcodes mean. One that is not known here is an error, not a guess.
#include <map>
#include <set>

#include "program.h"

namespace ptx {
namespace {

const std::map<std::string, Compare> kCompares = {
    {"eq", Compare::kEq},   {"ne", Compare::kNe},   {"lt", Compare::kLt},   {"lo", Compare::kLt},
    {"le", Compare::kLe},   {"ls", Compare::kLe},   {"gt", Compare::kGt},   {"hi", Compare::kGt},
    {"ge", Compare::kGe},   {"hs", Compare::kGe},   {"equ", Compare::kEqu}, {"neu", Compare::kNeu},
    {"ltu", Compare::kLtu}, {"leu", Compare::kLeu}, {"gtu", Compare::kGtu}, {"geu", Compare::kGeu}};

const std::map<std::string, Rounding> kRoundings = {{"rni", Rounding::kNearest},
                                                    {"rzi", Rounding::kToZero},
                                                    {"rmi", Rounding::kDown},
                                                    {"rpi", Rounding::kUp},
                                                    {"rm", Rounding::kDown}};

// Spaces of memory and more, which those who look for a handler read themselves.
const std::set<std::string> kOthers = {"global", "shared", "param", "nc",   "v2",  "v4", "to", "lo",
                                       "hi",     "wide",   "rn",    "full", "add", "or", "max"};

void set_modifier(const Opcode& code, const std::string& modifier, Instruction* to) {
  const auto compare = kCompares.find(modifier);
  if (code.base == "setp" && compare != kCompares.end()) {
    to->compare = compare->second;
    return;
  }
  if (code.base == "setp" && (modifier == "and" || modifier == "or" || modifier == "xor")) {
    to->combine = modifier == "and" ? '&' : modifier == "or" ? '|' : '^';
    return;
  }
  if (const auto rounding = kRoundings.find(modifier); rounding != kRoundings.end()) {
    to->rounding = rounding->second;
    to->rounds_to_integer = modifier.back() == 'i';
    // Other roundings than to an integer only where csrc needs them.
    if (to->rounds_to_integer || code.text == "fma.rm.f32") return;
  }
  if (modifier == "sat") {
    to->saturates = true;
    return;
  }
  // Approximations are computed exactly; numbers near zero stay.
  if ((code.base == "ex2" || code.base == "lg2") && (modifier == "approx" || modifier == "ftz")) {
    return;
  }
  if (!kOthers.count(modifier)) throw Fault("unknown modifier ." + modifier + " of " + code.text);
}

Handler find_handler(const Opcode& code) {
  if (code.base == "setp") return find_comparison(code);
  if (code.base == "cvt") return find_conversion(code);
  if (code.base == "ld" || code.base == "st" || code.base == "red") return find_memory_access(code);
  const Handler move = find_move(code);
  return move ? move : find_arithmetic(code);
}

}  // namespace

const std::string& Opcode::type(size_t index) const {
  if (index >= types.size()) throw Fault("no type in " + text);
  return types[index];
}

int32_t bytes_of_type(const std::string& type) {
  static const std::map<std::string, int32_t> bytes = {
      {"b8", 1},     {"u8", 1},   {"s8", 1},  {"b16", 2}, {"u16", 2}, {"s16", 2},
      {"f16", 2},    {"b32", 4},  {"u32", 4}, {"s32", 4}, {"f32", 4}, {"f16x2", 4},
      {"bf16x2", 4}, {"bf16", 2}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8}};
  const auto found = bytes.find(type);
  return found == bytes.end() ? 0 : found->second;
}

void decode_opcode(const Opcode& code, Instruction* to) {
  // ptxas has no instruction for these: operands of others are constants, or the same register.
  to->is_counted = code.base != "mov" && code.base != "pack" && code.base != "unpack" &&
                   code.base != "cvta" && !(code.base == "ld" && code.has("param"));
  if (code.base == "bra") {
    to->kind = Kind::kBranch;
  } else if (code.base == "ret" || code.base == "exit") {
    to->kind = Kind::kExit;
  } else if (code.text == "bar.sync") {
    to->kind = Kind::kBarrier;
  } else if (code.text == "bar.red.or.pred") {
    to->kind = Kind::kBarrierOr;
  } else {
    for (const std::string& modifier : code.modifiers) set_modifier(code, modifier, to);
    to->handler = find_handler(code);
    if (!to->handler) throw Fault("unknown instruction " + code.text);
    if (!to->bytes && !code.types.empty()) to->bytes = bytes_of_type(code.types[0]);
    to->extends = code.base == "ld" && code.types[0][0] == 's';
  }
}

}  // namespace ptx
