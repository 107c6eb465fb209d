"""nms at IoU 0.5, of boxes of 2-20 px in an image of 6354 x 4064 px; mode `labels`: 8 classes."""

from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import KINDS, assert_greedy, detections
from numpy.typing import NDArray
from peers import NMS_PACKAGES, as_array, on, suppressors

from tinyops.ops import nms

THRESHOLD = 0.5
LABELS = 8
SIZES = {
    **{str(n): n for n in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)},
    **{f"{n}k": 1000 * n for n in (1, 2, 5, 10, 20, 50, 100, 300)},
    "1M": 1_000_000,
}
SHAPES = {f"{kind}-{size}": (kind, n) for kind in KINDS for size, n in SIZES.items()}
SHAPES |= {size: ("dup", n) for size, n in SIZES.items() if n < 1000}
MODES = ("nms", "labels")
PACKAGES = NMS_PACKAGES

DEFAULT_SHAPES = {
    "cpu": (
        *("0", "1", "2", "10", "100"),
        *(f"{kind}-{size}" for size in ("1k", "10k", "100k", "300k", "1M") for kind in KINDS),
    ),
    "cuda": (
        *("0", "1", "10", "100"),
        *(f"{kind}-{size}" for size in ("1k", "10k", "100k", "1M") for kind in KINDS),
    ),
}
QUICK_SHAPES = {
    "cpu": (
        *("0", "10", "100"),
        *(f"{kind}-{size}" for size in ("1k", "10k") for kind in KINDS),
        "crowd-100k",
    ),
    "cuda": ("100", "crowd-1k", "crowd-10k", "uniform-100k", "crowd-100k", "crowd-1M"),
}
DEFAULT_MODES = ("nms",)


def case(shape: str, mode: str, device: torch.device) -> Case:
    kind, n = SHAPES[shape]

    def make(seed: int, n: int = n, **options: Any) -> Inputs:
        boxes, scores = detections(kind, n, seed, **options)
        labels = np.random.default_rng(seed).integers(0, LABELS, n) if mode == "labels" else None
        return boxes, scores, labels

    def check(inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
        boxes, scores, labels = inputs
        arrays = {name: as_array(result) for name, result in results.items()}
        if labels is None and device.type == "cpu" and "torchvision" in arrays:  # CUDA's has FMAs
            same = np.array_equal(arrays["tinyops"], arrays["torchvision"])
            assert same, "tinyops differs from torchvision"
        return check_keep(boxes, scores, labels, arrays)

    peers = {"tinyops": Peer(tinyops_nms(device))} | suppressors(n, device, THRESHOLD)
    if mode == "labels":
        del peers["powerboxes"]  # has no labels
    few = min(n, 3000)
    return Case(
        shape=shape,
        mode=mode,
        columns={"distribution": kind, "N": n},
        make=make,
        # Sparse and dense: SAHI compiles another function for each.
        small=[make(1000, few), make(1001, few, image=(400.0, 300.0))],
        peers=peers,
        check=check,
        memory=("tinyops", "torchvision", "lsnms") if n >= 10_000 else (),
    )


def tinyops_nms(device: torch.device) -> Any:
    def prepare(boxes: NDArray, scores: NDArray, labels: NDArray | None = None) -> Call:
        b, s, ids = on(device, boxes, scores, labels)
        if ids is None:
            return lambda: nms(b, s, THRESHOLD)
        return lambda: nms(b, s, THRESHOLD, labels=ids)

    return prepare


def check_keep(
    boxes: NDArray, scores: NDArray, labels: NDArray | None, results: dict[str, NDArray]
) -> dict[str, str | int]:
    """tinyops must be right to the last index; the others may differ a little, and it is said.

    lsnms for one drops boxes of score 0, suppresses at the threshold, and breaks ties otherwise.
    """
    keep = results["tinyops"]
    for label in [None] if labels is None else range(LABELS):
        mine = np.arange(len(boxes)) if labels is None else np.flatnonzero(labels == label)
        within = keep if labels is None else keep[labels[keep] == label]
        assert_greedy(boxes[mine], scores[mine], np.searchsorted(mine, within), THRESHOLD)
    assert (np.diff(scores[keep]) <= 0).all(), "tinyops: not in order of score"
    facts: dict[str, str | int] = {"kept": len(keep)}
    others = {}
    for name, other in results.items():
        if differing := len(np.setxor1d(keep, other)):
            others[name] = differing
            most = 2 + len(boxes) // 1000
            assert differing <= most, f"{name}: {differing} boxes differ"
    if others:
        facts["differ"] = ", ".join(f"{name} {count}" for name, count in others.items())
    return facts
