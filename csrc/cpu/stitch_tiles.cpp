// stitch_tiles on the CPU: one pass places the boxes and marks the truncated ones, the rest is the
// greedy suppression of nms.
#include "../ops/stitch_tiles_check.h"  // first: it pins the ABI
#include "boxes.h"
#include "greedy.h"
#include "greedy_glue.h"
#include "stitch_tiles.h"

namespace tinyops::stitch_tiles {
namespace {

void check_ids_cpu(const char* name, const int64_t* ids, int64_t n, int64_t count) {
  for (int64_t k = 0; k < n; ++k)
    if (ids[k] < 0 || ids[k] >= count) refuse_id(name, ids[k], k, count);
}

template <typename T>
struct TypedInputs : Inputs {
  using Inputs::Inputs;

  void check_values() const {
    check_box_values_cpu(kOp, "boxes", data<Box<T>>(boxes), n());
    for_compute_dtype(scores.scalar_type(), [&](auto zero) {
      check_no_nan_cpu(kOp, "scores", data<decltype(zero)>(scores), n());
    });
    check_box_values_cpu(kOp, "tile_windows", data<Box<T>>(windows), tiles());
    const T* size = data<T>(sizes);
    for (int64_t k = 0; k < images(); ++k, size += 2)
      if (!is_size(size[0], size[1])) refuse_size(size[0], size[1], k);
    if (tile_images) check_ids_cpu("tile_images", data<int64_t>(tile_images), tiles(), images());
    check_ids_cpu("tile_ids", data<int64_t>(tile_ids), n(), tiles());
  }

  // n > 0.
  Placed<T> place(const Options& o) const {
    const auto* size = data<T>(sizes);
    const auto* window = data<Box<T>>(windows);
    const auto* image_of = data<int64_t>(tile_images);
    std::vector<Tile<T>> table(tiles());
    for (int64_t t = 0; t < tiles(); ++t) {
      const int64_t image = image_of ? index_within(image_of[t], images()) : 0;
      table[t] = make_tile(window[t], size[2 * image], size[2 * image + 1], static_cast<T>(o.edge));
    }
    Placed<T> p(n(), image_of && images() > 1, o.class_agnostic ? nullptr : data<int64_t>(labels));
    const auto* box = data<Box<T>>(boxes);
    const auto* id = data<int64_t>(tile_ids);
    for (int64_t k = 0; k < p.n; ++k) {
      const int32_t t = index_within(id[k], tiles());
      p.tiles[k] = t;
      p.boxes[k] = shifted(box[k], table[t]);
      p.cut[k] = cut_sides(box[k], table[t]);
      p.truncated[k] = p.cut[k] != 0;
      if (p.images) p.images[k] = index_within(image_of[t], images());
    }
    return p;
  }

  // Whole boxes before truncated ones, then score falling, then index. Returns how many are whole.
  int64_t rank(const Placed<T>& p, int32_t* order) const {
    const auto ranked = std::make_unique_for_overwrite<int32_t[]>(p.n);
    for_compute_dtype(scores.scalar_type(), [&](auto zero) {
      greedy::rank(data<decltype(zero)>(scores), p.n, ranked.get());
    });
    int64_t whole = 0;
    for (int64_t k = 0; k < p.n; ++k) whole += !p.truncated[k];
    int32_t* ends[] = {order, order + whole};
    for (int64_t k = 0; k < p.n; ++k) *ends[p.truncated[ranked[k]]]++ = ranked[k];
    return whole;
  }
};

template <typename T>
int64_t suppress(const Placed<T>& p, const Options& o, const int32_t* order, int64_t* keep,
                 int64_t most) {
  greedy::Problem<T> problem{p.boxes.get(), order, p.n, greedy::Rule::kStitch, o.iou_threshold};
  problem.ios_threshold = o.ios_threshold;
  problem.labels = p.labels;
  problem.image_ids = p.images.get();
  problem.tiles = p.tiles.get();
  problem.truncated = p.truncated.get();
  return greedy::suppress(problem, keep, most, greedy::torch_threads());
}

// Fills keep with at most `most` indices; returns how many.
int64_t run(const Arguments& a, const Options& o, int64_t* keep, int64_t most) {
  return for_compute_dtype(a.boxes.scalar_type(), [&](auto zero) -> int64_t {
    const TypedInputs<decltype(zero)> inputs(a);
    if (a.check_values) inputs.check_values();
    if (inputs.n() == 0) return 0;
    const auto placed = inputs.place(o);
    const auto order = std::make_unique_for_overwrite<int32_t[]>(placed.n);
    inputs.rank(placed, order.get());
    return suppress(placed, o, order.get(), keep, most);
  });
}

// The whole boxes that survive among themselves, best first: a problem of their own.
template <typename T>
std::vector<int64_t> keep_whole(const Placed<T>& p, const Options& o, const int32_t* order,
                                int64_t whole) {
  std::vector<int64_t> labels(p.labels ? whole : 0), keep(whole);
  Placed<T> part(whole, p.images != nullptr, p.labels ? labels.data() : nullptr);
  std::vector<int32_t> own_order(whole);
  for (int64_t k = 0; k < whole; ++k) {
    part.boxes[k] = p.boxes[order[k]];
    part.truncated[k] = 0;
    part.tiles[k] = p.tiles[order[k]];
    if (p.images) part.images[k] = p.images[order[k]];
    if (p.labels) labels[k] = p.labels[order[k]];
    own_order[k] = static_cast<int32_t>(k);
  }
  keep.resize(suppress(part, o, own_order.data(), keep.data(), whole));
  for (int64_t& k : keep) k = order[k];
  return keep;
}

Tensor stitch_tiles_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                        const Tensor& tile_ids, const Tensor& tile_windows,
                        const Tensor& image_sizes, const OptionalTensor& tile_images,
                        double iou_threshold, double ios_threshold, double edge,
                        bool class_agnostic, bool check_values) {
  const Arguments a{boxes,         scores,      labels,         tile_ids,
                    tile_windows,  image_sizes, tile_images,    iou_threshold,
                    ios_threshold, edge,        class_agnostic, check_values};
  const Options o = a.checked();
  const int64_t n = boxes.size(0);
  const auto keep = std::make_unique_for_overwrite<int64_t[]>(n);
  const int64_t kept = run(a, o, keep.get(), n);
  const Tensor result = torch::stable::empty(std::array{kept}, ScalarType::Long);
  std::copy_n(keep.get(), kept, mutable_data<int64_t>(result));
  return result;
}

std::tuple<Tensor, Tensor> stitch_tiles_padded_cpu(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, const Tensor& tile_ids,
    const Tensor& tile_windows, const Tensor& image_sizes, int64_t max_outputs,
    const OptionalTensor& tile_images, double iou_threshold, double ios_threshold, double edge,
    bool class_agnostic, bool check_values) {
  const Arguments a{boxes,         scores,      labels,         tile_ids,
                    tile_windows,  image_sizes, tile_images,    iou_threshold,
                    ios_threshold, edge,        class_agnostic, check_values};
  const Options o = a.checked();
  check_max_outputs(kOp, max_outputs);
  const Tensor keep = torch::stable::empty(std::array{max_outputs}, ScalarType::Long);
  const Tensor count = torch::stable::empty(std::initializer_list<int64_t>{}, ScalarType::Long);
  auto* const out = mutable_data<int64_t>(keep);
  const int64_t kept = run(a, o, out, max_outputs);
  std::fill(out + kept, out + max_outputs, -1);
  *mutable_data<int64_t>(count) = kept;
  return {keep, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> stitch_tiles_union_cpu(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, const Tensor& tile_ids,
    const Tensor& tile_windows, const Tensor& image_sizes, const OptionalTensor& tile_images,
    double iou_threshold, double ios_threshold, double edge, bool class_agnostic,
    bool check_values) {
  const Arguments a{boxes,         scores,      labels,         tile_ids,
                    tile_windows,  image_sizes, tile_images,    iou_threshold,
                    ios_threshold, edge,        class_agnostic, check_values};
  const Options o = a.checked();
  return for_compute_dtype(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const TypedInputs<T> inputs(a);
    if (check_values) inputs.check_values();
    Union<T> result;
    if (inputs.n() > 0) {
      const Placed<T> placed = inputs.place(o);
      const auto order = std::make_unique_for_overwrite<int32_t[]>(placed.n);
      const int64_t whole = inputs.rank(placed, order.get());
      result = unite(placed, o, order.get(), keep_whole(placed, o, order.get(), whole));
    }
    const auto kept = static_cast<int64_t>(result.keep.size());
    const Tensor out_boxes =
        torch::stable::empty(std::array{kept, int64_t{4}}, inputs.boxes.scalar_type());
    const Tensor out_scores = torch::stable::empty(std::array{kept}, scores.scalar_type());
    const Tensor out_labels = torch::stable::empty(std::array{kept}, ScalarType::Long);
    const Tensor out_keep = torch::stable::empty(std::array{kept}, ScalarType::Long);
    std::copy(result.boxes.begin(), result.boxes.end(), mutable_data<Box<T>>(out_boxes));
    std::copy(result.keep.begin(), result.keep.end(), mutable_data<int64_t>(out_keep));
    // Scores as they came, whatever their type.
    const Tensor given = to_contiguous(scores);
    const auto bytes = static_cast<size_t>(scores.element_size());
    for (int64_t k = 0; k < kept; ++k) {
      std::memcpy(mutable_data<char>(out_scores) + k * bytes,
                  data<char>(given) + result.keep[k] * bytes, bytes);
      mutable_data<int64_t>(out_labels)[k] = data<int64_t>(inputs.labels)[result.keep[k]];
    }
    return std::tuple(out_boxes, out_scores, out_labels, out_keep);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tinyops, CPU, m) {
  m.impl("stitch_tiles", TORCH_BOX(&stitch_tiles_cpu));
  m.impl("stitch_tiles_padded", TORCH_BOX(&stitch_tiles_padded_cpu));
  m.impl("stitch_tiles_union", TORCH_BOX(&stitch_tiles_union_cpu));
}

}  // namespace tinyops::stitch_tiles
