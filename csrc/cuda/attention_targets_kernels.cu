// attention_targets on the GPU. One kernel makes the tables of taps, one paints (a block of threads
// per box and level, atomicMax on 4 bytes per tap), and one per level interpolates, a thread per
// cell, which reads 16 bytes and writes 4.
#include "attention_targets.h"
#include "launch.h"

namespace tinyops::attention_targets {
namespace {

using cuda::kThreads;

__global__ void image_kernel(const int64_t* __restrict__ image_ids, int64_t n, int64_t images,
                             unsigned long long* __restrict__ result) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1  // counting the turns beforehand takes a 64-bit division
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < n; k += stride) {
    const int64_t id = image_ids[k];
    if (id < 0 || id >= images) atomicMax(result, ~static_cast<unsigned long long>(k));
  }
}

// blockIdx.y is the level.
__global__ void tap_kernel(const __grid_constant__ Canvases canvases) {
  const Canvas& c = canvases.canvas[blockIdx.y];
  const int32_t rows = c.level.y.out, columns = c.level.x.out, stride = gridDim.x * blockDim.x;
  const int32_t more = rows > columns ? rows : columns;
  for (int32_t k = blockIdx.x * blockDim.x + threadIdx.x; k < more; k += stride) {
    if (k < rows) {
      const Axis::Tap tap = c.level.y.tap(k);
      c.rows[2 * k] = tap.first;
      c.rows[2 * k + 1] = tap.second;
    }
    if (k < columns) {
      const Axis::Tap tap = c.level.x.tap(k);
      c.columns[2 * k] = tap.first;
      c.columns[2 * k + 1] = tap.second;
    }
  }
}

constexpr int kPaintX = 32, kPaintY = 4;

// blockIdx.y is the level, x walks the boxes; the threads of a block share a box.
template <typename T>
__global__ void __launch_bounds__(kPaintX* kPaintY)
    paint_kernel(Input<T> in, const __grid_constant__ Canvases canvases) {
  const Canvas& c = canvases.canvas[blockIdx.y];
  const int32_t rows = 2 * c.level.y.out, columns = 2 * c.level.x.out;
  for (int32_t k = blockIdx.x; k < in.n; k += gridDim.x) {
    const int64_t image = in.image_ids[k];
    const Rect rect = rect_of(in.boxes[k], in.height, in.width);
    if (image < 0 || image >= in.images || rect.is_empty()) continue;
    const uint32_t value =
        2 * (static_cast<uint32_t>(k) + 1) + (c.level.band.has(rect.size()) ? 1 : 0);
    const int32_t left = lower_bound(c.columns, columns, rect.l);
    const int32_t right = lower_bound(c.columns, columns, rect.r);
    const int32_t top = lower_bound(c.rows, rows, rect.t), down = lower_bound(c.rows, rows, rect.d);
    uint32_t* const pixels = c.pixels + image * (int64_t{rows} * columns);
    for (int32_t y = top + static_cast<int32_t>(threadIdx.y); y < down; y += kPaintY)
      for (int32_t x = left + static_cast<int32_t>(threadIdx.x); x < right; x += kPaintX)
        atomicMax(pixels + (y * columns + x), value);
  }
}

__device__ float sign_of(uint32_t pixel) {
  return pixel == 0 ? 0.0f : pixel & 1 ? 1.0f : -1.0f;
}

// blockIdx.y walks the rows of all images.
__global__ void shrink_kernel(const __grid_constant__ Canvas c, int64_t rows) {
  const int32_t width = c.level.x.out, stride = gridDim.x * blockDim.x;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    // The canvas of an image has 2h rows, so that those of this one follow from its number alone.
    const auto* upper = reinterpret_cast<const uint2*>(c.pixels + 4 * row * width);
    const uint2* const lower = upper + width;
    const float down = c.level.y.tap(static_cast<uint32_t>(row) % c.level.y.out).weight;
    for (int32_t x = blockIdx.x * blockDim.x + threadIdx.x; x < width; x += stride) {
      const uint2 u = upper[x], l = lower[x];
      const float right = c.level.x.tap(x).weight;
      c.map[row * width + x] =
          interpolate(sign_of(u.x), sign_of(u.y), sign_of(l.x), sign_of(l.y), right, down);
    }
  }
}

}  // namespace

cudaError_t check_images_cuda(const int64_t* image_ids, int64_t n, int64_t images,
                              unsigned long long* result, cudaStream_t stream) {
  const dim3 grid = cuda::grid_of(std::min<int64_t>(ceil_div(n, kThreads), 4096), 1, 1);
  return cuda::launch(image_kernel, grid, kThreads, stream, image_ids, n, images, result);
}

template <typename T>
cudaError_t draw_cuda(const Input<T>& in, const Canvases& canvases, cudaStream_t stream) {
  if (in.n > 0) {
    const dim3 taps = cuda::grid_of(4, canvases.count, 1);
    cudaError_t error = cuda::launch(tap_kernel, taps, kThreads, stream, canvases);
    const dim3 boxes = cuda::grid_of(std::min(in.n, 65535), canvases.count, 1);
    if (error == cudaSuccess)
      error = cuda::launch(paint_kernel<T>, boxes, dim3(kPaintX, kPaintY), stream, in, canvases);
    if (error != cudaSuccess) return error;
  }
  for (int32_t k = 0; k < canvases.count; ++k) {
    const Canvas& c = canvases.canvas[k];
    const int64_t rows = int64_t{in.images} * c.level.y.out;
    const int threads = c.level.x.out <= 64 ? 64 : 128;
    const dim3 grid = cuda::grid_of(ceil_div(c.level.x.out, threads), rows, 1);
    if (rows == 0 || c.level.x.out == 0) continue;
    if (const cudaError_t error = cuda::launch(shrink_kernel, grid, dim3(threads), stream, c, rows))
      return error;
  }
  return cudaSuccess;
}

template cudaError_t draw_cuda(const Input<float>&, const Canvases&, cudaStream_t);
template cudaError_t draw_cuda(const Input<double>&, const Canvases&, cudaStream_t);

}  // namespace tinyops::attention_targets
