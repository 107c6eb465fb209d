"""Stitching on a simulated crowd: what it finds, next to plain NMS over the image."""

import numpy as np
import pytest
import torch
from stitching import grid

WIDTH, HEIGHT, PEOPLE = 6354, 4064, 2000


def pairwise_iou(a, b):
    a, b = a.astype(np.float32).T[:, :, None], b.astype(np.float32).T[:, None]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    both = np.maximum(width, 0) * np.maximum(height, 0)
    first, second = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return both / (first + second - both)


def plain_nms(boxes, scores, threshold):
    overlaps, left, keep = pairwise_iou(boxes, boxes), np.ones(len(boxes), bool), []
    for k in np.argsort(-scores, kind="stable"):
        if left[k]:
            keep.append(k)
            left &= overlaps[k] <= threshold
    return np.array(keep)


def crowd(rng):
    """People of 2 to 20 pixels in 30 clumps, no two of which nearly coincide."""
    size = np.clip(np.exp(rng.normal(2.2, 0.5, (PEOPLE, 2))), 2, 20)
    size[: PEOPLE // 50] *= rng.uniform(2, 4, (PEOPLE // 50, 1))
    clump = rng.integers(30, size=PEOPLE)
    centre = rng.uniform([0, 0], [WIDTH, HEIGHT], (30, 2))[clump] + rng.normal(0, 120, (PEOPLE, 2))
    centre = np.clip(centre, size / 2, [WIDTH, HEIGHT] - size / 2)
    people = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return people[plain_nms(people, rng.random(PEOPLE), 0.3)]


def detect(people, windows, rng):
    """What each tile sees: the visible parts of people, jittered, with scores by visibility."""
    boxes, scores, tiles = [], [], []
    area = (people[:, 2:] - people[:, :2]).prod(1)
    for tile, (x1, y1, x2, y2) in enumerate(windows):
        part = np.concatenate(
            [np.maximum(people[:, :2], [x1, y1]), np.minimum(people[:, 2:], [x2, y2])], 1
        )
        size = np.clip(part[:, 2:] - part[:, :2], 0, None)
        visible = size.prod(1) / area
        seen = (visible >= 0.3) & (rng.random(len(people)) < 0.95 * np.sqrt(visible))
        noise = rng.normal(0, 0.05, (seen.sum(), 4)) * np.tile(size[seen], 2)
        limits = ([x1, y1] * 2, [x2, y2] * 2)
        boxes.append(np.clip(part[seen] + noise, *limits))
        scores.append(rng.beta(6, 2, seen.sum()) * (0.6 + 0.4 * visible[seen]))
        tiles.append(np.full(seen.sum(), tile))
    return (np.concatenate(x) for x in (boxes, scores, tiles))


def found_and_duplicates(people, boxes, scores):
    """One-to-one matches at IoU 0.5, best first, and boxes whose person was found already."""
    overlaps, free, found, duplicates = pairwise_iou(boxes, people), np.ones(len(people)), 0, 0
    for k in np.argsort(-scores, kind="stable"):
        best = (overlaps[k] * free).argmax()
        if overlaps[k, best] * free[best] >= 0.5:
            free[best] = 0
            found += 1
        else:
            duplicates += overlaps[k].max() >= 0.5
    return found, duplicates


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)
def test_crowd_without_duplicates_and_without_losses(backend, seed):
    rng = np.random.default_rng(seed)
    people, windows = crowd(rng), grid(WIDTH, HEIGHT, 640, 512, 30)
    boxes, scores, tiles = detect(people, windows, rng)
    origin = np.array(windows)[tiles][:, [0, 1, 0, 1]]
    arguments = (
        torch.tensor(boxes - origin, dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32),
        torch.zeros(len(boxes), dtype=torch.int64),
        torch.tensor(tiles),
        torch.tensor(windows),
        torch.tensor([[HEIGHT, WIDTH]]),
    )
    moved = [x.to(backend.device) for x in arguments]
    stitched = backend.ops.stitch_tiles(*moved).cpu().numpy()
    plain = plain_nms(boxes, scores, 0.5)
    found, duplicates = found_and_duplicates(people, boxes[stitched], scores[stitched])
    found_by_nms, duplicates_of_nms = found_and_duplicates(people, boxes[plain], scores[plain])
    assert len(boxes) > 1.15 * len(stitched)  # there was something to stitch
    assert duplicates_of_nms > 0
    assert duplicates == 0
    assert found >= found_by_nms - 3
    assert len(stitched) < len(plain)
    assert found > 0.9 * len(people)
