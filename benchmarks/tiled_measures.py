"""The measurements of tiled_detection.py, each of which gives rows of a table."""

import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from distributions import HEIGHT, WIDTH
from harness import peak_memory
from memory import growth
from numpy.typing import NDArray
from peers import installed
from slicers import Cut, Found, Network, Replay, Slicer, sahi, slicers, tinyops, to_float
from tiles import OVERLAP, scene
from torch import Tensor, nn

from tinyops.data.synth import make_scene
from tinyops.data.tiles import Window, clip_to_window, tile_windows
from tinyops.evaluation import tinyperson
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND
from tinyops.evaluation.matcher import match_image
from tinyops.models import load

SEED = 7070  # of the scenes; no training draws from this set
DENSITY = 2.6  # people in 256 x 256 px, a thousand in the large scene
CROWD = 21_200  # people of the simulated detector, which finds 20,000 of them
MIN_VISIBLE = 0.7  # square root of the share of an object that a tile must show
MAX_DETECTIONS = 3000  # that AP counts, of an image
SURE = 0.5  # score of the detections that are counted one by one
ROUNDS = 2
BANDS = {name: tinyperson.BANDS[name] for name in ("tiny", "all")}

Row = dict[str, Any]
Annotations = list[dict[str, Any]]


class Crowded(nn.Module):
    """A simulated detector's boxes for tile after tile; `network`, if any, sees the tiles too."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.found = simulated()
        self.seen, self.seconds = 0, 0.0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        start = time.perf_counter()
        if self.network is not None:
            self.network(images)
        first, self.seen = self.seen, self.seen + len(images)
        found = [self.found[k % len(self.found)] for k in range(first, self.seen)]
        self.seconds += time.perf_counter() - start
        return found


def simulated() -> list[dict[str, Tensor]]:
    """Boxes, scores and labels in each of the 99 tiles."""
    each = scene("uniform", CROWD)
    boxes, scores = torch.from_numpy(each.in_tiles), torch.from_numpy(each.scores)
    here = [torch.from_numpy(each.tile_ids == k) for k in range(len(each.windows))]
    return [
        {"boxes": boxes[k], "scores": scores[k], "labels": torch.ones(int(k.sum())).long()}
        for k in here
    ]


def measure_speed(options: Namespace) -> list[Row]:
    """Time of 99 tiles: all of it, inside the network, and merging."""
    cut = Cut((640, 512), OVERLAP, options.batch)
    image = make_scene(SEED, 0, (WIDTH, HEIGHT), density=DENSITY)[0]
    network = warm(options, cut)
    rows = [
        time_of("tinyops", tinyops, network, image, cut),
        time_of("tinyops, 20,000 boxes", tinyops, Crowded(network), image, cut),
        time_of("tinyops, 20,000 boxes, no network", tinyops, Crowded(), image, cut),
    ]
    if installed("sahi"):
        default = sahi("GREEDYNMM", "IOS")
        default(Crowded(), image[:900, :1200], cut)  # Numba compiles
        name = "sahi, 20,000 boxes, no network"
        rows.append(time_of(name, default, Crowded(), image, cut))
    return rows


def warm(options: Namespace, cut: Cut) -> Network:
    network = Network(load(options.model), options.amp)
    network([torch.rand(3, cut.tile[1], cut.tile[0])] * cut.batch)
    return network


def time_of(name: str, slicer: Slicer, model: Any, image: NDArray[np.uint8], cut: Cut) -> Row:
    model.seconds = 0.0
    start = time.perf_counter()
    found = slicer(model, image, cut)
    seconds = time.perf_counter() - start
    tiles = len(windows_of(image, cut))
    return {
        "run": name,
        "tiles": tiles,
        "boxes": len(found.scores),
        "s": seconds,
        "tiles/s": tiles / seconds,
        "network s": model.seconds,
        "merging s": found.merging,
        "outside": 1 - model.seconds / seconds,
    }


def measure_memory(options: Namespace) -> list[Row]:
    """What tiling adds to the image and the network, and a run with it; plain malloc."""
    cut = Cut((640, 512), OVERLAP, options.batch)
    image = make_scene(SEED, 1, (640 + 610 * 3, 512 + 482 * 3), density=DENSITY)[0]  # 16 tiles
    large = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    crowded, network = Crowded(), Network(load(options.model), options.amp)
    rows = []
    for name, model, pixels in (
        ("20,000 boxes, no network", crowded, large),
        ("with the network", network, image),
    ):
        rows.append(
            {
                "run": name,
                "tiles": len(windows_of(pixels, cut)),
                "image MB": pixels.nbytes / 1e6,
                "MB of the process": growth(lambda m=model, p=pixels: tinyops(m, p, cut)) / 1e6,
                "MB of tensors": peak_memory(
                    lambda m=model, p=pixels: tinyops(m, p, cut), torch.device("cpu")
                )
                / 1e6,
            }
        )
    return rows


@dataclass(frozen=True)
class Recorded:
    """A scene, and what the network finds in it, which `replay` gives again."""

    image: NDArray[np.uint8]
    truth: Annotations
    windows: list[Window]
    tiles: list[dict[str, Tensor]]
    whole: dict[str, Tensor]
    replay: Replay

    @property
    def unmerged(self) -> Found:
        corners = torch.tensor([[*window[:2], *window[:2]] for window in self.windows])
        boxes = [x["boxes"] + corner for x, corner in zip(self.tiles, corners, strict=True)]
        scores = [x["scores"] for x in self.tiles]
        return Found(torch.cat(boxes).numpy(), torch.cat(scores).numpy())

    @property
    def tile_of(self) -> dict[float, int]:
        """Tile by score: merging changes boxes, and keeps the score of the best one."""
        return {
            score: k for k, x in enumerate(self.tiles) for score in x["scores"].double().tolist()
        }


def record(network: Network, index: int, size: tuple[int, int], cut: Cut) -> Recorded:
    image, truth = make_scene(SEED, index, size, density=DENSITY)
    replay, tiles, windows = Replay(), [], windows_of(image, cut)
    for x1, y1, x2, y2 in windows:
        pixels = to_float(image[y1:y2, x1:x2])
        tiles += network([pixels])
        replay.record(pixels, tiles[-1])
    (whole,) = network([to_float(image)])
    replay.record(to_float(image), whole)
    return Recorded(image, truth, windows, tiles, whole, replay)


def windows_of(image: NDArray[np.uint8], cut: Cut) -> list[Window]:
    return tile_windows(image.shape[1], image.shape[0], cut.tile, cut.overlap)


def measure_quality(options: Namespace) -> list[Row]:
    """AP and errors of every way to merge the same detections, and the time of each."""
    cut = Cut((640, 512), options.overlap, options.batch)
    network = warm(options, cut)
    scenes = [record(network, 2 + k, tuple(options.size), cut) for k in range(options.scenes)]
    whole = [Found(x.whole["boxes"].numpy(), x.whole["scores"].numpy()) for x in scenes]
    rows = [
        {"method": "whole image, no tiles", **score(scenes, whole), "across tiles": None},
        {"method": "each tile by itself", **ap(*tiles_as_images(scenes), cut.tile[::-1])},
        {"method": "no merging", **score(scenes, [each.unmerged for each in scenes])},
    ]
    for name, slicer in slicers().items():
        if isinstance(slicer, str):
            rows.append({"method": f"{name}: {slicer}"})
            continue
        slicer(scenes[0].replay, scenes[0].image, cut)  # Numba compiles
        runs = [time_of(name, slicer, each.replay, each.image, cut) for each in scenes]
        found = [slicer(each.replay, each.image, cut) for each in scenes]
        outside = sum(run["s"] - run["network s"] for run in runs)
        tiles = sum(run["tiles"] for run in runs)
        rows.append(
            {
                "method": name,
                **score(scenes, found),
                "merging ms": 1e3 * sum(run["merging s"] for run in runs) / len(runs),
                "outside the network ms/tile": 1e3 * outside / tiles,
            }
        )
    for _ in range(ROUNDS):  # in turns: what slows the machine down for a while slows all
        for row in rows:
            slicer = slicers().get(row["method"])
            if callable(slicer):
                speed = time_of(row["method"], slicer, network, scenes[0].image, cut)["tiles/s"]
                row["tiles/s"] = max(speed, row.get("tiles/s", 0.0))
    return rows


def score(scenes: list[Recorded], found: list[Found]) -> Row:
    """AP over all scenes, and the errors of the sure detections."""
    row = ap([each.truth for each in scenes], found, scenes[0].image.shape[:2])
    row |= dict.fromkeys(("duplicates", "across tiles", "false", "missed"), 0)
    for each, result in zip(scenes, found, strict=True):
        sure = result.scores >= SURE
        boxes, scores = result.boxes[sure], result.scores[sure]
        objects, regions = split(each.truth)
        kinds, targets = match_image(boxes, scores, corners(objects), corners(regions))
        tiles = np.array([each.tile_of.get(float(score), -1) for score in scores])
        owners = dict(zip(targets[kinds == FOUND], tiles[kinds == FOUND], strict=True))
        row["duplicates"] += int((kinds == DUPLICATE).sum())
        twice = np.flatnonzero(kinds == DUPLICATE)
        row["across tiles"] += sum(bool(owners[targets[k]] != tiles[k]) for k in twice)
        row["false"] += int((kinds == FALSE).sum())
        row["missed"] += len(objects) - len(owners)
    return row


def ap(truths: list[Annotations], found: list[Found], size: tuple[int, ...]) -> Row:
    """AP50 of images of the same size."""
    images, annotations, results = [], [], []
    for k, (truth, each) in enumerate(zip(truths, found, strict=True), 1):
        images.append({"id": k, "height": size[0], "width": size[1]})
        annotations += [{**x, "image_id": k} for x in truth]
        boxes = np.concatenate([each.boxes[:, :2], each.boxes[:, 2:] - each.boxes[:, :2]], 1)
        for box, score in zip(boxes.tolist(), each.scores.tolist(), strict=True):
            results.append({"image_id": k, "category_id": 1, "bbox": box, "score": score})
    categories = [{"id": 1, "name": "person"}]
    values = tinyperson.sized_ap(
        {"images": images, "annotations": annotations, "categories": categories},
        results,
        bands=BANDS,
        thresholds=[0.5],
        max_detections=MAX_DETECTIONS,
    )
    return {f"AP50 {band}": value for (band, _), value in values.items()}


def tiles_as_images(scenes: list[Recorded]) -> tuple[list[Annotations], list[Found]]:
    """What each tile shows of the truth, and what was found in it.

    Objects of which it shows less than 49 % of the area are regions: finding them is no error.
    """
    truths, found = [], []
    for each in scenes:
        boxes = torch.from_numpy(corners(each.truth))
        for window, x in zip(each.windows, each.tiles, strict=True):
            found.append(Found(x["boxes"].numpy(), x["scores"].numpy()))
            clipped, visible = clip_to_window(boxes, window)
            clipped[:, 2:] -= clipped[:, :2]  # x y w h
            truths.append(
                [
                    {
                        **each.truth[k],
                        "bbox": clipped[k].tolist(),
                        "area": float(clipped[k, 2:].prod()),
                        "ignore": each.truth[k]["ignore"] or bool(visible[k] < MIN_VISIBLE),
                    }
                    for k in visible.nonzero()[:, 0].tolist()
                ]
            )
    return truths, found


def split(truth: Annotations) -> tuple[Annotations, Annotations]:
    """Objects, and regions that do not count."""
    parts: tuple[Annotations, Annotations] = ([], [])
    for entry in truth:
        parts[bool(entry["ignore"] or entry["uncertain"])].append(entry)
    return parts


def corners(truth: Annotations) -> NDArray[np.float64]:
    boxes = np.array([x["bbox"] for x in truth], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
