#include "torch_cuda.h"

#include <vector>

// after torch_cuda.h, which pins the ABI
#include "../ops/attention_targets_check.h"
#include "attention_targets.h"
#include "boxes_glue.h"

namespace tinyops::attention_targets {
namespace {

// Offsets inside the canvas of an image are 32-bit on the GPU, and so are rows of all images.
void check_canvas(const Problem& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  for (const Level& level : p.levels)
    check(4 * level.cells() <= kMost && p.images * level.y.out <= kMost, kName,
          ": on a GPU sizes must give levels of fewer than 2^29 cells and 2^31 rows, got ",
          p.images, " of ", level.y.out, "x", level.x.out);
}

void check_images(const Tensor& image_ids, int64_t images, cudaStream_t stream) {
  if (image_ids.numel() == 0) return;
  const Tensor found = empty_on(image_ids, ScalarType::Long, {1});
  auto* const result = mutable_data<unsigned long long>(found);
  const auto fetch = [&](void* to, const void* from) {
    check_cuda(cudaMemcpyAsync(to, from, sizeof(int64_t), cudaMemcpyDeviceToHost, stream), kName);
    check_cuda(cudaStreamSynchronize(stream), kName);
  };
  check_cuda(cudaMemsetAsync(result, 0, sizeof(*result), stream), kName);
  check_cuda(check_images_cuda(data<int64_t>(image_ids), image_ids.numel(), images, result, stream),
             kName);
  unsigned long long code = 0;
  fetch(&code, result);
  if (code == 0) return;
  int64_t id = 0;
  fetch(&id, data<int64_t>(image_ids) + ~code);
  refuse_image(id, images, static_cast<int64_t>(~code));
}

// Cuts `memory` (null: only counts it) into the scratch of all levels; returns its 4-byte words.
int64_t cut(const Problem& p, const std::vector<Tensor>& maps, uint32_t* memory, Canvases* all) {
  int64_t used = 0;
  const auto take = [&](int64_t words) {
    uint32_t* const start = memory ? memory + used : nullptr;
    used += ceil_div(words, 4) * 4;  // pairs of pixels are read at once
    return start;
  };
  all->count = static_cast<int32_t>(p.levels.size());
  for (size_t k = 0; k < p.levels.size(); ++k) {
    const Level& level = p.levels[k];
    uint32_t* const pixels = take(4 * level.cells() * p.images);
    all->canvas[k] = {level, nullptr, nullptr, pixels, mutable_data<float>(maps[k])};
  }
  for (size_t k = 0; k < p.levels.size(); ++k) {
    all->canvas[k].rows = reinterpret_cast<int32_t*>(take(2 * int64_t{p.levels[k].y.out}));
    all->canvas[k].columns = reinterpret_cast<int32_t*>(take(2 * int64_t{p.levels[k].x.out}));
  }
  return used;
}

std::vector<Tensor> attention_targets_cuda(const Tensor& boxes, const Tensor& image_ids,
                                           int64_t images, int64_t height, int64_t width,
                                           std::vector<int64_t> strides, std::vector<double> bands,
                                           bool strict, bool check_values) {
  const Problem p =
      check_arguments(boxes, image_ids, images, height, width, strides, bands, strict);
  check_canvas(p);
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const Tensor own_boxes = to_compute(boxes), own_ids = to_contiguous(image_ids);
  if (check_values) {
    ValueChecks values(kName, stream);
    values.boxes("boxes", own_boxes);
    values.ask();
    check_images(own_ids, images, stream);
  }
  const std::vector<Tensor> maps = allocate(p, boxes);
  Canvases canvases;
  const int64_t words = cut(p, maps, nullptr, &canvases);
  const Tensor scratch = empty_on(boxes, ScalarType::Int, {words});
  auto* const memory = mutable_data<uint32_t>(scratch);
  cut(p, maps, memory, &canvases);
  check_cuda(cudaMemsetAsync(memory, 0, static_cast<size_t>(words) * sizeof(*memory), stream),
             kName);
  for_compute_dtype(own_boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Input<T> input{data<Box<T>>(own_boxes),
                         data<int64_t>(own_ids),
                         static_cast<int32_t>(p.boxes),
                         static_cast<int32_t>(images),
                         p.height,
                         p.width};
    check_cuda(draw_cuda(input, canvases, stream), kName);
  });
  return maps;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("attention_targets", TORCH_BOX(&attention_targets_cuda));
}

}  // namespace tinyops::attention_targets
