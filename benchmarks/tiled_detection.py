"""Detection by tiles: its speed and memory, and how well stitched tiles find people.

    python benchmarks/tiled_detection.py --threads 2
    python benchmarks/tiled_detection.py --model best.safetensors --parts quality --scenes 4

`speed`: a scene of 6354 x 4064 px in 99 tiles that overlap by 30 px. The network runs on every tile;
in the second row its output is replaced by that of a simulated detector, so that 20,000 boxes come
out. Below, without a network: what is left of the time, and of a peer's. `quality`: scenes of
TinySea, in tiles that overlap by 100 px. The network sees every tile, and the whole image, once;
every method then gets these detections through its own interface, and so differs in nothing but
the merging. Then each runs with the network itself, for tiles per second.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import restart_in, wanted_environment

PARTS = ("speed", "quality")
LARGE = (6354, 4064)
SEED = 7070  # of the scenes; no training draws from this set
DENSITY = 2.6  # people in 256 x 256 px, a thousand in the large scene
CROWD = 22_000  # people of the simulated detector, of whom 20,000 are found
MAX_DETECTIONS = 3000  # that AP counts, of an image
SURE = 0.5  # score of detections that count as duplicates and false alarms
PACKAGES = ("torchvision", "sahi", "supervision", "numba")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="embedded, or a file")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--tile", type=int, nargs=2, default=(640, 512), help="width, height")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--amp", default="none", choices=("none", "bf16"))
    parser.add_argument("--scenes", type=int, default=2, help="of quality")
    parser.add_argument("--size", type=int, nargs=2, default=(1700, 1300), help="of these")
    parser.add_argument("--large", type=int, nargs=2, default=LARGE, help="of the scene of speed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--malloc", default="tuned", choices=("tuned", "default"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # a process of its own
    return parser.parse_args(arguments)


# --- speed ---------------------------------------------------------------------------------------


class Crowded:
    """A simulated detector's boxes for the tiles in turn, after `network`, if any, has seen them."""

    def __init__(self, found: list[dict[str, Any]], network: Any = None) -> None:
        self.found, self.network = found, network
        self.seen, self.seconds = 0, 0.0

    def __call__(self, images: list[Any]) -> list[dict[str, Any]]:
        start = time.perf_counter()
        if self.network is not None:
            self.network(images)
        first, self.seen = self.seen, self.seen + len(images)
        found = [self.found[k % len(self.found)] for k in range(first, self.seen)]
        self.seconds += time.perf_counter() - start
        return found


def simulated() -> list[dict[str, Any]]:
    """Boxes, scores and labels in each of the 99 tiles."""
    import torch
    from tiles import scene

    each = scene("uniform", CROWD)
    boxes, scores = torch.from_numpy(each.in_tiles), torch.from_numpy(each.scores)
    here = [torch.from_numpy(each.tile_ids == k) for k in range(len(each.windows))]
    return [
        {"boxes": boxes[k], "scores": scores[k], "labels": torch.ones(int(k.sum())).long()}
        for k in here
    ]


def measure_speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    import numpy as np
    from slicers import Cut, Network, sahi, tinyops

    from tinyops.data.synth import make_scene

    image = make_scene(SEED, 0, tuple(options.large), density=DENSITY)[0]
    cut = Cut(tuple(options.tile), 30, options.batch)
    network = Network(load(options.model), options.amp)
    network([_float(image[: cut.tile[1], : cut.tile[0]])] * cut.batch)  # warms up
    network.seconds = 0.0
    found = simulated()
    blank = np.zeros_like(image)
    runs: dict[str, tuple[Any, Any, Any]] = {
        "tinyops": (tinyops, network, image),
        "tinyops, 20,000 boxes": (tinyops, Crowded(found, network), image),
        "tinyops, no network": (tinyops, Crowded(found), blank),
    }
    if installed("sahi"):
        sahi("GREEDYNMM", "IOS")(_Module(Crowded(found[:4])), blank[:900, :1200], cut)  # compiles
        runs["sahi, its default, no network"] = (
            sahi("GREEDYNMM", "IOS"),
            _Module(Crowded(found)),
            blank,
        )
    rows = []
    for name, (slicer, model, pixels) in runs.items():
        start = time.perf_counter()
        result = slicer(model, pixels, cut)
        seconds = time.perf_counter() - start
        inside = model.seconds
        rows.append(
            {
                "run": name,
                "tiles": count_tiles(pixels, cut),
                "boxes": len(result.boxes["boxes"]),
                "seconds": seconds,
                "network": inside,
                "merging": result.merging,
                "stages": result.stages,
                "share_outside": None if "no network" in name else 1 - inside / seconds,
            }
        )
    return rows
