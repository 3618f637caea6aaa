// Kernels in PTX, decoded: the assembly language of GPUs, as nvcc writes it for csrc.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;

// The threads of a warp that execute an instruction, a bit each.
using Mask = uint32_t;

// A register of all threads of a warp. Of values narrower than 64 bits the other bits mean nothing.
using Lanes = std::array<uint64_t, kLanes>;

// Whatever a kernel does that it must not do.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Calls function(lane) for each thread of the mask.
template <typename Function>
void each(Mask mask, Function function) {
  if (mask == ~Mask(0)) {
    for (int lane = 0; lane < kLanes; ++lane) function(lane);
    return;
  }
  for (; mask; mask &= mask - 1) function(__builtin_ctz(mask));
}

struct Warp;
struct Instruction;

// Executes an instruction for the threads of the mask.
using Handler = void (*)(Warp& warp, const Instruction& instruction, Mask mask);

enum class Kind : uint8_t { kPlain, kBranch, kExit, kBarrier, kBarrierOr };

enum class Compare : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu };

enum class Rounding : uint8_t { kNearest, kToZero, kDown, kUp };

// Operands are registers: constants and special registers such as %tid.x have registers too.
struct Instruction {
  Handler handler = nullptr;
  Kind kind = Kind::kPlain;
  // Whether ptxas, too, makes an instruction of it.
  bool is_counted = true;
  // Executed only by threads in which this register is not `unless`.
  int32_t guard = -1;
  bool unless = false;
  std::vector<int32_t> out, in;
  int32_t target = 0;    // of a branch
  int64_t offset = 0;    // of an address
  int32_t bytes = 0;     // of one element in memory, or of one part of a packed register
  bool extends = false;  // what is loaded has a sign
  Compare compare = Compare::kEq;
  char combine = 0;  // a comparison with a third operand: &, |, ^
  Rounding rounding = Rounding::kNearest;
  bool rounds_to_integer = false, saturates = false;
  std::string text;
};

struct Parameter {
  int64_t offset, bytes;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  int64_t parameter_bytes = 0;
  int64_t most_threads = 1024;  // of a block, by the launch bounds
  int64_t shared_bytes = 0;     // beside what the launch adds
  int32_t registers = 0;
  std::map<int32_t, uint64_t> constants;  // register -> its value
};

// Registers of their own in every kernel, in this order.
enum Special : int32_t { kThread, kThreads, kBlock, kBlocks, kLane, kSpecials };
inline const char* const kSpecialNames[] = {"%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x",
                                            "%laneid"};

// The PTX of a file: kernels are decoded when they are first asked for.
class Program {
 public:
  explicit Program(const std::string& text);

  // Null if there is none of this name.
  const Kernel* find(const std::string& name);
  std::vector<std::string> names() const;

 private:
  struct Entry {
    std::string text;
    std::unique_ptr<Kernel> kernel;
  };
  std::map<std::string, Entry> entries_;
  std::vector<std::string> shared_names_;  // arrays as long as the launch says
};

// An opcode in parts: setp.ge.and.f32 -> setp, {ge, and}, {f32}.
struct Opcode {
  std::string text, base;
  std::vector<std::string> modifiers, types;

  bool has(const char* modifier) const {
    for (const std::string& own : modifiers) {
      if (own == modifier) return true;
    }
    return false;
  }
  const std::string& type(size_t index = 0) const;
};

int32_t bytes_of_type(const std::string& type);

// Sets what an opcode says: handler, kind and all flags. Throws Fault for one that is not known.
void decode_opcode(const Opcode& opcode, Instruction* instruction);
// Null for those that are not of the kind, or not known.
Handler find_move(const Opcode& opcode);
Handler find_arithmetic(const Opcode& opcode);
Handler find_conversion(const Opcode& opcode);
Handler find_comparison(const Opcode& opcode);
Handler find_memory_access(const Opcode& opcode);

}  // namespace ptx
