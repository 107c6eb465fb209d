// What the tests of cudasim share.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <string>

namespace cudasim {

inline int failures = 0;

inline void check(bool ok, const std::string& name) {
  std::printf("%s %s\n", ok ? "ok  " : "FAIL", name.c_str());
  failures += !ok;
}

// The exit status of the program.
inline int summary() {
  std::printf("%d failures\n", failures);
  return failures != 0;
}

template <typename... P, typename... A>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(P...), A... args) {
  const cudaLaunchConfig_t config{grid, block, shared_bytes, nullptr, nullptr, 0};
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

}  // namespace cudasim
