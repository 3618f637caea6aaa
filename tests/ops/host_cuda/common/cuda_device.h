// Whatever device a tensor says it is on, the one chosen by the test.
#pragma once

#define device_at device_of_table
#include_next "common/cuda_device.h"
#undef device_at

namespace dcnv4_mm {
namespace {

Device device_at(int32_t) { return device_of_table(host_cuda::current_device); }

}  // namespace
}  // namespace dcnv4_mm
