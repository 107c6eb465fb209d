// Builds a grid of boxes (box_grid.h): a hash per box, a stable sort by it, and where each bucket
// begins and ends. One thread per box; 60 bytes are moved per box besides the sort.
#include "box_grid.h"

#include "box_grid_walk.h"
#include "launch.h"
#include "sort.h"

namespace tinyops {
namespace {

using cuda::kThreads;

int bucket_bits(int64_t n) {
  int bits = 1;
  while (bits < 31 && (int64_t{1} << bits) < n) ++bits;
  return bits;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    place_kernel(const Box<T>* __restrict__ boxes, const int32_t* __restrict__ order, Ids ids,
                 int n, int bits, T offset, Box<T>* __restrict__ ranked,
                 uint32_t* __restrict__ keys, int32_t* __restrict__ ranks,
                 unsigned long long* levels) {
  const unsigned rank = blockIdx.x * blockDim.x + threadIdx.x;
  if (rank >= static_cast<unsigned>(n)) return;
  const int index = order ? order[rank] : static_cast<int>(rank);
  const Box<T> box = boxes[index];
  ranked[rank] = box;
  ranks[rank] = static_cast<int32_t>(rank);
  const T width = grid::width_of(box, offset), height = grid::height_of(box, offset);
  if (width * height == T(0)) {  // nobody looks for it: padding of boxes must not fill one bucket
    keys[rank] = grid::mix(rank) >> (32 - bits);
    return;
  }
  const int level = grid::level_of(larger(width, height));
  const T inverse = grid::power_of_two(-grid::cell_exponent(level), T());
  keys[rank] = grid::bucket_of(level, grid::cell_of(grid::middle(box.x1, box.x2), inverse),
                               grid::cell_of(grid::middle(box.y1, box.y2), inverse),
                               grid::group_of(ids, index), bits);
  const unsigned long long bit = 1ull << level;
  if (!(*static_cast<volatile unsigned long long*>(levels) & bit)) atomicOr(levels, bit);
}

__global__ void __launch_bounds__(kThreads)
    bounds_kernel(const uint32_t* __restrict__ keys, int n, int2* __restrict__ buckets) {
  const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= static_cast<unsigned>(n)) return;
  const uint32_t key = keys[k];
  if (k == 0 || keys[k - 1] != key) buckets[key].x = static_cast<int>(k);
  if (k + 1 == static_cast<unsigned>(n) || keys[k + 1] != key)
    buckets[key].y = static_cast<int>(k + 1);
}

}  // namespace

cudaError_t grid_sort_scratch(int64_t n, size_t& bytes) {
  return sort_pairs<uint32_t>(nullptr, bytes, nullptr, nullptr, nullptr, nullptr,
                              static_cast<int>(n), bucket_bits(n), nullptr);
}

template <typename T>
GridMemory<T>::GridMemory(Arena& arena, int64_t n, size_t scratch_bytes)
    : boxes(arena.take<Box<T>>(n)),
      ranks(arena.take<int32_t>(n)),
      unsorted_ranks(arena.take<int32_t>(n)),
      keys(arena.take<uint32_t>(n)),
      unsorted_keys(arena.take<uint32_t>(n)),
      buckets(arena.take<int2>(int64_t{1} << bucket_bits(n))),
      levels(arena.take<unsigned long long>(1)),
      sort_scratch(arena.take<char>(static_cast<int64_t>(scratch_bytes))),
      sort_scratch_bytes(scratch_bytes),
      bits(bucket_bits(n)) {}

template <typename T>
cudaError_t build_grid(const GridMemory<T>& m, const Box<T>* boxes, const int32_t* order,
                       const Ids& ids, int n, T offset, Grid<T>& grid, cudaStream_t stream) {
  const dim3 blocks = cuda::grid_of(ceil_div(n, kThreads), 1, 1);
  size_t scratch_bytes = m.sort_scratch_bytes;
  cudaError_t error = cudaMemsetAsync(m.buckets, 0, sizeof(int2) << m.bits, stream);
  if (!error) error = cudaMemsetAsync(m.levels, 0, sizeof(*m.levels), stream);
  if (!error)
    error = cuda::launch(place_kernel<T>, blocks, dim3(kThreads), stream, boxes, order, ids, n,
                         m.bits, offset, m.boxes, m.unsorted_keys, m.unsorted_ranks, m.levels);
  if (!error)
    error = sort_pairs<uint32_t>(m.sort_scratch, scratch_bytes, m.unsorted_keys, m.keys,
                                 m.unsorted_ranks, m.ranks, n, m.bits, stream);
  if (!error)
    error = cuda::launch(bounds_kernel, blocks, dim3(kThreads), stream, m.keys, n, m.buckets);
  grid = {m.boxes, m.ranks, m.buckets, m.levels, n, m.bits, offset};
  return error;
}

#define TINYOPS_INSTANTIATE(T)                                                                     \
  template struct GridMemory<T>;                                                                   \
  template cudaError_t build_grid(const GridMemory<T>&, const Box<T>*, const int32_t*, const Ids&, \
                                  int, T, Grid<T>&, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace tinyops
