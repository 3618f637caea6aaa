#include "memory.h"

#include <algorithm>
#include <array>

namespace ptx {
namespace {

constexpr int32_t kNobody = 0, kAtomically = -1, kSeveral = -2;
constexpr int64_t kCell = 2;  // bytes; no kernel writes less
constexpr uint64_t kSector = 32;
constexpr int kBanks = 32;

std::string thread_text(int64_t thread) {
  if (thread == kAtomically) return "an atomic addition";
  if (thread == kSeveral) return "several threads";
  return "thread " + std::to_string(thread - 1);
}

void check_alignment(uint64_t address, int64_t bytes) {
  if (address % bytes) {
    throw Fault("misaligned access to " + std::to_string(bytes) + " bytes at an address that is " +
                std::to_string(address % bytes) + " more than a multiple");
  }
}

}  // namespace

void GlobalMemory::add(const void* begin, int64_t bytes, bool writable) {
  const uint64_t address = reinterpret_cast<uint64_t>(begin);
  if (bytes > 0) ranges_.push_back({address, address + bytes, writable, {}, {}});
}

void GlobalMemory::start_launch() {
  for (Range& range : ranges_) {
    const size_t cells = range.writable ? (range.end - range.begin + kCell - 1) / kCell : 0;
    range.writer.assign(cells, kNobody);
    range.reader.assign(cells, kNobody);
  }
}

void GlobalMemory::check(uint64_t address, int64_t bytes, Access access, int64_t thread) {
  check_alignment(address, bytes);
  const bool writes = access != Access::kLoad;
  const auto holds = [&](const Range& range) {
    return address >= range.begin && address + bytes <= range.end && (range.writable || !writes);
  };
  if (last_ >= ranges_.size() || !holds(ranges_[last_])) {
    const auto found = std::find_if(ranges_.begin(), ranges_.end(), holds);
    if (found == ranges_.end()) {
      std::string text = writes ? "write" : "read";
      text += " outside of the tensors that a kernel may " + text + ": " + std::to_string(bytes) +
              " bytes by thread " + std::to_string(thread);
      for (const Range& range : ranges_) {
        const int64_t offset = static_cast<int64_t>(address - range.begin);
        const int64_t size = static_cast<int64_t>(range.end - range.begin);
        if (offset < -4096 || offset > size + 4096) continue;
        text += "; at " + std::to_string(offset) + " of " + std::to_string(size) + " bytes";
      }
      throw Fault(text);
    }
    last_ = found - ranges_.begin();
  }
  // A thread's number, beginning with 1, so that 0 is nobody.
  note(&ranges_[last_], address, bytes, access, static_cast<int32_t>(thread + 1));
}

void GlobalMemory::note(Range* range, uint64_t address, int64_t bytes, Access access,
                        int32_t thread) {
  if (!range->writable) return;
  const size_t begin = (address - range->begin) / kCell;
  const size_t end = (address + bytes - 1 - range->begin) / kCell + 1;
  const int32_t me = access == Access::kAtomic ? kAtomically : thread;
  for (size_t cell = begin; cell < end; ++cell) {
    int32_t &writer = range->writer[cell], &reader = range->reader[cell];
    const bool is_written = writer != kNobody && writer != me;
    const bool is_read = access != Access::kLoad && reader != kNobody && reader != thread;
    if (is_written || is_read) {
      throw Fault("race in global memory: " + thread_text(is_written ? writer : reader) + " and " +
                  thread_text(me) + " at byte " + std::to_string(cell * kCell));
    }
    if (access != Access::kLoad) {
      writer = me;
    } else {
      reader = reader == kNobody || reader == thread ? thread : kSeveral;
    }
  }
}

void SharedMemory::clear() {
  std::fill(bytes_.begin(), bytes_.end(), 0xff);  // NaN
  std::fill(words_.begin(), words_.end(), Word());
  epoch_ = 1;
}

void SharedMemory::check(uint64_t address, int64_t bytes, Access access, int32_t thread) {
  check_alignment(address, bytes);
  if (address + bytes > bytes_.size()) {
    throw Fault("access outside of shared memory: thread " + std::to_string(thread) + " to " +
                std::to_string(bytes) + " bytes at " + std::to_string(address) + " of " +
                std::to_string(bytes_.size()));
  }
  for (uint64_t index = address / 4; index <= (address + bytes - 1) / 4; ++index) {
    Word& word = words_[index];
    const bool writes = access != Access::kLoad;
    const bool is_written = word.written == epoch_ && word.writer != thread;
    const bool is_read = word.read == epoch_ && (word.reader != thread || word.has_readers);
    if (is_written || (writes && is_read)) {
      throw Fault("race in shared memory: no barrier between accesses of threads " +
                  std::to_string(is_written ? word.writer : word.reader) + " and " +
                  std::to_string(thread) + " to word " + std::to_string(index));
    }
    if (writes) {
      word.writer = thread;
      word.written = epoch_;
      word.has_value = true;
      continue;
    }
    if (!word.has_value) {
      throw Fault("thread " + std::to_string(thread) + " reads word " + std::to_string(index) +
                  " of shared memory, which nobody has written");
    }
    word.has_readers = word.read == epoch_ && (word.has_readers || word.reader != thread);
    word.reader = thread;
    word.read = epoch_;
  }
}

int64_t count_sectors(const Lanes& addresses, Mask mask) {
  // As they are aligned, no access touches two.
  std::array<uint64_t, kLanes> found;
  size_t count = 0;
  each(mask, [&](int lane) {
    const uint64_t sector = addresses[lane] / kSector;
    if (std::find(found.begin(), found.begin() + count, sector) == found.begin() + count) {
      found[count++] = sector;
    }
  });
  return count;
}

Passes count_passes(const Lanes& addresses, int64_t bytes, Mask mask) {
  // Wide accesses are made by a half or a quarter of the warp at a time.
  const int together = bytes <= 4 ? kLanes : kLanes * 4 / static_cast<int>(bytes);
  Passes passes;
  for (int first = 0; first < kLanes; first += together) {
    std::vector<uint64_t> words;
    std::array<int, kBanks> in_bank{};
    int most = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if (!(mask >> lane & 1)) continue;
      for (int64_t i = 0; i < std::max<int64_t>(bytes / 4, 1); ++i) {
        const uint64_t word = addresses[lane] / 4 + i;
        if (std::find(words.begin(), words.end(), word) != words.end()) continue;
        words.push_back(word);
        most = std::max(most, ++in_bank[word % kBanks]);
      }
    }
    passes.needed += most;
    passes.at_best += most > 0;
  }
  return passes;
}

}  // namespace ptx
