"""Boxes as detectors of tiny objects give them: 2-20 px in an image of 6354 x 4064 px."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rng = np.random.Generator

WIDTH, HEIGHT = 6354, 4064
PROPOSALS = 10  # per object in `dup` and `crowd`
CLUMPS, CLUMP_SIGMA = 40, 150.0  # of `crowd`; pixels
JITTER = 0.15  # of a proposal: of its position in sizes, and of the logarithm of its size
KINDS = ("uniform", "dup", "crowd")


def sizes(rng: Rng, n: int) -> tuple[Array, Array]:
    """Widths and heights: sqrt(area) log-normal about 8.5 px as in TinyPerson, people upright."""
    side = np.clip(np.exp(rng.normal(np.log(8.5), 0.5, n)), 2, 20)
    root = np.sqrt(np.exp(rng.normal(0.35, 0.25, n)))  # of height over width
    width, height = np.clip(side / root, 2, 20), np.clip(side * root, 2, 20)
    return width.astype(np.float32), height.astype(np.float32)


def around(
    x: NDArray, y: NDArray, width: NDArray, height: NDArray, image: tuple[float, float]
) -> Array:
    """Boxes with these centres, cut to the image but at least a pixel wide and high."""
    x1 = np.clip(x - width / 2, 0, image[0] - 1)
    y1 = np.clip(y - height / 2, 0, image[1] - 1)
    x2 = np.clip(x + width / 2, x1 + 1, image[0])
    y2 = np.clip(y + height / 2, y1 + 1, image[1])
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def detections(
    kind: str, n: int, seed: int, image: tuple[float, float] = (WIDTH, HEIGHT)
) -> tuple[Array, Array]:
    """n boxes [n, 4] and their scores [n].

    uniform: independent boxes. dup: n / 10 objects with about 10 jittered proposals each.
    crowd: the same with the objects in 40 clumps.
    """
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        width, height = sizes(rng, n)
        x, y = rng.uniform(0, image[0], n), rng.uniform(0, image[1], n)
        return around(x, y, width, height, image), rng.random(n).astype(np.float32)

    objects = max(1, n // PROPOSALS)
    width, height = sizes(rng, objects)
    x, y = rng.uniform(0, image[0], objects), rng.uniform(0, image[1], objects)
    if kind == "crowd":
        clump = rng.integers(0, CLUMPS, objects)
        x = rng.uniform(0, image[0], CLUMPS)[clump] + rng.normal(0, CLUMP_SIGMA, objects)
        y = rng.uniform(0, image[1], CLUMPS)[clump] + rng.normal(0, CLUMP_SIGMA, objects)
    objects_of = rng.integers(0, objects, n)
    x, y, width, height = (each[objects_of] for each in (x, y, width, height))
    boxes = jittered(rng, x, y, width, height, image)
    return boxes, rng.beta(2, 5, n).astype(np.float32)


def jittered(
    rng: Rng,
    x: NDArray,
    y: NDArray,
    width: NDArray,
    height: NDArray,
    image: tuple[float, float],
) -> Array:
    """One proposal for every object given by centre and size."""
    n = len(x)
    width = width * np.exp(rng.normal(0, JITTER, n))
    height = height * np.exp(rng.normal(0, JITTER, n))
    x = np.clip(x + rng.normal(0, JITTER, n) * width, 0, image[0] - 1)
    y = np.clip(y + rng.normal(0, JITTER, n) * height, 0, image[1] - 1)
    return around(x, y, width, height, image)


def proposals_and_targets(
    n: int, m: int, seed: int, image: tuple[float, float] = (WIDTH, HEIGHT)
) -> tuple[Array, Array]:
    """m targets, and n boxes of which a half lie around targets and the others anywhere."""
    rng = np.random.default_rng(seed)
    width, height = sizes(rng, m)
    x, y = rng.uniform(0, image[0], m), rng.uniform(0, image[1], m)
    of = rng.integers(0, m, n // 2)
    near = jittered(rng, x[of], y[of], width[of], height[of], image)
    anywhere = detections("uniform", n - n // 2, seed + 1, image)[0]
    boxes = rng.permutation(np.concatenate([near, anywhere]))
    return boxes, around(x, y, width, height, image)


def iou(a: Array, b: Array) -> Array:
    """Row by row, in the arithmetic of torchvision's kernels."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    np.maximum(sides, 0, out=sides)
    both = sides[:, 0] * sides[:, 1]
    area = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    return both / (area + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) - both)


def near_pairs(a: Array, b: Array) -> Iterator[tuple[NDArray, NDArray]]:
    """Indices of pairs in portions, among them every pair of boxes that overlap."""
    for i, j in itertools.product(_by_size(a), _by_size(b)):
        for k, m in _near_pairs(a[i], b[j]):
            yield i[k], j[m]


def _by_size(boxes: Array) -> list[NDArray]:
    """Indices in groups of like size, so that small boxes are looked for nearby only."""
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    group = np.searchsorted([8, 12, 18], side)
    groups = (np.flatnonzero(group == g) for g in range(4))
    return [g for g in groups if len(g)]


def _near_pairs(a: Array, b: Array, most: int = 1 << 18) -> Iterator[tuple[NDArray, NDArray]]:
    # Boxes that overlap have their centres in the same cell or in adjacent ones.
    cell = sum((x[:, 2:] - x[:, :2]).max() for x in (a, b)) / 2 or 1
    cells_a, cells_b = (
        ((x[:, :2] + x[:, 2:]) / 2 // cell).astype(np.int64).clip(0) + 1 for x in (a, b)
    )
    columns = max(cells_a[:, 0].max(), cells_b[:, 0].max()) + 2
    keys = cells_b[:, 1] * columns + cells_b[:, 0]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    for row in (-1, 0, 1):
        middle = (cells_a[:, 1] + row) * columns + cells_a[:, 0]
        start, end = np.searchsorted(keys, middle - 1), np.searchsorted(keys, middle + 1, "right")
        total = np.concatenate([[0], np.cumsum(end - start)])
        cuts = np.searchsorted(total, np.arange(0, total[-1], most), "right") - 1
        for first, last in itertools.pairwise([*cuts, len(a)]):
            count = end[first:last] - start[first:last]
            i = np.repeat(np.arange(first, last), count)
            within = np.arange(len(i)) + total[first] - np.repeat(total[first:last], count)
            yield i, order[np.repeat(start[first:last], count) + within]


def ranks(scores: Array) -> NDArray:
    """The place of every box by falling score, then index."""
    place = np.empty(len(scores), np.int64)
    place[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return place


def greedy(boxes: Array, scores: Array, threshold: float) -> NDArray:
    """Indices that greedy suppression keeps, best first, by the definition: slow."""
    place = ranks(scores)
    worse: list[list[int]] = [[] for _ in boxes]
    for i, j in near_pairs(boxes, boxes):
        better = place[i] < place[j]
        i, j = i[better], j[better]
        over = iou(boxes[i], boxes[j]) > threshold
        for a, b in zip(i[over], j[over], strict=True):
            worse[a].append(b)
    alive = np.ones(len(boxes), bool)
    order = np.argsort(place)
    for k in order:
        if alive[k]:
            alive[worse[k]] = False
    return order[alive[order]]


def assert_greedy(boxes: Array, scores: Array, keep: NDArray, threshold: float) -> None:
    """Assert that `keep` is what greedy suppression keeps, at any number of boxes.

    It is the only list in order of falling score (then index) whose boxes are not suppressed by
    a better one on the list, while all others are.
    """
    place = ranks(scores)
    assert (np.diff(place[keep]) > 0).all(), "the kept boxes are not in order"
    suppressed = np.zeros(len(boxes), bool)
    for i, j in near_pairs(boxes, boxes[keep]):
        j = keep[j]
        better = place[j] < place[i]
        i, j = i[better], j[better]
        suppressed[i[iou(boxes[i], boxes[j]) > threshold]] = True
    kept = np.zeros(len(boxes), bool)
    kept[keep] = True
    wrong = np.flatnonzero(kept == suppressed)
    assert not len(wrong), f"{len(wrong)} boxes are wrongly kept or dropped, first {wrong[:5]}"
