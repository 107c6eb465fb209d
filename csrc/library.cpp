// Every operator's schema: the table of contents. The backends register their kernels elsewhere.
#include "torch_util.h"

// cudasim registers the same operators once more, under another name (csrc/tests/cudasim).
#ifndef TINYOPS_NAMESPACE
#define TINYOPS_NAMESPACE tinyops
#endif

STABLE_TORCH_LIBRARY(TINYOPS_NAMESPACE, m) {
  m.def(
      "gated_upsample_add(Tensor low, Tensor high, Tensor? gate_low=None, Tensor? gate_high=None, "
      "*, bool self_gate=False) -> Tensor");
  m.def(
      "gated_upsample_add_(Tensor(a!) low, Tensor high, Tensor? gate_low=None, "
      "Tensor? gate_high=None, *, bool self_gate=False) -> ()");
  m.def(
      "_gated_upsample_add_backward(Tensor grad, Tensor? low, Tensor? high, Tensor? gate_low, "
      "Tensor? gate_high, SymInt high_height, SymInt high_width, bool self_gate) "
      "-> (Tensor d_low, Tensor d_high, Tensor d_gate_low, Tensor d_gate_high)");
  m.def(
      "pixel_shuffle_concat(Tensor content, Tensor reference, *, int upscale=2, "
      "float negative_slope=1.0, int order=0) -> Tensor");
  m.def(
      "pixel_shuffle_add(Tensor content, Tensor residual, *, int upscale=2, "
      "float negative_slope=1.0, int order=0) -> Tensor");
  m.def(
      "_pixel_shuffle_backward(Tensor grad, Tensor? content, SymInt channels, int upscale, "
      "float negative_slope, int order) -> Tensor");
  m.def(
      "avg_max_pool(Tensor features, Tensor? valid=None) -> (Tensor mean, Tensor max, Tensor "
      "index)");
  m.def(
      "_avg_max_pool_backward(Tensor d_mean, Tensor d_max, Tensor index, Tensor? valid, "
      "SymInt height, SymInt width, bool channels_last) -> Tensor");
  m.def(
      "balanced_l1_sums(Tensor prediction, Tensor target, Tensor boxes, Tensor image_ids, "
      "Tensor? valid=None, *, float scale) -> (Tensor total, Tensor positive, Tensor cells)");
  m.def(
      "_balanced_l1_sums_backward(Tensor d_total, Tensor d_positive, Tensor prediction, "
      "Tensor target, Tensor boxes, Tensor image_ids, Tensor? valid, float scale, "
      "bool need_prediction, bool need_target) -> (Tensor d_prediction, Tensor d_target)");

  m.def("difference_map(Tensor reconstruction, Tensor image, Tensor? valid=None) -> Tensor");
  m.def(
      "_difference_map_backward(Tensor grad, Tensor reconstruction, Tensor image, Tensor? valid) "
      "-> Tensor");
  m.def(
      "difference_gate(Tensor features, Tensor channel_weight, Tensor difference, "
      "Tensor threshold, *, int resize=0, int ste=0) -> Tensor");
  m.def(
      "_difference_gate_backward(Tensor grad, Tensor features, Tensor channel_weight, "
      "Tensor difference, Tensor threshold, int resize, bool need_features, "
      "bool need_channel_weight, bool need_difference, bool need_threshold) "
      "-> (Tensor d_features, Tensor d_channel_weight, Tensor d_difference, Tensor d_threshold)");

  m.def(
      "nms(Tensor boxes, Tensor scores, float iou_threshold, *, Tensor? labels=None, "
      "Tensor? image_ids=None, int metric=0, int offset=0, bool check=True) -> Tensor");
  m.def(
      "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, SymInt max_outputs, *, "
      "Tensor? labels=None, Tensor? image_ids=None, int metric=0, int offset=0, bool check=True) "
      "-> (Tensor keep, Tensor count)");
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, *, float iou_threshold=0.3, float sigma=0.5, "
      "float min_score=0.05, int method=0, Tensor? labels=None, Tensor? image_ids=None, "
      "bool check=True) -> (Tensor keep, Tensor scores)");
  m.def(
      "stitch_tiles(Tensor boxes, Tensor scores, Tensor labels, Tensor tile_ids, "
      "Tensor tile_windows, Tensor image_sizes, *, Tensor? tile_images=None, "
      "float iou_threshold=0.5, float ios_threshold=0.5, float edge=2.0, "
      "bool class_agnostic=False, bool check=True) -> Tensor");
  m.def(
      "stitch_tiles_padded(Tensor boxes, Tensor scores, Tensor labels, Tensor tile_ids, "
      "Tensor tile_windows, Tensor image_sizes, SymInt max_outputs, *, Tensor? tile_images=None, "
      "float iou_threshold=0.5, float ios_threshold=0.5, float edge=2.0, "
      "bool class_agnostic=False, bool check=True) -> (Tensor keep, Tensor count)");
  m.def(
      "stitch_tiles_union(Tensor boxes, Tensor scores, Tensor labels, Tensor tile_ids, "
      "Tensor tile_windows, Tensor image_sizes, *, Tensor? tile_images=None, "
      "float iou_threshold=0.5, float ios_threshold=0.5, float edge=2.0, "
      "bool class_agnostic=False, bool check=True) "
      "-> (Tensor boxes, Tensor scores, Tensor labels, Tensor keep)");
  m.def(
      "max_overlap(Tensor boxes, Tensor targets, *, int mode=0, Tensor? target_mask=None, "
      "Tensor? image_ids=None, Tensor? target_image_ids=None, bool check=True) "
      "-> (Tensor value, Tensor index)");
  m.def(
      "topk_per_target(Tensor boxes, Tensor targets, SymInt k, *, int mode=0, "
      "Tensor? target_mask=None, Tensor? image_ids=None, Tensor? target_image_ids=None, "
      "bool check=True) -> (Tensor value, Tensor index)");
  m.def(
      "topk_per_target_ties(Tensor boxes, Tensor targets, SymInt k, *, int mode=0, "
      "float min_value=0.0, Tensor? target_mask=None, Tensor? image_ids=None, "
      "Tensor? target_image_ids=None, bool check=True) "
      "-> (Tensor value, Tensor index, Tensor assigned)");
  m.def(
      "sample_negatives(Tensor scores, Tensor overlaps, Tensor candidates, SymInt num_samples, "
      "Tensor seed, *, float balance=0.6, int balance_on=0, float temperature=1.0, "
      "bool check=True) -> Tensor");
  m.def(
      "sample_negatives_padded(Tensor scores, Tensor overlaps, Tensor candidates, "
      "SymInt num_samples, Tensor seed, *, float balance=0.6, int balance_on=0, "
      "float temperature=1.0, bool check=True) -> (Tensor indices, Tensor count)");
  m.def(
      "sample_negatives_from_boxes(Tensor boxes, Tensor targets, Tensor? scores, "
      "Tensor candidates, SymInt num_samples, Tensor seed, *, int mode=1, float balance=0.6, "
      "int balance_on=0, float temperature=1.0, bool check=True) -> Tensor");
  m.def(
      "attention_targets(Tensor boxes, Tensor image_ids, SymInt images, SymInt height, "
      "SymInt width, int[] strides, float[] bands, bool strict, bool check=True) -> Tensor[]");
}
