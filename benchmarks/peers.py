"""Packages that do the same work, each with its own ways: extra `bench` of this project."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Peer
from numpy.typing import NDArray
from torch import Tensor

NMS_PACKAGES = ("torchvision", "lsnms", "powerboxes", "sahi", "supervision")


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {
        name: importlib.metadata.version(name) if installed(name) else "not installed"
        for name in packages
    }


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def peer(package: str, prepare: Callable[..., Call], refusal: str | None = None) -> Peer:
    """A peer from `package`, not measured because of `refusal` or because it is not installed."""
    return Peer(prepare, refusal if installed(package) else "not installed")


def on(device: torch.device, *arrays: NDArray | None) -> list[Any]:
    return [None if x is None else torch.from_numpy(x).to(device) for x in arrays]


def suppressors(
    n: int, device: torch.device, threshold: float, metric: str = "iou"
) -> dict[str, Peer]:
    """Peers of nms; a call is prepared from boxes, scores and labels or None, all of numpy.

    Results are arrays or tensors of indices, best first.
    """
    large = "on a CPU only up to 100k boxes: 22 s" if n > 100_000 else None
    if device.type == "cuda":
        large = "mask of more than 11 GB" if n > 300_000 else None
    no_gpu = "CPU only" if device.type == "cuda" else None
    return {
        "torchvision": peer("torchvision", _torchvision(device, threshold), large),
        "lsnms": peer("lsnms", _lsnms(threshold), no_gpu),
        "powerboxes": peer(
            "powerboxes",
            _powerboxes(threshold),
            no_gpu or ("panics without boxes" if not n else None),
        ),
        "sahi": peer(
            "sahi",
            sahi_nms(threshold, metric.upper()),
            no_gpu or ("only up to 100k boxes: minutes" if n > 100_000 else None),
        ),
        "supervision": peer(
            "supervision",
            _supervision(threshold),
            no_gpu or ("only up to 2k boxes: N x N matrix" if n > 2_000 else None),
        ),
    }


def _torchvision(device: torch.device, threshold: float) -> Callable[..., Call]:
    def prepare(boxes: NDArray, scores: NDArray, labels: NDArray | None = None) -> Call:
        from torchvision.ops import batched_nms, nms

        b, s, ids = on(device, boxes, scores, labels)
        if ids is None:
            return lambda: nms(b, s, threshold)
        return lambda: batched_nms(b, s, ids, threshold)

    return prepare


def _lsnms(threshold: float) -> Callable[..., Call]:
    def prepare(boxes: NDArray, scores: NDArray, labels: NDArray | None = None) -> Call:
        import lsnms

        return lambda: lsnms.nms(boxes, scores, threshold, class_ids=labels)

    return prepare


def _powerboxes(threshold: float) -> Callable[..., Call]:
    def prepare(boxes: NDArray, scores: NDArray, labels: NDArray | None = None) -> Call:
        import powerboxes

        assert labels is None, "powerboxes has no labels"
        double = scores.astype(np.float64)
        return lambda: powerboxes.rtree_nms(boxes, double, threshold, 0.0).astype(np.int64)

    return prepare


def sahi_nms(threshold: float, metric: str) -> Callable[..., Call]:
    """SAHI's suppression on plain arrays, compiled by Numba."""

    def prepare(boxes: NDArray, scores: NDArray, labels: NDArray | None = None) -> Call:
        combine = sahi_combine()
        ids = np.zeros(len(boxes)) if labels is None else labels
        rows = np.column_stack([boxes, scores, ids]).astype(np.float32)
        function = combine.nms if labels is None else combine.batched_nms
        return lambda: np.array(function(rows, metric, threshold), np.int64)

    return prepare


def sahi_combine() -> Any:
    """The module, with the backend that it chooses itself where there is Numba but no GPU."""
    from sahi.postprocess import backends, combine

    backends.set_postprocess_backend("numba")
    return combine


def _supervision(threshold: float) -> Callable[..., Call]:
    def prepare(boxes: NDArray, scores: NDArray, labels: NDArray | None = None) -> Call:
        import supervision

        ids = np.zeros(len(boxes), int) if labels is None else labels
        number = {"number": np.arange(len(boxes))}
        found = supervision.Detections(xyxy=boxes, confidence=scores, class_id=ids, data=number)

        def call() -> NDArray:
            kept = found.with_nms(threshold)
            return kept.data["number"][np.argsort(-kept.confidence, kind="stable")]

        return call

    return prepare


def as_array(result: NDArray | Tensor) -> NDArray:
    return result.cpu().numpy() if isinstance(result, Tensor) else np.asarray(result)
