"""The measurements of tiled_detection.py, each of which gives rows of a table."""

import time
from argparse import Namespace
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
from tinyops.evaluation.matching import DUPLICATE, FALSE, match
from tinyops.evaluation.sized_ap import TINYPERSON_BANDS, sized_ap
from tinyops.models import load

SEED = 7070  # of the scenes; no training draws from this set
DENSITY = 2.6  # people in 256 x 256 px, a thousand in the large scene
CROWD = 22_500  # people of the simulated detector, which finds 20,000 of them
SEAM = 100  # overlap of the tiles for quality, in pixels
MAX_DETECTIONS = 3000  # that AP counts, of an image
SURE = 0.5  # score of the detections that are counted one by one
BANDS = {name: TINYPERSON_BANDS[name] for name in ("tiny", "all")}

Row = dict[str, Any]


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


def measure_quality(options: Namespace) -> list[Row]:
    """AP and errors of every way to merge the same detections, and the speed of each."""
    cut = Cut((640, 512), SEAM, options.batch)
    network = warm(options, cut)
    scenes = [
        make_scene(SEED, 2 + k, tuple(options.size), density=DENSITY) for k in range(options.scenes)
    ]
    recorded = [record(network, image, cut) for image, _ in scenes]
    truths = [annotations for _, annotations in scenes]

    plain = {
        "whole image, no tiles": [each.whole for each in recorded],
        "tiles, no merging": [each.unmerged for each in recorded],
    }
    rows = [{"method": name, **score(found, truths, recorded)} for name, found in plain.items()]
    rows.insert(1, {"method": "each tile by itself", **score_tiles(recorded, truths)})
    for name, slicer in slicers().items():
        if isinstance(slicer, str):
            rows.append({"method": name, "not measured": slicer})
            continue
        slicer(recorded[0].replay, scenes[0][0], cut)  # Numba compiles
        found, seconds, merging = [], 0.0, 0.0
        for (image, _), each in zip(scenes, recorded, strict=True):
            each.replay.seconds = 0.0
            start = time.perf_counter()
            found.append(slicer(each.replay, image, cut))
            seconds += time.perf_counter() - start - each.replay.seconds
            merging += found[-1].merging
        tiles = sum(len(each.windows) for each in recorded)
        rows.append(
            {
                "method": name,
                **score(found, truths, recorded),
                "ms merging": 1e3 * merging / len(scenes),
                "ms outside the network": 1e3 * seconds / len(scenes),
                "tiles/s": time_of(name, slicer, network, scenes[0][0], cut)["tiles/s"],
            }
        )
        rows[-1]["tiles"] = tiles
    return rows
