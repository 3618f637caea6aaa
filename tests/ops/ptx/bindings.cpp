// An operator's bindings, on CPU tensors. What they take a pointer of is what kernels may touch:
// the linker puts the functions here in front of torch's (-Wl,--wrap).
#include "bindings.h"

#include BINDINGS

void ptx_add_range(const void* begin, int64_t bytes, bool writable);

namespace {

// From the first to the last element.
void add_range(AtenTensorHandle tensor, const void* begin, bool writable) {
  int64_t axes = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &axes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  int64_t elements = 1;
  for (int64_t axis = 0; axis < axes; ++axis) {
    if (sizes[axis] == 0) return;
    elements += (sizes[axis] - 1) * strides[axis];
  }
  ptx_add_range(begin, elements * aoti_torch_dtype_element_size(dtype), writable);
}

}  // namespace

extern "C" {

AOTITorchError __real_torch_get_mutable_data_ptr(AtenTensorHandle, void**);
AOTITorchError __real_torch_get_const_data_ptr(AtenTensorHandle, const void**);

AOTITorchError __wrap_torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** pointer) {
  const AOTITorchError error = __real_torch_get_mutable_data_ptr(tensor, pointer);
  if (!error) add_range(tensor, *pointer, true);
  return error;
}

AOTITorchError __wrap_torch_get_const_data_ptr(AtenTensorHandle tensor, const void** pointer) {
  const AOTITorchError error = __real_torch_get_const_data_ptr(tensor, pointer);
  if (!error) add_range(tensor, *pointer, false);
  return error;
}

}  // extern "C"
