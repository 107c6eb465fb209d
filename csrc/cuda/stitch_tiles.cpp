#include "nms.h"

#include "../ops/stitch_tiles_check.h"
#include "boxes_glue.h"
#include "stitch_tiles.h"

namespace tinyops::stitch_tiles {
namespace {

struct CheckedInputs : Inputs {
  using Inputs::Inputs;

  void check_values(cudaStream_t stream) const {
    ValueChecks checks(kOp, stream);
    checks.boxes("boxes", boxes);
    checks.no_nan("scores", scores);
    checks.boxes("tile_windows", windows);
    checks.ask();
    check_tables(stream);
  }

 private:
  // A second synchronisation of the host, for what only this operator has.
  void check_tables(cudaStream_t stream) const {
    const Tensor found = empty_on(boxes, ScalarType::Long, {3});
    auto* const result = mutable_data<unsigned long long>(found);
    check_cuda(cudaMemsetAsync(result, 0xff, 3 * sizeof(*result), stream), kOp);
    for_compute_dtype(sizes.scalar_type(), [&](auto zero) {
      check_cuda(first_bad_size_cuda(data<decltype(zero)>(sizes), images(), result, stream), kOp);
    });
    if (tile_images)
      check_cuda(
          first_bad_id_cuda(data<int64_t>(tile_images), tiles(), images(), result + 1, stream),
          kOp);
    check_cuda(first_bad_id_cuda(data<int64_t>(tile_ids), n(), tiles(), result + 2, stream), kOp);
    std::array<int64_t, 3> first{};
    copy_to_host(first.data(), result, sizeof(first), stream);
    if (first[0] >= 0)
      for_compute_dtype(sizes.scalar_type(), [&](auto zero) {
        decltype(zero) size[2];
        copy_to_host(size, data<decltype(zero)>(sizes) + 2 * first[0], sizeof(size), stream);
        refuse_size(size[0], size[1], first[0]);
      });
    if (first[1] >= 0) refuse("tile_images", *tile_images, first[1], images(), stream);
    if (first[2] >= 0) refuse("tile_ids", tile_ids, first[2], tiles(), stream);
  }
  static void refuse(const char* name, const Tensor& ids, int64_t index, int64_t count,
                     cudaStream_t stream) {
    int64_t id = 0;
    copy_to_host(&id, data<int64_t>(ids) + index, sizeof(id), stream);
    refuse_id(name, id, index, count);
  }
  static void copy_to_host(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), kOp);
    check_cuda(cudaStreamSynchronize(stream), kOp);
  }
};

// Everything on the GPU that one call works in.
template <typename T>
struct Scratch {
  Scratch(Arena& arena, int64_t n, bool has_images, size_t rank_bytes, size_t sort_bytes)
      : placed(arena.take<Box<T>>(n)),
        truncated(arena.take<uint8_t>(n)),
        whole(arena.take<uint8_t>(n)),
        tile(arena.take<int32_t>(n)),
        image(has_images ? arena.take<int64_t>(n) : nullptr),
        ranked(arena.take<int32_t>(n)),
        order(arena.take<int32_t>(n)),
        rank_scratch(arena.take<char>(static_cast<int64_t>(rank_bytes))),
        memory(arena, n, sort_bytes) {}
  Box<T>* placed;
  uint8_t *truncated, *whole;
  int32_t* tile;
  int64_t* image;
  int32_t *ranked, *order;
  void* rank_scratch;
  greedy::Memory<T> memory;
};

// Decides which of n > 0 boxes are kept and calls finish(memory, order) while its scratch lives.
template <typename Finish>
void suppress(const Inputs& in, const Options& o, cudaStream_t stream, Finish&& finish) {
  const int n = static_cast<int>(in.n());
  const bool has_images = in.tile_images && in.images() > 1;
  const size_t rank_bytes = rank_scratch(kOp, in.scores, stream);
  size_t sort_bytes = 0;
  check_cuda(grid_sort_scratch(n, sort_bytes), kOp);
  for_compute_dtype(in.boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Arena measure;
    Scratch<T>(measure, n, has_images, rank_bytes, sort_bytes);
    const Tensor bytes = scratch_on(in.boxes, measure.used());
    Arena arena(mutable_data<char>(bytes));
    const Scratch<T> s(arena, n, has_images, rank_bytes, sort_bytes);
    const PlaceArgs<T> place{data<Box<T>>(in.boxes),
                             data<int64_t>(in.tile_ids),
                             data<Box<T>>(in.windows),
                             data<T>(in.sizes),
                             data<int64_t>(in.tile_images),
                             n,
                             in.tiles(),
                             in.images(),
                             static_cast<T>(o.edge),
                             s.placed,
                             s.truncated,
                             s.tile,
                             s.image};
    check_cuda(place_cuda(place, stream), kOp);
    rank(kOp, in.scores, s.rank_scratch, rank_bytes, s.ranked, stream);
    check_cuda(
        whole_first_cuda(s.memory.selection, s.ranked, s.truncated, n, s.whole, s.order, stream),
        kOp);
    greedy::Problem<T> problem{s.placed, s.order, n, {}, greedy::threshold_of<T>(o.iou_threshold)};
    problem.ids = {o.class_agnostic ? nullptr : data<int64_t>(in.labels), s.image};
    problem.ios_threshold = greedy::threshold_of<T>(o.ios_threshold);
    problem.tiles = s.tile;
    problem.truncated = s.truncated;
    check_cuda(greedy::suppress<greedy::Rule::kStitch>(s.memory, problem, stream), kOp);
    finish(s.memory, s.order);
  });
}

Tensor stitch_tiles_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                         const Tensor& tile_ids, const Tensor& tile_windows,
                         const Tensor& image_sizes, const OptionalTensor& tile_images,
                         double iou_threshold, double ios_threshold, double edge,
                         bool class_agnostic, bool check_values) {
  const Arguments a{boxes,         scores,      labels,         tile_ids,
                    tile_windows,  image_sizes, tile_images,    iou_threshold,
                    ios_threshold, edge,        class_agnostic, check_values};
  const Options o = a.checked();
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const CheckedInputs in(a);
  if (check_values) in.check_values(stream);
  if (in.n() == 0) return empty_on(boxes, ScalarType::Long, {0});
  std::optional<Tensor> keep;
  suppress(in, o, stream, [&](const auto& memory, const int32_t* order) {
    keep = kept_exactly(kOp, memory, order, static_cast<int>(in.n()), boxes, stream);
  });
  return *keep;
}

std::tuple<Tensor, Tensor> stitch_tiles_padded_cuda(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, const Tensor& tile_ids,
    const Tensor& tile_windows, const Tensor& image_sizes, int64_t max_outputs,
    const OptionalTensor& tile_images, double iou_threshold, double ios_threshold, double edge,
    bool class_agnostic, bool check_values) {
  const Arguments a{boxes,         scores,      labels,         tile_ids,
                    tile_windows,  image_sizes, tile_images,    iou_threshold,
                    ios_threshold, edge,        class_agnostic, check_values};
  const Options o = a.checked();
  check_max_outputs(kOp, max_outputs);
  const DeviceGuard guard(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const CheckedInputs in(a);
  if (check_values) in.check_values(stream);
  const Padded padded(kOp, boxes, max_outputs, stream);
  if (in.n() > 0)
    suppress(in, o, stream, [&](const auto& memory, const int32_t* order) {
      padded.fill(kOp, memory, order, static_cast<int>(in.n()), stream);
    });
  return padded.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TINYOPS_NAMESPACE, TINYOPS_CUDA_KEY, m) {
  m.impl("stitch_tiles", TORCH_BOX(&stitch_tiles_cuda));
  m.impl("stitch_tiles_padded", TORCH_BOX(&stitch_tiles_padded_cuda));
}

}  // namespace tinyops::stitch_tiles
