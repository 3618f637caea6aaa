// Memory with checks of every access: range, alignment, races.
#pragma once

#include <string>
#include <vector>

#include "program.h"

namespace ptx {

enum class Access : uint8_t { kLoad, kStore, kAtomic };

// The memory of tensors. Nothing else may be touched.
class GlobalMemory {
 public:
  void clear() { ranges_.clear(); }
  // From now on a kernel may read this range, or write it too.
  void add(const void* begin, int64_t bytes, bool writable);
  // Forgets who touched what: kernels of one stream run one after the other.
  void start_launch();
  // Throws a Fault if the thread may not do it.
  void check(uint64_t address, int64_t bytes, Access access, int64_t thread);

 private:
  struct Range {
    uint64_t begin, end;
    bool writable;
    // The thread that wrote two bytes, and the one that read them; 0 for none.
    std::vector<int32_t> writer, reader;
  };
  void note(Range* range, uint64_t address, int64_t bytes, Access access, int32_t thread);

  std::vector<Range> ranges_;
  size_t last_ = 0;
};

// The memory that the threads of a block share, up to the end of the block.
class SharedMemory {
 public:
  explicit SharedMemory(int64_t bytes) : bytes_(bytes), words_((bytes + 3) / 4) { clear(); }

  void clear();
  void pass_barrier() { ++epoch_; }
  void check(uint64_t address, int64_t bytes, Access access, int32_t thread);
  unsigned char* at(uint64_t address) { return bytes_.data() + address; }

 private:
  // Who touched a word between which barriers.
  struct Word {
    int32_t writer = -1, reader = -1;
    uint32_t written = 0, read = 0;
    bool has_readers = false;  // more than one
    bool has_value = false;
  };
  std::vector<unsigned char> bytes_;
  std::vector<Word> words_;
  uint32_t epoch_ = 1;
};

// Sectors of 32 bytes that the accesses of a warp touch.
int64_t count_sectors(const Lanes& addresses, Mask mask);
// Passes that an access of a warp to shared memory needs: those to different words of a bank come
// one after the other. And how few it would need without such conflicts.
struct Passes {
  int64_t needed = 0, at_best = 0;
};
Passes count_passes(const Lanes& addresses, int64_t bytes, Mask mask);

}  // namespace ptx
