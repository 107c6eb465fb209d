"""Stitch the detections of overlapping tiles into those of their images."""

import math
from typing import Any

import torch
from torch import Tensor

from tinyops.ops._boxes import (
    check_boxes,
    check_fraction,
    check_ids,
    check_scores,
    code,
    implement_by_copy,
    register_box_operator,
    unbacked_size,
)
from tinyops.ops._glue import check, dtype_text, shape_text

MERGES = ("none", "union")
_OP = "stitch_tiles"


def stitch_tiles(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    tile_ids: Tensor,
    tile_windows: Tensor,
    image_sizes: Tensor,
    *,
    tile_images: Tensor | None = None,
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
    edge: float = 2.0,
    merge: str = "none",
    class_agnostic: bool = False,
    max_outputs: int | None = None,
    check: bool = True,
) -> Tensor | tuple[Tensor, ...]:
    """Remove what several tiles saw of one object, and keep neighbours apart.

    1. Boxes are shifted from tile into image coordinates.
    2. A box is truncated if a side of it is at most `edge` pixels from, or beyond, a side of its
       tile that is not a side of the image.
    3. Order: whole boxes before truncated ones, then score falling, then lower index.
    4. Greedy in that order: a box goes if a kept box of the same label and image but of another
       tile overlaps it with IoU > `iou_threshold`, or, where the box is truncated, with
       intersection over smaller area > `ios_threshold`. Boxes of one tile are never compared: the
       detector has told them apart.

    merge="union" is for objects that are larger than the overlap of the tiles, so that no tile
    sees them whole. A truncated box is a piece unless a kept whole box of another tile covers it:
    IoU > `iou_threshold`, or intersection over its own area > `ios_threshold`. Two pieces of
    different tiles continue each other if one is cut on the right (lower) and the other on the
    left (upper) side of its tile; they overlap across the seam or leave a gap of at most `edge`;
    each reaches as far as the cut of the other, up to `edge`; and along the seam the intersection
    of their extents is more than `ios_threshold` of the smaller one. Each piece links on each cut
    side to the best continuation (by intersection over union of these extents, then the order
    above). Links join pieces, the best link first, but never two of one tile, so that a row of
    neighbours along a seam stays apart. Joined pieces are replaced by their hull, which has the
    score, label and index of its best member, counts as whole and as of every tile of its members.
    Hulls, then single pieces, pass step 4; none is compared with a box that it shares a tile with.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels of the tile; float32, float64, or float16 and bfloat16,
            computed in float32.
        scores: [K], of a float type of its own.
        labels: [K] int64.
        tile_ids: [K] int64, rows of `tile_windows`.
        tile_windows: [T, 4] x1 y1 x2 y2 of each tile in its image; int64, float32 or float64.
        image_sizes: [I, 2] height and width of each image; int64, float32 or float64.
        tile_images: [T] int64, rows of `image_sizes`. None: all tiles are of image 0.
        iou_threshold: in [0, 1].
        ios_threshold: in [0, 1].
        edge: pixels, at least 0; how close to a cut a detector puts the side of a truncated box.
        merge: "none" or "union".
        class_agnostic: compare boxes of different labels too.
        max_outputs: return a fixed number of indices; with merge="none".
        check: whether to look for bad values. It costs a pass, and on CUDA a synchronisation.
            Without it, ids that are out of range are read as the nearest one in it.

    Returns:
        merge="none": keep [n] int64, indices of the kept boxes in the order of step 3; with
            `max_outputs` instead (keep [max_outputs], the first ones, -1 after the last; count, a
            tensor without dimensions). Box k in the image is `boxes[k]` plus x1 y1 of its window.
        merge="union": (boxes [n, 4] in image coordinates, float64 if `boxes` are, otherwise
            float32; scores [n]; labels [n]; keep [n]): whole boxes, hulls, single pieces, each best
            first. On CUDA tensors this runs on the CPU, on a copy.
        No gradient.

    Raises:
        RuntimeError: for a wrong shape, dtype, device or option; with `check` also for boxes or
            windows that are not finite or have x2 < x1 or y2 < y1, NaN scores, image sizes that
            are negative or not finite, and ids that are out of range.
    """
    tensors = (boxes, scores, labels, tile_ids, tile_windows, image_sizes)
    options: dict[str, Any] = {
        "tile_images": tile_images,
        "iou_threshold": iou_threshold,
        "ios_threshold": ios_threshold,
        "edge": edge,
        "class_agnostic": class_agnostic,
        "check": check,
    }
    result: Tensor | tuple[Tensor, ...]
    if code(_OP, "merge", merge, MERGES) == 0:
        if max_outputs is None:
            result = torch.ops.tinyops.stitch_tiles(*tensors, **options)
        else:
            result = torch.ops.tinyops.stitch_tiles_padded(*tensors, max_outputs, **options)
    else:
        if max_outputs is not None:
            raise RuntimeError(
                f"tinyops: {_OP}: max_outputs must be None with merge='union', got {max_outputs}"
            )
        result = torch.ops.tinyops.stitch_tiles_union(*tensors, **options)
    return result


def check_arguments(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    tile_ids: Tensor,
    tile_windows: Tensor,
    image_sizes: Tensor,
    *,
    tile_images: Tensor | None = None,
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
    edge: float = 2.0,
    class_agnostic: bool = False,
    check: bool = True,
) -> None:
    """The checks of csrc/ops/stitch_tiles_check.h, for fake tensors."""
    check_boxes(_OP, "boxes", boxes)
    check_scores(_OP, "scores", scores, "boxes", boxes)
    check_ids(_OP, "labels", labels, "boxes", boxes)
    check_ids(_OP, "tile_ids", tile_ids, "boxes", boxes)
    _check_table("tile_windows", "[T, 4]", 4, tile_windows, boxes)
    _check_table("image_sizes", "[I, 2]", 2, image_sizes, boxes)
    if tile_images is not None:
        _require(
            tile_images.dim() == 1 and tile_images.shape[0] == tile_windows.shape[0],
            f"tile_images must be [{tile_windows.shape[0]}] like tile_windows, got "
            f"{shape_text(tile_images.shape)}",
        )
        _require(
            tile_images.device == boxes.device,
            f"tile_images must be on {boxes.device} like boxes, got {tile_images.device}",
        )
        _require(
            tile_images.dtype == torch.int64,
            f"tile_images must be int64, got {dtype_text(tile_images.dtype)}",
        )
    _require(
        tile_windows.shape[0] > 0 or boxes.shape[0] == 0,
        f"tile_windows must have a row for the tiles of {boxes.shape[0]} boxes, got "
        f"{shape_text(tile_windows.shape)}",
    )
    _require(
        image_sizes.shape[0] > 0 or tile_windows.shape[0] == 0,
        f"image_sizes must have a row for the images of {tile_windows.shape[0]} tiles, got "
        f"{shape_text(image_sizes.shape)}",
    )
    check_fraction(_OP, "iou_threshold", iou_threshold)
    check_fraction(_OP, "ios_threshold", ios_threshold)
    _require(0 <= edge < math.inf, f"edge must be finite and at least 0, got {edge:g}")


def _require(condition: bool, message: str) -> None:
    check(condition, f"{_OP}: {message}")


def _check_table(name: str, shape: str, columns: int, x: Tensor, boxes: Tensor) -> None:
    _require(
        x.dim() == 2 and x.shape[1] == columns,
        f"{name} must be {shape}, got {shape_text(x.shape)}",
    )
    _require(
        x.dtype in (torch.int64, torch.float32, torch.float64),
        f"{name} must be int64, float32 or float64, got {dtype_text(x.dtype)}",
    )
    _require(
        x.device == boxes.device,
        f"{name} must be on {boxes.device} like boxes, got {x.device}",
    )


def _fake(boxes: Tensor, *tensors: Tensor, **options: Any) -> Tensor:
    check_arguments(boxes, *tensors, **options)
    return boxes.new_empty(unbacked_size(boxes.shape[0]), dtype=torch.int64)


def _fake_padded(boxes: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    *tensors, max_outputs = arguments
    check_arguments(boxes, *tensors, **options)
    _require(max_outputs >= 0, f"max_outputs must be at least 0, got {max_outputs}")
    return (
        boxes.new_empty(max_outputs, dtype=torch.int64),
        boxes.new_empty((), dtype=torch.int64),
    )


def _fake_union(boxes: Tensor, scores: Tensor, *tensors: Tensor, **options: Any) -> Any:
    check_arguments(boxes, scores, *tensors, **options)
    n = unbacked_size(boxes.shape[0])
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    return (
        boxes.new_empty((n, 4), dtype=dtype),
        scores.new_empty(n),
        boxes.new_empty(n, dtype=torch.int64),
        boxes.new_empty(n, dtype=torch.int64),
    )


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, no gradient, and the union form on a GPU."""
    register_box_operator(f"{namespace}::stitch_tiles", _fake)
    register_box_operator(f"{namespace}::stitch_tiles_padded", _fake_padded)
    register_box_operator(f"{namespace}::stitch_tiles_union", _fake_union)
    # The union form has no CUDA kernel. The namespaces of the tests stand for a GPU on any device.
    key = "CUDA" if namespace == "tinyops" else "CompositeExplicitAutograd"
    implement_by_copy(f"{namespace}::stitch_tiles_union", key)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Run the CPU kernels on copies: stitching is a sequence of decisions, no work for Triton."""
    implement_by_copy(f"{namespace}::stitch_tiles", key)
    implement_by_copy(f"{namespace}::stitch_tiles_padded", key)


register("tinyops")
