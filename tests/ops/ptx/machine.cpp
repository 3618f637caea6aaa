#include "machine.h"

#include <algorithm>
#include <numeric>

namespace ptx {
namespace {

constexpr uint64_t kUnset = 0xcdcdcdcdcdcdcdcd;

class BlockRun {
 public:
  explicit BlockRun(Block* block) : block_(*block), kernel_(block->launch.kernel) {
    const int64_t threads = block_.launch.threads;
    warps_.resize((threads + kLanes - 1) / kLanes);
    for (size_t i = 0; i < warps_.size(); ++i) start(&warps_[i], static_cast<int32_t>(i));
  }

  // The warps between one barrier and the next, in random order.
  void run() {
    std::vector<Warp*> order;
    for (Warp& warp : warps_) order.push_back(&warp);
    while (true) {
      std::shuffle(order.begin(), order.end(), block_.random);
      for (Warp* warp : order) run(warp);
      if (std::none_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.live; })) return;
      pass_barrier();
    }
  }

 private:
  void start(Warp* warp, int32_t index) {
    const int64_t threads = block_.launch.threads - index * kLanes;
    warp->block = &block_;
    warp->index = index;
    warp->next.fill(0);
    warp->live = threads >= kLanes ? ~Mask(0) : (Mask(1) << threads) - 1;
    warp->waiting = 0;
    Lanes unset;
    unset.fill(kUnset);
    warp->registers.assign(kernel_.registers, unset);
    for (const auto& [number, value] : kernel_.constants) (*warp)[number].fill(value);
    for (int lane = 0; lane < kLanes; ++lane) {
      (*warp)[kThread][lane] = warp->thread(lane);
      (*warp)[kLane][lane] = lane;
    }
    (*warp)[kThreads].fill(block_.launch.threads);
    (*warp)[kBlock].fill(block_.index);
    (*warp)[kBlocks].fill(block_.launch.blocks);
  }

  // To the end, or to a barrier. Of threads that are apart, those that are behind go first.
  void run(Warp* warp) {
    while (const Mask ready = warp->live & ~warp->waiting) {
      int32_t index = INT32_MAX;
      each(ready, [&](int lane) { index = std::min(index, warp->next[lane]); });
      Mask together = 0;
      int32_t others = INT32_MAX;
      each(ready, [&](int lane) {
        if (warp->next[lane] == index) {
          together |= Mask(1) << lane;
        } else {
          others = std::min(others, warp->next[lane]);
        }
      });
      run_together(warp, index, together, others);
    }
  }

  // Up to a branch, or to where the next of the other threads are.
  void run_together(Warp* warp, int32_t index, Mask mask, int32_t others) {
    const auto set_next = [&](Mask lanes, int32_t next) {
      each(lanes, [&](int lane) { warp->next[lane] = next; });
    };
    do {
      const Instruction& code = kernel_.code.at(index);
      try {
        const Mask active = active_of(*warp, code, mask);
        if (code.is_counted) {
          block_.counters.instructions++;
          block_.counters.thread_instructions += __builtin_popcount(active);
        }
        index++;
        if (code.kind != Kind::kPlain) {
          set_next(mask & ~active, index);
          return leave(warp, code, active, index);
        }
        if (active) code.handler(*warp, code, active);
      } catch (const Fault& fault) {
        throw Fault(std::string(fault.what()) + "; in " + code.text);
      }
    } while (index < others);
    set_next(mask, index);
  }

  static Mask active_of(Warp& warp, const Instruction& code, Mask mask) {
    if (code.guard < 0) return mask;
    Mask active = 0;
    const Lanes& guard = warp[code.guard];
    for (int lane = 0; lane < kLanes; ++lane) {
      active |= Mask((guard[lane] & 1) != code.unless) << lane;
    }
    return active & mask;
  }

  void leave(Warp* warp, const Instruction& code, Mask active, int32_t next) {
    if (code.kind == Kind::kBranch) {
      each(active, [&](int lane) { warp->next[lane] = code.target; });
      return;
    }
    if (code.kind == Kind::kExit) {
      warp->live &= ~active;
      return;
    }
    if (active != warp->live) throw Fault("a barrier that not all threads of a warp reach");
    warp->waiting = active;
    each(active, [&](int lane) {
      warp->next[lane] = next;
      if (code.kind == Kind::kBarrierOr) any_ |= (*warp)[code.in[0]][lane] & 1;
    });
  }

  // All warps that have not ended wait: at the same barrier?
  void pass_barrier() {
    int32_t next = -1;
    for (Warp& warp : warps_) {
      each(warp.live, [&](int lane) {
        if (next >= 0 && warp.next[lane] != next) {
          throw Fault("threads of a block wait at different barriers");
        }
        next = warp.next[lane];
      });
      warp.waiting = 0;
    }
    const Instruction& code = kernel_.code[next - 1];
    if (code.kind == Kind::kBarrierOr) {
      for (Warp& warp : warps_) {
        each(warp.live, [&](int lane) { warp[code.out[0]][lane] = any_; });
      }
    }
    any_ = false;
    block_.shared.pass_barrier();
  }

  Block& block_;
  const Kernel& kernel_;
  std::vector<Warp> warps_;
  bool any_ = false;
};

void check_launch(const Launch& launch) {
  if (launch.threads < 1 || launch.threads > launch.kernel.most_threads) {
    throw Fault("a block of " + std::to_string(launch.threads) +
                " threads; the launch bounds are " + std::to_string(launch.kernel.most_threads));
  }
}

}  // namespace

void run(const Launch& launch, GlobalMemory* global, Counters* counters, std::mt19937* random) {
  check_launch(launch);
  global->start_launch();
  counters->launches++;
  counters->blocks += launch.blocks;
  counters->warps += launch.blocks * ((launch.threads + kLanes - 1) / kLanes);
  const int64_t shared_bytes = launch.kernel.shared_bytes + launch.shared_bytes;
  Block block{launch, *global, SharedMemory(shared_bytes), *counters, *random};
  std::vector<int64_t> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), *random);
  for (int64_t index : order) {
    block.index = index;
    block.shared.clear();
    BlockRun(&block).run();
  }
}

}  // namespace ptx
