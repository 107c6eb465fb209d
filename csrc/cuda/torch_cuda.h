// The device side of the stable-ABI glue: guard, stream, errors, and the key to register under.
#pragma once
#include "../torch_util.h"
// after torch_util.h, which pins the ABI
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

namespace tinyops {

#ifdef TINYOPS_CUDASIM  // the same glue over CPU tensors
#define TINYOPS_CUDA_KEY CompositeExplicitAutograd
struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};
inline cudaStream_t current_stream(const Tensor&) {
  return nullptr;
}
#else
#define TINYOPS_CUDA_KEY CUDA
#define TINYOPS_NAMESPACE tinyops
struct DeviceGuard {
  explicit DeviceGuard(const Tensor& t) : guard_(t.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

inline void check_cuda(cudaError_t error, const char* what) {
  check(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

}  // namespace tinyops
