"""soft_nms, of boxes of 2-20 px in an image of 6354 x 4064 px, with its default options.

The peer is the loop over the best box that is left, every pass over all boxes in torch: up to 10k
boxes. tinyops is alone at 100k.
"""

import functools
import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import Array, detections, iou, near_pairs
from numpy.typing import NDArray
from peers import as_array, on
from torch import Tensor

from tinyops.ops import soft_nms

THRESHOLD, SIGMA, MIN_SCORE = 0.3, 0.5, 0.05
SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
SHAPES = {f"{kind}-{size}": (kind, n) for size, n in SIZES.items() for kind in ("dup", "crowd")}
MODES = ("linear", "gaussian")
PACKAGES = ()

DEFAULT_SHAPES = {"cpu": tuple(SHAPES), "cuda": tuple(SHAPES)}
QUICK_SHAPES = {
    "cpu": ("dup-1k", "crowd-10k", "crowd-100k"),
    "cuda": ("dup-1k", "crowd-10k", "crowd-100k"),
}
DEFAULT_MODES = MODES

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def torch_loop(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.t().contiguous().unbind()
    area = (x2 - x1) * (y2 - y1)
    left = scores.clone()
    keep, final = [], []
    while True:
        value, best = (x.item() for x in left.max(dim=0))
        if value < MIN_SCORE:
            break
        keep.append(best)
        final.append(value)
        width = (torch.minimum(x2, x2[best]) - torch.maximum(x1, x1[best])).clamp_(min=0)
        height = (torch.minimum(y2, y2[best]) - torch.maximum(y1, y1[best])).clamp_(min=0)
        both = width * height
        overlap = both / (area + area[best] - both)
        if method == "linear":
            left *= torch.where(overlap > THRESHOLD, 1 - overlap, 1.0)
        else:
            left *= torch.exp(-(overlap**2) / SIGMA)
        left[best] = -1
    return torch.tensor(keep, device=boxes.device), torch.tensor(final, device=boxes.device)


def by_definition(boxes: Array, scores: Array, method: str) -> Array:
    """The score with which every box is kept, 0 for those that are dropped; with a heap."""
    of, neighbours, factors = [], [], []
    for i, j in near_pairs(boxes, boxes):
        overlap = iou(boxes[i], boxes[j]).astype(np.float64)
        if method == "linear":
            factor = np.where(overlap > THRESHOLD, 1 - overlap, 1)
        else:
            factor = np.exp(-(overlap**2) / SIGMA)
        near = (factor < 1) & (i != j)
        of.append(i[near])
        neighbours.append(j[near])
        factors.append(factor[near].astype(np.float32))
    box, neighbour, factor = (np.concatenate(x) for x in (of, neighbours, factors))
    order = np.argsort(box, kind="stable")
    neighbour, factor = neighbour[order], factor[order]
    start = np.searchsorted(box[order], np.arange(len(boxes) + 1))

    left, final = scores.copy(), np.zeros_like(scores)
    heap = [(-score, k) for k, score in enumerate(scores.tolist())]
    heapq.heapify(heap)
    while heap:
        score, best = heapq.heappop(heap)
        if -score != left[best]:  # it fell after it was put there
            heapq.heappush(heap, (-left[best].item(), best))
            continue
        if left[best] < np.float32(MIN_SCORE):
            break
        final[best] = left[best]
        near = slice(start[best], start[best + 1])
        alive = neighbour[near][final[neighbour[near]] == 0]
        left[alive] *= factor[near][final[neighbour[near]] == 0]
    return final


def case(shape: str, mode: str, device: torch.device) -> Case:
    kind, n = SHAPES[shape]

    def make(seed: int, n: int = n) -> Inputs:
        return detections(kind, n, seed)

    def prepared(function: Function) -> Callable[..., Call]:
        def prepare(boxes: NDArray, scores: NDArray) -> Call:
            b, s = on(device, boxes, scores)
            return lambda: function(b, s)

        return prepare

    ours = functools.partial(
        soft_nms, iou_threshold=THRESHOLD, sigma=SIGMA, min_score=MIN_SCORE, method=mode
    )
    refusal = "only up to 10k boxes: N passes over N boxes" if n > 10_000 else None
    return Case(
        shape=shape,
        mode=mode,
        columns={"distribution": kind, "N": n},
        make=make,
        small=[make(1000, min(n, 1000))],
        peers={
            "tinyops": Peer(prepared(ours)),
            "torch loop": Peer(prepared(functools.partial(torch_loop, method=mode)), refusal),
        },
        check=functools.partial(check, mode),
        memory=("tinyops",) if n > 10_000 else (),
    )


def check(method: str, inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
    """The boxes and scores of the definition, at any size.

    Only tinyops' linear scores are bound to the last bit: the others round exp or the factor in
    another way, which may move a score across the limit.
    """
    expected = by_definition(*inputs, method)
    facts: dict[str, str | int] = {"kept": int(np.count_nonzero(expected))}
    for name, result in results.items():
        keep, scores = (as_array(x) for x in result)
        assert len(np.unique(keep)) == len(keep), f"{name}: a box comes twice"
        assert (np.diff(scores) <= 0).all(), f"{name}: not in order of score"
        final = np.zeros_like(expected)
        final[keep] = scores
        if name == "tinyops" and method == "linear":
            place = np.lexsort((np.arange(len(final)), -expected))[: len(keep)]
            assert np.array_equal(keep, place), f"{name}: wrong boxes"
            assert np.array_equal(final, expected), f"{name}: wrong scores"
        wrong = np.count_nonzero(~np.isclose(final, expected, rtol=1e-5, atol=1e-6))
        most = 0 if name == "tinyops" else len(expected) // 1000
        assert wrong <= most, f"{name}: {wrong} boxes have wrong scores"
    return facts
