"""Detection by tiles as tinyops, SAHI and supervision do it, each through its public interface."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import installed, sahi_combine
from torch import Tensor, nn

from tinyops.inference.engine import detect_sources
from tinyops.inference.source import ArraySource
from tinyops.inference.types import Detection
from tinyops.models.detectors import Detector


@dataclass(frozen=True)
class Cut:
    """The same tiles for all: their width and height, the overlap, and how many at once."""

    tile: tuple[int, int]
    overlap: int
    batch: int


@dataclass(frozen=True)
class Found:
    boxes: NDArray  # [K, 4] x1 y1 x2 y2 in the image
    scores: NDArray  # [K]
    merging: float = 0.0  # seconds


Slicer = Callable[[nn.Module, NDArray[np.uint8], Cut], Found]


class Network(nn.Module):
    """The model that all of them call; it adds up its time."""

    def __init__(self, model: Detector, amp: str) -> None:
        super().__init__()
        self.model, self.amp = model, amp
        self.seconds = 0.0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        start = time.perf_counter()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.amp == "bf16")
        with torch.inference_mode(), autocast:
            found = self.model(images)
        self.seconds += time.perf_counter() - start
        return found


class Replay(nn.Module):
    """Gives what was recorded of each image, which it knows by some pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[bytes, dict[str, Tensor]] = {}
        self.seconds = 0.0

    def record(self, image: Tensor, found: dict[str, Tensor]) -> None:
        self.recorded[_key(image)] = found

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        start = time.perf_counter()
        found = [self.recorded[_key(image)] for image in images]
        self.seconds += time.perf_counter() - start
        return found


def _key(image: Tensor) -> bytes:
    some = (image[:, ::61, ::59] * 255).round().to(torch.uint8)
    return repr(tuple(image.shape)).encode() + some.numpy().tobytes()


def to_float(pixels: NDArray[np.uint8]) -> Tensor:
    """[h, w, 3] bytes to [3, h, w] floats in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255


def tinyops(model: nn.Module, image: NDArray[np.uint8], cut: Cut, min_score: float = 0.0) -> Found:
    how = Detection(tile=cut.tile, overlap=cut.overlap, batch=cut.batch, min_score=min_score)
    (result,) = detect_sources(model, [ArraySource(image, name="scene")], how, device="cpu")
    return Found(result["boxes"].numpy(), result["scores"].numpy(), result.seconds["stitch"])


def sahi(kind: str, metric: str, *, least: float = 0.0, whole: bool = False) -> Slicer:
    """SAHI with its own wrapper of torchvision's models, which takes one tile at a time.

    Args:
        kind: "GREEDYNMM" (its default), "NMS", ...
        metric: "IOS" (its default) or "IOU".
        least: scores above this are looked at; its default is 0.3.
        whole: with its pass over the whole image, which it makes by default.
    """

    def call(model: nn.Module, image: NDArray[np.uint8], cut: Cut) -> Found:
        from sahi.models.torchvision import TorchVisionDetectionModel
        from sahi.predict import get_sliced_prediction

        sahi_combine()  # with numba
        wrapped = TorchVisionDetectionModel(
            model=model,
            confidence_threshold=least,
            category_mapping={"1": "person"},
            device="cpu",
        )
        width, height = cut.tile
        result = get_sliced_prediction(
            image,
            wrapped,
            slice_height=height,
            slice_width=width,
            overlap_height_ratio=cut.overlap / height,
            overlap_width_ratio=cut.overlap / width,
            perform_standard_pred=whole,
            postprocess_type=kind,
            postprocess_match_metric=metric,
            force_postprocess_type=True,  # below a confidence of 0.1 it would take NMS and IOU
            verbose=0,
        )
        objects = result.object_prediction_list
        boxes = np.array([x.bbox.to_xyxy() for x in objects], np.float32).reshape(-1, 4)
        scores = np.array([x.score.value for x in objects], np.float32)
        return Found(boxes, scores, result.durations_in_seconds["postprocess"])

    return call


def supervision(model: nn.Module, image: NDArray[np.uint8], cut: Cut) -> Found:
    """Its defaults: suppression by IoU at 0.5."""
    import supervision as sv

    def callback(tiles: list[NDArray[np.uint8]]) -> list[Any]:
        found = model([to_float(tile) for tile in tiles])
        return [
            sv.Detections(
                xyxy=x["boxes"].numpy(),
                confidence=x["scores"].numpy(),
                class_id=x["labels"].numpy(),
            )
            for x in found
        ]

    one: Any = callback if cut.batch > 1 else lambda tile: callback([tile])[0]
    slicer = sv.InferenceSlicer(
        one, slice_wh=cut.tile, overlap_wh=cut.overlap, batch_size=cut.batch
    )
    merging = 0.0
    apply = slicer._apply_overlap_filter

    def timed(merged: Any) -> Any:
        nonlocal merging
        start = time.perf_counter()
        kept = apply(merged)
        merging = time.perf_counter() - start
        return kept

    slicer._apply_overlap_filter = timed
    kept = slicer(image)
    return Found(kept.xyxy, kept.confidence, merging)


def slicers() -> dict[str, Slicer | str]:
    """Name -> slicer, or why it is not measured."""
    peers: dict[str, tuple[str, Slicer]] = {
        "sahi, its default": ("sahi", sahi("GREEDYNMM", "IOS", least=0.3, whole=True)),
        "sahi, without the whole image": ("sahi", sahi("GREEDYNMM", "IOS", least=0.3)),
        "sahi, the same, all scores": ("sahi", sahi("GREEDYNMM", "IOS")),
        "sahi, NMS with IoU, all scores": ("sahi", sahi("NMS", "IOU")),
        "supervision, its default": ("supervision", supervision),
    }
    chosen: dict[str, Slicer | str] = {
        "tinyops": tinyops,
        "tinyops, scores from 0.3": functools.partial(tinyops, min_score=0.3),
    }
    for name, (package, slicer) in peers.items():
        chosen[name] = slicer if installed(package) else "not installed"
    return chosen
