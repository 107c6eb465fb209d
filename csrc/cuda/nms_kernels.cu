// Greedy suppression as nms uses it; the kernel is in greedy_kernel.h.
#include "greedy_kernel.h"

namespace tinyops::greedy {

#define TINYOPS_INSTANTIATE(T)                                                                  \
  template cudaError_t suppress<Rule::kIou>(const Memory<T>&, const Problem<T>&, cudaStream_t); \
  template cudaError_t suppress<Rule::kIos>(const Memory<T>&, const Problem<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops::greedy
