"""Targets of the context attention maps (SSPNet, section III-A): where objects of a level are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyops.ops._boxes import check_boxes, check_ids, implement_by_copy, register_box_operator
from tinyops.ops._glue import check as require

MOST_LEVELS = 16


def attention_targets(
    boxes: Tensor,
    image_ids: Tensor,
    sizes: Sequence[int],
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    bands: Sequence[tuple[float, float]] = ((4, 32), (8, 64), (16, 128), (32, 256)),
    strict: bool = False,
    check: bool = True,
) -> list[Tensor]:
    """Paint the boxes of a batch as attention targets, one map per pyramid level.

    On an image of zeros a box is the rectangle of the rows int(y1) .. d - 1 and the columns
    int(x1) .. r - 1 with r = min(ceil(x2), W - 1) and d = min(ceil(y2), H - 1), and paints 1 where
    its size, the square root of the rectangle's area, is in the band of the level, otherwise -1.
    Parts outside the image are cut off, and do not count in the size. Later boxes paint over
    earlier ones. The image is then resized to ceil(H / stride) x ceil(W / stride) cells: bilinear,
    half-pixel centres, two taps, no antialiasing. Only the pixels that these taps read are painted.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels; float32, float64, float16 or bfloat16.
        image_ids: [K] int64, the image of each box.
        sizes: number of images, and height and width of the (padded) images in pixels.
        strides: pixels per cell of each level, finest level first; at most 16 levels.
        bands: [low, high) of the sizes in pixels that are positive at each level. The first level
            also takes everything smaller, the last everything larger.
        strict: exclude `low` as well, as SSPNet's released code does: a box of exactly 4 pixels is
            then negative on all levels. The last level takes everything above its low.
        check: look at the values (on a GPU that waits for them). Without it a box of an image that
            does not exist paints nothing.

    Returns:
        A [N, 1, h, w] float32 tensor in -1..1 per level, on the device of the boxes.

    Raises:
        RuntimeError: for a wrong shape, dtype or device, sizes, strides or bands that make no
            sense, boxes that are not finite or have x2 < x1 or y2 < y1, or an image id out of
            range; the message names the first one.
    """
    require(
        len(sizes) == 3,
        f"attention_targets: sizes must be images, height and width, got {len(sizes)} numbers",
    )
    require(
        all(len(band) == 2 for band in bands),
        f"attention_targets: bands must be pairs (low, high), got {bands}",
    )
    return torch.ops.tinyops.attention_targets(
        boxes,
        image_ids,
        *sizes,
        list(strides),
        [float(limit) for band in bands for limit in band],
        strict,
        check,
    )


def attention_targets_reference(
    boxes: Tensor,
    image_ids: Tensor,
    sizes: Sequence[int],
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    bands: Sequence[tuple[float, float]] = ((4, 32), (8, 64), (16, 128), (32, 256)),
    strict: bool = False,
) -> list[Tensor]:
    """`attention_targets` in plain torch: whole images, painted and resized."""
    images, height, width = sizes
    maps = []
    for k, (stride, (low, high)) in enumerate(zip(strides, bands, strict=True)):
        canvas = torch.zeros(images, 1, height, width, dtype=torch.float64, device=boxes.device)
        for box, image in zip(boxes.tolist(), image_ids.tolist(), strict=True):
            left, top = max(int(box[0]), 0), max(int(box[1]), 0)
            right, bottom = min(_ceil(box[2]), width - 1), min(_ceil(box[3]), height - 1)
            if right <= left or bottom <= top:
                continue
            size = ((right - left) * (bottom - top)) ** 0.5
            first, last = k == 0, k == len(strides) - 1
            if strict:
                inside = low < size < high or (first and size < low) or (last and size > low)
            else:
                inside = (first or size >= low) and (last or size < high)
            canvas[image, 0, top:bottom, left:right] = 1 if inside else -1
        cells = -(-height // stride), -(-width // stride)
        maps.append(
            torch.nn.functional.interpolate(canvas, cells, mode="bilinear", align_corners=False)
        )
    return [x.float() for x in maps]


def _ceil(x: float) -> int:
    return -int(-x // 1)


def _fake(
    boxes: Tensor,
    image_ids: Tensor,
    images: int,
    height: int,
    width: int,
    strides: Sequence[int],
    bands: Sequence[float],
    strict: bool,
    check: bool = True,
) -> list[Tensor]:
    op = "attention_targets"
    check_boxes(op, "boxes", boxes)
    check_ids(op, "image_ids", image_ids, "boxes", boxes)
    for n in (images, height, width):
        require(
            0 <= n < 2**31,
            f"{op}: sizes must be images, height and width of at least 0 and below 2^31, got {n}",
        )
    require(
        1 <= len(strides) <= MOST_LEVELS,
        f"{op}: strides must be from 1 to {MOST_LEVELS} numbers, got {len(strides)}",
    )
    require(
        len(bands) == 2 * len(strides),
        f"{op}: bands must be 2 numbers for each of {len(strides)} strides, got {len(bands)}",
    )
    for stride, low, high in zip(strides, bands[::2], bands[1::2], strict=True):
        require(
            1 <= stride < 2**31,
            f"{op}: strides must be at least 1 and below 2^31, got {stride}",
        )
        require(
            low <= high,
            f"{op}: bands must be (low, high) with low <= high, got ({low:g}, {high:g})",
        )
    return [
        boxes.new_empty(
            (images, 1, (height + s - 1) // s, (width + s - 1) // s), dtype=torch.float32
        )
        for s in strides
    ]


def register(namespace: str) -> None:
    """Register the fake kernel of "namespace::attention_targets", which has no gradient."""
    register_box_operator(f"{namespace}::attention_targets", _fake)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Implement "namespace::attention_targets" by the CPU kernel on copies."""
    implement_by_copy(f"{namespace}::attention_targets", key)


register("tinyops")
