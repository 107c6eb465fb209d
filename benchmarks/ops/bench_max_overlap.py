"""max_overlap: half of the boxes lie around targets, the others anywhere.

In an image of 6354 x 4064 px; shapes tile-*: all in one tile of 640 x 512 px.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import HEIGHT, WIDTH, proposals_and_targets
from numpy.typing import NDArray
from peers import as_array, on, peer
from torch import Tensor

from tinyops.ops import max_overlap

SIZES = {  # boxes, targets
    "2kx200": (2_000, 200),
    "2kx2k": (2_000, 2_000),
    "20kx2k": (20_000, 2_000),
    "100kx1k": (100_000, 1_000),
    "300kx200": (300_000, 200),
}
IMAGES = {"": (float(WIDTH), float(HEIGHT)), "tile-": (640.0, 512.0)}
SHAPES = {
    prefix + name: (*size, image)
    for prefix, image in IMAGES.items()
    for name, size in SIZES.items()
}
MODES = ("iou", "iof_target")
PACKAGES = ("torchvision",)

DEFAULT_SHAPES = {
    "cpu": (*SIZES, "tile-2kx200", "tile-100kx1k"),
    "cuda": (*SIZES, "tile-100kx1k"),
}
QUICK_SHAPES = {
    "cpu": ("2kx200", "20kx2k", "100kx1k"),
    "cuda": ("2kx200", "100kx1k", "300kx200"),
}
DEFAULT_MODES = ("iou",)

CHUNK = 2048  # boxes

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def matrix(mode: str, boxes: Tensor, target_planes: tuple[Tensor, ...]) -> Tensor:
    x1, y1, x2, y2 = boxes[:, None].unbind(2)
    u1, v1, u2, v2 = target_planes
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    both = width * height
    area = (u2 - u1) * (v2 - v1)
    return both / ((x2 - x1) * (y2 - y1) + area - both if mode == "iou" else area)


def matrix_max(mode: str) -> Function:
    def function(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        value, index = matrix(mode, boxes, targets[None].unbind(2)).max(dim=1)
        return value, index

    return function


def in_chunks(function: Function) -> Function:
    """The matrix of a few boxes at a time."""

    def chunked(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        parts = [function(chunk, targets) for chunk in boxes.split(CHUNK)]
        values, indices = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(indices)

    return chunked


def box_iou_max(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    from torchvision.ops import box_iou

    value, index = box_iou(boxes, targets).max(dim=1)
    return value, index


def case(shape: str, mode: str, device: torch.device) -> Case:
    n, m, image = SHAPES[shape]

    def make(seed: int) -> Inputs:
        return proposals_and_targets(n, m, seed, image)

    def prepared(function: Function, planes: bool = False) -> Callable[..., Call]:
        def prepare(boxes: NDArray, targets: NDArray) -> Call:
            b, t = on(device, boxes, targets)
            if planes:
                t = t.t().contiguous()
            return lambda: function(b, t)

        return prepare

    def compiled(with_index: bool) -> Peer:
        # Of targets [M, 4], Inductor's CPU code returns wrong indices (pytorch/pytorch#178964); of
        # [4, M] the right ones.
        def function(boxes: Tensor, planes: Tensor) -> Any:
            overlaps = matrix(mode, boxes, planes[:, None].unbind(0))
            return tuple(overlaps.max(dim=1)) if with_index else (overlaps.amax(dim=1),)

        return Peer(prepared(torch.compile(function, fullgraph=True, dynamic=False), planes=True))

    peers = {
        "tinyops": Peer(prepared(functools.partial(max_overlap, mode=mode))),
        "compiled": compiled(with_index=True),
        "compiled, no index": compiled(with_index=False),
        "eager in chunks": Peer(prepared(in_chunks(matrix_max(mode)))),
    }
    if mode == "iou":
        peers["torchvision"] = peer("torchvision", prepared(box_iou_max))
    memory = tuple(name for name in ("tinyops", "eager in chunks", "torchvision") if name in peers)
    return Case(
        shape=shape,
        mode=mode,
        columns={"N": n, "M": m},
        make=make,
        small=[make(1000)],  # as large as the others: compiled for this shape
        peers=peers,
        check=check,
        memory=memory,
    )


def check(inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
    """The same values and, where a target overlaps the box, the same index."""
    arrays = {name: [as_array(x) for x in result] for name, result in results.items()}
    value, index = arrays["eager in chunks" if "eager in chunks" in arrays else "tinyops"]
    for name, (other, *where) in arrays.items():
        assert np.allclose(other, value, rtol=1e-5, atol=1e-6), f"{name}: wrong values"
        for each in where:
            # Rounding may choose between two targets that overlap a box almost equally.
            differ = np.count_nonzero((each != index) & (value > 0))
            assert differ <= len(value) // 1000, f"{name}: {differ} wrong targets"
    return {"overlapping": int((value > 0).sum())}
