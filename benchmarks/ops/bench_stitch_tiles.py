"""stitch_tiles on simulated detections from 99 tiles of 640 x 512 px that overlap by 30 px.

Mode `time`: against suppression of the boxes moved into the image beforehand. Mode `quality`: how
many of the people are still there after merging, for every method, on one scene.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import HEIGHT, WIDTH, assert_greedy, detections
from numpy.typing import NDArray
from peers import NMS_PACKAGES, as_array, installed, on, sahi_combine, sahi_nms, suppressors
from tiles import Scene, owned_by_core, quality, scene

from tinyops.ops import nms, stitch_tiles

THRESHOLD = 0.5
SHAPES = {
    f"{kind}-{people // 1000}k": (kind, people)
    for people in (2_000, 8_000, 20_000)
    for kind in ("crowd", "uniform")
}
MODES = ("time", "quality")
PACKAGES = NMS_PACKAGES

DEFAULT_SHAPES = {"cpu": ("crowd-20k", "uniform-20k", "crowd-2k"), "cuda": ("crowd-20k",)}
QUICK_SHAPES = {"cpu": ("crowd-20k",), "cuda": ("crowd-20k",)}
DEFAULT_MODES = MODES

Method = Callable[[], tuple[NDArray, NDArray]]  # boxes and scores


def case(shape: str, mode: str, device: torch.device) -> Case:
    kind, wanted = SHAPES[shape]
    first = scene(kind, wanted)

    def make(seed: int) -> Inputs:
        return _inputs(scene(kind, wanted, 2 * seed))

    peers = {"tinyops": Peer(_stitch(device)), "tinyops nms": Peer(_nms(device))}
    peers |= {
        name: Peer(_on_image(peer.prepare), peer.refusal)
        for name, peer in suppressors(len(first.boxes), device, THRESHOLD).items()
        if name in ("torchvision", "lsnms")
    }

    def check(inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
        boxes, scores = inputs[:2]
        assert_greedy(boxes, scores, as_array(results["tinyops nms"]), THRESHOLD)
        keep = as_array(results["tinyops"])
        assert len(np.unique(keep)) == len(keep), "an index comes twice"
        found = quality(first.people, boxes[keep], scores[keep])
        assert found["TP"] > 0.94 * len(first.people), f"{found}"
        assert found["duplicates"] + found["false"] < 0.002 * len(first.people), f"{found}"
        return {"kept": len(keep), "kept by nms": len(results["tinyops nms"])}

    return Case(
        shape=shape,
        mode=mode,
        columns={"people": len(first.people), "boxes": len(first.boxes)},
        make=make,
        small=[_inputs(scene(kind, 500))],
        peers=peers,
        check=check,
        memory=("tinyops", "tinyops nms", "torchvision"),
        most_sets=16,  # each scene takes half a second to make
    )


def _inputs(each: Scene) -> Inputs:
    """In the image and in tiles: a peer takes what it works on."""
    return each.boxes, each.scores, each.in_tiles, each.tile_ids, each.windows


def _nms(device: torch.device) -> Callable[..., Call]:
    def prepare(boxes: NDArray, scores: NDArray, *_: NDArray) -> Call:
        b, s = on(device, boxes, scores)
        return lambda: nms(b, s, THRESHOLD)

    return prepare


def _on_image(prepare: Callable[..., Call]) -> Callable[..., Call]:
    return lambda boxes, scores, *_: prepare(boxes, scores)


def _stitch(device: torch.device, **options: Any) -> Callable[..., Call]:
    def prepare(
        _: NDArray, scores: NDArray, in_tiles: NDArray, tile_ids: NDArray, windows: NDArray
    ) -> Call:
        b, s, ids, w = on(device, in_tiles, scores, tile_ids, windows)
        labels = torch.zeros_like(ids)
        sizes = torch.tensor([[HEIGHT, WIDTH]], device=device)
        return lambda: stitch_tiles(b, s, labels, ids, w, sizes, **options)

    return prepare


def measure_quality(shape: str, device: torch.device, only: list[str] | None) -> dict[str, Any]:
    kind, wanted = SHAPES[shape]
    each = scene(kind, wanted)
    for method in methods(scene(kind, 500), device, only).values():
        if not isinstance(method, str):
            method()
    # Few and dense, many and sparse: SAHI compiles another function for each.
    crowded = detections("crowd", 3000, 0, (400.0, 300.0))
    for metric in ("IOU", "IOS") if installed("sahi") else ():
        sahi_nms(THRESHOLD, metric)(*crowded)()
    rows = []
    for name, method in methods(each, device, only).items():
        if isinstance(method, str):
            rows.append({"method": name, "not_measured": method})
            continue
        start = time.perf_counter_ns()
        boxes, scores = method()
        ms = (time.perf_counter_ns() - start) / 1e6
        rows.append({"method": name, **quality(each.people, boxes, scores), "ms": ms})
    return {
        "kind": "quality",
        "shape": shape,
        "people": len(each.people),
        "boxes": len(each.boxes),
        "methods": rows,
    }


def methods(each: Scene, device: torch.device, only: list[str] | None) -> dict[str, Method | str]:
    """Every way to merge, or why it is not measured."""
    inputs = _inputs(each)
    n = len(each.boxes)

    def keeping(call: Call) -> Method:
        def method() -> tuple[NDArray, NDArray]:
            keep = as_array(call())
            return each.boxes[keep], each.scores[keep]

        return method

    def union() -> tuple[NDArray, NDArray]:
        boxes, scores, *_ = _stitch(device, merge="union")(*inputs)()
        return as_array(boxes), as_array(scores)

    chosen: dict[str, Method | str] = {
        "no merge": lambda: (each.boxes, each.scores),
        "core ownership": keeping(lambda: owned_by_core(each)),
        "tinyops nms, IoU": keeping(_nms(device)(*inputs)),
    }
    for name, peer in suppressors(n, device, THRESHOLD).items():
        if name == "supervision" and peer.refusal and n <= 12_000:
            continue
        if name in ("torchvision", "lsnms", "supervision"):
            chosen[f"{name}, IoU"] = peer.refusal or keeping(peer.prepare(each.boxes, each.scores))
    refusal = None if installed("sahi") else "not installed"
    chosen["sahi NMS, IoS"] = refusal or keeping(
        sahi_nms(THRESHOLD, "IOS")(each.boxes, each.scores)
    )
    chosen["sahi GREEDYNMM, IoS (its default)"] = refusal or (lambda: _sahi_default(each))
    chosen["tinyops stitch_tiles"] = keeping(_stitch(device)(*inputs))
    chosen["tinyops stitch_tiles, union"] = union
    return {
        name: method
        for name, method in chosen.items()
        if only is None or name.startswith(("tinyops", *only))
    }


def _sahi_default(each: Scene) -> tuple[NDArray, NDArray]:
    """Through its objects, whose construction belongs to the time: there is no other way."""
    from sahi.prediction import ObjectPrediction

    objects = [
        ObjectPrediction(
            bbox=box, score=score, category_id=0, category_name="person", full_shape=[HEIGHT, WIDTH]
        )
        for box, score in zip(each.boxes.tolist(), each.scores.tolist(), strict=True)
    ]
    merge = sahi_combine().GreedyNMMPostprocess(
        match_threshold=THRESHOLD, match_metric="IOS", class_agnostic=False
    )
    merged = merge(objects)
    boxes = np.array([x.bbox.to_xyxy() for x in merged], np.float32)
    return boxes, np.array([x.score.value for x in merged], np.float32)


TABLES = {"quality": measure_quality}  # modes that are not rows of times
