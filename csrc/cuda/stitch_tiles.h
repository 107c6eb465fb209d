// Launchers of stitch_tiles on raw device pointers. They return the first launch error.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../ops/stitch_tiles.h"
#include "select.h"

namespace tinyops::stitch_tiles {

template <typename T>
struct PlaceArgs {
  const Box<T>* boxes;         // [n] in tile coordinates
  const int64_t* tile_ids;     // [n]
  const Box<T>* windows;       // [tiles]
  const T* sizes;              // [images, 2] height and width
  const int64_t* tile_images;  // [tiles] or null: all of image 0
  int64_t n, tiles, images;
  T edge;
  Box<T>* placed;      // [n] in image coordinates
  uint8_t* truncated;  // [n] of 0 and 1
  int32_t* tile;       // [n]
  int64_t* image;      // [n], null where tile_images is
};
template <typename T>
cudaError_t place_cuda(const PlaceArgs<T>& args, cudaStream_t stream);

// out: the indices of `ranked`, whole boxes before truncated ones. `whole` is scratch for [n].
cudaError_t whole_first_cuda(const Selection& selection, const int32_t* ranked,
                             const uint8_t* truncated, int n, uint8_t* whole, int32_t* out,
                             cudaStream_t stream);

// Both write to *result the lowest index of a bad element, if it is lower than what is there:
// a size that is not finite or below 0, an id outside [0, count).
template <typename T>
cudaError_t first_bad_size_cuda(const T* sizes, int64_t n, unsigned long long* result,
                                cudaStream_t stream);
cudaError_t first_bad_id_cuda(const int64_t* ids, int64_t n, int64_t count,
                              unsigned long long* result, cudaStream_t stream);

}  // namespace tinyops::stitch_tiles
