// Launching kernels on the host: block by block, in random order.
#pragma once

#include <cuda_runtime.h>

#include <sstream>

#include "common/argument_checks.h"
#include "common/launch.h"
#include "common/team.cuh"

namespace host_cuda {

inline std::ostringstream launches;  // kernel, blocks, threads, shared bytes; a line each

}  // namespace host_cuda

namespace dcnv4_mm {

inline void check_cuda(cudaError_t error) {
  check(error == cudaSuccess, "dcnv4_mm: CUDA: ", cudaGetErrorString(error));
}

// As a device does, refuses what it has no room for.
template <typename Launch>
void check_launch(host_cuda::Kernel kernel, const Launch& launch) {
  using fake_device::current;
  check(launch.blocks <= kMaxBlocks, "too many blocks for a CUDA grid: ", launch.blocks);
  check(launch.threads > 0 && launch.threads <= 1024, "no launch has ", launch.threads, " threads");
  const auto allowed = host_cuda::allowed_shared_bytes.find({kernel, current});
  const bool is_allowed = allowed != host_cuda::allowed_shared_bytes.end();
  const int room = fake_device::kDevices[current].shared_per_block << 10;
  const int most = std::min(is_allowed ? allowed->second : kSharedByDefault, room);
  check(launch.shared_bytes <= most, "a block may have ", most, " bytes of shared memory, not ",
        launch.shared_bytes);
}

template <typename Launch, typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), const Launch& launch, cudaStream_t,
                   const Arguments&... arguments) {
  if (launch.blocks == 0) return;
  check_launch(reinterpret_cast<host_cuda::Kernel>(kernel), launch);
  host_cuda::running.threads = launch.threads;
  host_cuda::running.shared_bytes = launch.shared_bytes;
  const int64_t blocks = host_cuda::running.dry ? 1 : launch.blocks;
  for (int32_t block : host_cuda::shuffled(blocks)) {
    host_cuda::running.block = static_cast<uint32_t>(block);
    try {
      kernel(arguments...);
    } catch (const host_cuda::DryRun&) {
    }
  }
  host_cuda::launches << host_cuda::running.kernel << ' ' << launch.blocks << ' ' << launch.threads
                      << ' ' << launch.shared_bytes << '\n';
}

}  // namespace dcnv4_mm
