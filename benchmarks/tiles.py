"""A detector on overlapping tiles, simulated, and how well its merged results find the people."""

from dataclasses import dataclass

import numpy as np
from distributions import HEIGHT, WIDTH, Array, around, greedy, iou, near_pairs, sizes
from numpy.typing import NDArray

TILE_WIDTH, TILE_HEIGHT, OVERLAP = 640, 512, 30  # pixels; those of TinyPerson's protocol
CLUMPS, CLUMP_SIGMA = 30, 120.0  # of a crowd; pixels
BIG_SHARE = 0.02  # of the people are 2 to 4 times as large
LABELLED_IOU = 0.3  # annotators do not label people who hide each other more than this
RECALL = 0.95  # of people wholly inside a tile
LEAST_VISIBLE = 0.3  # of a person's area
JITTER = 0.05  # of each side of a detection, in sizes


@dataclass(frozen=True)
class Scene:
    people: Array  # [P, 4] in the image
    boxes: Array  # [K, 4] in the image
    scores: Array  # [K]
    tile_ids: NDArray[np.int64]  # [K]
    windows: Array  # [T, 4]

    @property
    def in_tiles(self) -> Array:
        """The boxes in the coordinates of their tiles; exact, because tiles start at integers."""
        return self.boxes - np.tile(self.windows[self.tile_ids, :2], 2)


def scene(kind: str, wanted: int, seed: int = 0) -> Scene:
    """About `wanted` people, "uniform" or in a "crowd", and what a detector finds in every tile."""
    people, windows = _people(kind, wanted, seed), _windows()
    return Scene(people, *_detect(people, windows, seed + 1), windows)


def _windows() -> Array:
    """Row by row. The last ones are shifted into the image."""

    def starts(image: int, tile: int) -> list[int]:
        return [min(x, image - tile) for x in range(0, image - OVERLAP, tile - OVERLAP)]

    corners = [(x, y) for y in starts(HEIGHT, TILE_HEIGHT) for x in starts(WIDTH, TILE_WIDTH)]
    return np.array([(x, y, x + TILE_WIDTH, y + TILE_HEIGHT) for x, y in corners], np.float32)


def _people(kind: str, wanted: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    width, height = sizes(rng, wanted)
    big = int(wanted * BIG_SHARE)
    scale = rng.uniform(2, 4, big)
    width[:big] *= scale
    height[:big] *= scale
    if kind == "uniform":
        x, y = rng.uniform(0, WIDTH, wanted), rng.uniform(0, HEIGHT, wanted)
    else:
        clump = rng.integers(0, CLUMPS, wanted)
        centre_x, centre_y = rng.uniform(0, WIDTH, CLUMPS), rng.uniform(0, HEIGHT, CLUMPS)
        x = (centre_x[clump] + rng.normal(0, CLUMP_SIGMA, wanted)).clip(5, WIDTH - 5)
        y = (centre_y[clump] + rng.normal(0, CLUMP_SIGMA, wanted)).clip(5, HEIGHT - 5)
    boxes = around(x, y, width, height, (WIDTH, HEIGHT))
    rng.random(wanted)  # keeps the scenes those of earlier measurements
    priority = rng.random(wanted).astype(np.float32)
    return boxes[np.sort(greedy(boxes, priority, LABELLED_IOU))]


def _detect(people: Array, windows: Array, seed: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """A person is found with probability 0.95 * sqrt(visible share), and cut off at the tile."""
    rng = np.random.default_rng(seed)
    boxes, scores, tile_ids = [], [], []
    area = (people[:, 2] - people[:, 0]) * (people[:, 3] - people[:, 1])
    for tile, window in enumerate(windows):
        low = np.maximum(people[:, :2], window[:2])
        high = np.minimum(people[:, 2:], window[2:])
        side = high - low
        inside = (side > 0).all(axis=1)
        visible = np.where(inside, side[:, 0] * side[:, 1] / area, 0)
        seen = np.flatnonzero(visible >= LEAST_VISIBLE)
        seen = seen[rng.random(len(seen)) < RECALL * np.sqrt(visible[seen])]
        corners = np.concatenate([low, high], axis=1)[seen]
        noise = np.stack([rng.normal(0, JITTER, len(seen)) for _ in range(4)], axis=1)
        found = corners + noise * np.tile(side[seen], 2)
        found = found.clip(np.tile(window[:2], 2), np.tile(window[2:], 2))
        score = rng.beta(6, 2, len(seen)) * (0.6 + 0.4 * visible[seen])
        boxes.append(found.astype(np.float32))
        scores.append(score.clip(0, 1).astype(np.float32))
        tile_ids.append(np.full(len(seen), tile))
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(tile_ids)


def owned_by_core(scene: Scene) -> NDArray:
    """Indices of the boxes whose centre lies in the core of their own tile.

    Cores are cut in the middle of each overlap, so every point has one tile: no suppression.
    """
    mine = np.ones(len(scene.boxes), bool)
    windows = scene.windows[scene.tile_ids]
    for axis in (0, 1):
        spans = np.unique(scene.windows[:, [axis, axis + 2]], axis=0)
        cuts = (spans[:-1, 1] + spans[1:, 0]) / 2
        centre = (scene.boxes[:, axis] + scene.boxes[:, axis + 2]) / 2
        own = np.searchsorted(spans[:, 0], windows[:, axis])
        mine &= np.searchsorted(cuts, centre, "right") == own
    return np.flatnonzero(mine)


def quality(people: Array, boxes: Array, scores: Array, threshold: float = 0.5) -> dict[str, int]:
    """One-to-one matches, best score first, each to the free person of the highest IoU.

    A box without one is a duplicate if it overlaps a person who is taken, and else false.
    """
    found: list[list[tuple[float, int]]] = [[] for _ in boxes]
    for i, j in near_pairs(boxes, people):
        overlap = iou(boxes[i], people[j])
        good = overlap >= threshold
        for each, value, person in zip(i[good], overlap[good], j[good], strict=True):
            found[each].append((value, person))
    taken = np.zeros(len(people), bool)
    duplicates = false = 0
    for each in np.argsort(-scores):
        free = [match for match in found[each] if not taken[match[1]]]
        if free:
            taken[max(free)[1]] = True
        elif found[each]:
            duplicates += 1
        else:
            false += 1
    return {
        "TP": int(taken.sum()),
        "duplicates": duplicates,
        "false": false,
        "missed": int((~taken).sum()),
    }
