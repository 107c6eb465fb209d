"""topk_per_target: the one or three boxes of greatest IoU, as bench_max_overlap lays them out."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import iou, proposals_and_targets
from numpy.typing import NDArray
from peers import as_array, on, peer
from torch import Tensor

from ops.bench_max_overlap import matrix
from tinyops.ops import topk_per_target

SHAPES = {  # boxes, targets
    "2kx200": (2_000, 200),
    "20kx2k": (20_000, 2_000),
    "100kx1k": (100_000, 1_000),
}
MODES = ("k1", "k3")  # low-quality matches; the first step of RFLA's assignment
PACKAGES = ("torchvision",)

DEFAULT_SHAPES = {"cpu": tuple(SHAPES), "cuda": tuple(SHAPES)}
DEFAULT_MODES = MODES

CHUNK = 1 << 20  # overlaps

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def box_iou_topk(boxes: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from torchvision.ops import box_iou

    value, index = box_iou(targets, boxes).topk(k, dim=1)
    return value, index


def box_iou_max(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    from torchvision.ops import box_iou

    value, index = box_iou(targets, boxes).max(dim=1, keepdim=True)
    return value, index


def in_chunks(boxes: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The matrix of a few targets at a time."""
    planes = boxes[None].unbind(2)
    parts = [
        matrix("iou", chunk, planes).topk(k, dim=1)
        for chunk in targets.split(max(1, CHUNK // len(boxes)))
    ]
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


def case(shape: str, mode: str, device: torch.device) -> Case:
    n, m = SHAPES[shape]
    k = int(mode[1:])

    def make(seed: int) -> Inputs:
        return proposals_and_targets(n, m, seed)

    def prepared(function: Function) -> Callable[..., Call]:
        def prepare(boxes: NDArray, targets: NDArray) -> Call:
            b, t = on(device, boxes, targets)
            return lambda: function(b, t)

        return prepare

    topk = prepared(functools.partial(box_iou_topk, k=k))
    peers = {
        "tinyops": Peer(prepared(functools.partial(topk_per_target, k=k))),
        "eager in chunks": Peer(prepared(functools.partial(in_chunks, k=k))),
        "torchvision topk": peer("torchvision", topk),
    }
    if k == 1:
        peers["torchvision max"] = peer("torchvision", prepared(box_iou_max))
    memory = ("tinyops", "eager in chunks", "torchvision topk")
    return Case(
        shape=shape,
        mode=mode,
        columns={"N": n, "M": m, "k": k},
        make=make,
        small=[make(1000)],
        peers=peers,
        check=functools.partial(check, k),
        memory=tuple(name for name in memory if not peers[name].refusal),
    )


def check(k: int, inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
    """The same values, and indices of boxes that have them: equal overlaps may change places."""
    boxes, targets = inputs
    expected = as_array(in_chunks(*on(torch.device("cpu"), boxes, targets), k)[0])
    for name, result in results.items():
        value, index = (as_array(x) for x in result)
        assert value.shape == index.shape == (len(targets), k), f"{name}: {value.shape}"
        assert np.allclose(value, expected, rtol=1e-5, atol=1e-6), f"{name}: wrong values"
        actual = iou(boxes[index.ravel()], np.repeat(targets, k, axis=0)).reshape(value.shape)
        assert np.allclose(actual, value, rtol=1e-5, atol=1e-6), f"{name}: wrong boxes"
        assert (np.diff(np.sort(index)) > 0).all(), f"{name}: a box comes twice"
    return {"overlapping": int((expected > 0).sum())}
