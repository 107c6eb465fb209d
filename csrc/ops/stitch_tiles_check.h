// The argument checks of stitch_tiles and its forms, said once for every backend.
// tinyops/ops/stitch_tiles.py says the same to the fake kernels.
#pragma once
#include "boxes_check.h"
// after boxes_check.h, which pins the ABI
#include <limits>

#include "stitch_tiles.h"

namespace tinyops::stitch_tiles {

// One public function, hence one name in the messages of all forms.
inline constexpr char kOp[] = "stitch_tiles";

// A table of one row per tile or image: sizes in pixels, whole or not.
inline void check_table(const char* name, const char* shape, int64_t columns, const Tensor& x,
                        const Tensor& boxes) {
  check(x.dim() == 2 && x.size(1) == columns, kOp, ": ", name, " must be ", shape, ", got ",
        shape_text(x));
  const ScalarType t = x.scalar_type();
  check(t == ScalarType::Long || t == ScalarType::Float || t == ScalarType::Double, kOp, ": ", name,
        " must be int64, float32 or float64, got ", dtype_text(t));
  check(x.device() == boxes.device(), kOp, ": ", name, " must be on ", device_text(boxes),
        " like boxes, got ", device_text(x));
  check(x.size(0) < (int64_t{1} << 31), kOp, ": ", name, " must have fewer than 2^31 rows, got ",
        x.size(0));
}

// The arguments that all forms share.
struct Arguments {
  const Tensor &boxes, &scores, &labels, &tile_ids, &tile_windows, &image_sizes;
  const OptionalTensor& tile_images;
  double iou_threshold, ios_threshold, edge;
  bool class_agnostic, check_values;

  // After it come the checks of values, in this order: boxes, scores, tile_windows (refuse_box),
  // image_sizes (refuse_size), tile_images, tile_ids (refuse_id).
  Options checked() const {
    check_boxes(kOp, "boxes", boxes);
    check_scores(kOp, "scores", scores, "boxes", boxes);
    check_ids(kOp, "labels", labels, "boxes", boxes);
    check_ids(kOp, "tile_ids", tile_ids, "boxes", boxes);
    check_table("tile_windows", "[T, 4]", 4, tile_windows, boxes);
    check_table("image_sizes", "[I, 2]", 2, image_sizes, boxes);
    if (tile_images) {
      check(tile_images->dim() == 1 && tile_images->size(0) == tile_windows.size(0), kOp,
            ": tile_images must be [", tile_windows.size(0), "] like tile_windows, got ",
            shape_text(*tile_images));
      check(tile_images->device() == boxes.device(), kOp, ": tile_images must be on ",
            device_text(boxes), " like boxes, got ", device_text(*tile_images));
      check(tile_images->scalar_type() == ScalarType::Long, kOp,
            ": tile_images must be int64, got ", dtype_text(tile_images->scalar_type()));
    }
    check(tile_windows.size(0) > 0 || boxes.size(0) == 0, kOp,
          ": tile_windows must have a row for the tiles of ", boxes.size(0), " boxes, got ",
          shape_text(tile_windows));
    check(image_sizes.size(0) > 0 || tile_windows.size(0) == 0, kOp,
          ": image_sizes must have a row for the images of ", tile_windows.size(0), " tiles, got ",
          shape_text(image_sizes));
    check_fraction(kOp, "iou_threshold", iou_threshold);
    check_fraction(kOp, "ios_threshold", ios_threshold);
    check(edge >= 0 && edge <= std::numeric_limits<double>::max(), kOp,
          ": edge must be finite and at least 0, got ", edge);
    return {iou_threshold, ios_threshold, edge, class_agnostic};
  }
};

// Their tensors, contiguous, boxes and scores of a compute type, tables of that of the boxes.
struct Inputs {
  Tensor boxes, scores, labels, tile_ids, windows, sizes;
  OptionalTensor tile_images;

  explicit Inputs(const Arguments& a)
      : boxes(to_compute(a.boxes)),
        scores(to_compute(a.scores)),
        labels(to_contiguous(a.labels)),
        tile_ids(to_contiguous(a.tile_ids)),
        windows(to_dtype(a.tile_windows, boxes.scalar_type())),
        sizes(to_dtype(a.image_sizes, boxes.scalar_type())),
        tile_images(to_contiguous(a.tile_images)) {}

  int64_t n() const { return boxes.size(0); }
  int64_t tiles() const { return windows.size(0); }
  int64_t images() const { return sizes.size(0); }
};

// ---- Values ------------------------------------------------------------------------------------

// tile_ids in [0, tiles), tile_images in [0, images).
[[noreturn]] inline void refuse_id(const char* name, int64_t value, int64_t index, int64_t count) {
  check(false, kOp, ": ", name, " must be in [0, ", count, "), got ", value, " at index ", index);
  __builtin_unreachable();
}

template <typename T>
[[noreturn]] void refuse_size(T height, T width, int64_t index) {
  check(false, kOp, ": image_sizes must be finite and at least 0, got [", height, ", ", width,
        "] at index ", index);
  __builtin_unreachable();
}

}  // namespace tinyops::stitch_tiles
