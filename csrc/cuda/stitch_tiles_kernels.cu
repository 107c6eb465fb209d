// stitch_tiles on the GPU: one pass shifts the boxes and finds those that a tile cuts, 80 bytes per
// box; the suppression is that of greedy_kernel.h. One thread per box everywhere.
#include "stitch_tiles.h"

#include "greedy_kernel.h"
#include "launch.h"

namespace tinyops {

template cudaError_t greedy::suppress<greedy::Rule::kStitch>(const greedy::Memory<float>&,
                                                             const greedy::Problem<float>&,
                                                             cudaStream_t);
template cudaError_t greedy::suppress<greedy::Rule::kStitch>(const greedy::Memory<double>&,
                                                             const greedy::Problem<double>&,
                                                             cudaStream_t);

namespace stitch_tiles {
namespace {

using cuda::kThreads;

dim3 blocks_of(int64_t n) {
  return cuda::grid_of(ceil_div(n, kThreads), 1, 1);
}
__device__ int64_t thread_number() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

template <typename T>
__global__ void place_kernel(PlaceArgs<T> a) {
  const int64_t k = thread_number();
  if (k >= a.n) return;
  const int32_t t = index_within(a.tile_ids[k], a.tiles);
  const int32_t image = a.tile_images ? index_within(a.tile_images[t], a.images) : 0;
  const Tile<T> tile =
      make_tile(a.windows[t], a.sizes[int64_t{2} * image], a.sizes[int64_t{2} * image + 1], a.edge);
  const Box<T> box = a.boxes[k];
  a.placed[k] = shifted(box, tile);
  a.truncated[k] = cut_sides(box, tile) != 0;
  a.tile[k] = t;
  if (a.image) a.image[k] = image;
}

__global__ void whole_kernel(const int32_t* __restrict__ ranked,
                             const uint8_t* __restrict__ truncated, int64_t n,
                             uint8_t* __restrict__ whole) {
  const int64_t k = thread_number();
  if (k < n) whole[k] = truncated[ranked[k]] == 0;
}

template <typename T>
__global__ void bad_size_kernel(const T* __restrict__ sizes, int64_t n,
                                unsigned long long* __restrict__ result) {
  const int64_t k = thread_number();
  if (k < n && !is_size(sizes[2 * k], sizes[2 * k + 1]))
    atomicMin(result, static_cast<unsigned long long>(k));
}

__global__ void bad_id_kernel(const int64_t* __restrict__ ids, int64_t n, int64_t count,
                              unsigned long long* __restrict__ result) {
  const int64_t k = thread_number();
  if (k < n && (ids[k] < 0 || ids[k] >= count))
    atomicMin(result, static_cast<unsigned long long>(k));
}

}  // namespace

template <typename T>
cudaError_t place_cuda(const PlaceArgs<T>& args, cudaStream_t stream) {
  return cuda::launch(place_kernel<T>, blocks_of(args.n), dim3(kThreads), stream, args);
}

cudaError_t whole_first_cuda(const Selection& selection, const int32_t* ranked,
                             const uint8_t* truncated, int n, uint8_t* whole, int32_t* out,
                             cudaStream_t stream) {
  cudaError_t error =
      cuda::launch(whole_kernel, blocks_of(n), dim3(kThreads), stream, ranked, truncated, n, whole);
  if (!error) error = count_marked(selection, whole, n, n, nullptr, stream);
  return error ? error : put_marked_first(selection, whole, ranked, n, out, stream);
}

template <typename T>
cudaError_t first_bad_size_cuda(const T* sizes, int64_t n, unsigned long long* result,
                                cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return cuda::launch(bad_size_kernel<T>, blocks_of(n), dim3(kThreads), stream, sizes, n, result);
}
cudaError_t first_bad_id_cuda(const int64_t* ids, int64_t n, int64_t count,
                              unsigned long long* result, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return cuda::launch(bad_id_kernel, blocks_of(n), dim3(kThreads), stream, ids, n, count, result);
}

#define TINYOPS_INSTANTIATE(T)                                        \
  template cudaError_t place_cuda(const PlaceArgs<T>&, cudaStream_t); \
  template cudaError_t first_bad_size_cuda(const T*, int64_t, unsigned long long*, cudaStream_t);
TINYOPS_INSTANTIATE(float)
TINYOPS_INSTANTIATE(double)
#undef TINYOPS_INSTANTIATE

}  // namespace stitch_tiles
}  // namespace tinyops
