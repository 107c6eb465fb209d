"""What is in a data set, in numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops.data.types import AnnotatedSet

Array = NDArray[Any]


@dataclass(frozen=True)
class Bands:
    """Sizes as a benchmark names them; each band reaches from its limit up to the next one.

    Attributes:
        names: of each.
        limits: where each begins, in pixels; the last one has no end.
        long_side: sizes are the longer side, otherwise sqrt(area).
    """

    names: tuple[str, ...]
    limits: tuple[float, ...]
    long_side: bool = False


# The benchmarks' own areas share their limits; here a size is in the upper band.
BANDS = {
    "tinyperson": Bands(
        ("below 2", "tiny1", "tiny2", "tiny3", "small", "reasonable"), (0, 2, 8, 12, 20, 32)
    ),
    "aitod": Bands(("very tiny", "tiny", "small", "medium"), (0, 8, 16, 32)),
    "coco": Bands(("small", "medium", "large"), (0, 32, 96)),
    "soda-d": Bands(
        ("extremely small", "relatively small", "generally small", "normal", "larger"),
        (0, 12, 20, 32, math.sqrt(2000)),
    ),
    "tt100k": Bands(("small", "medium", "large", "larger"), (0, 32, 96, 400), long_side=True),
}


def describe(data: AnnotatedSet) -> dict[str, Any]:
    """Counts, sizes and shapes of a data set, as values of JSON.

    Regions to be ignored are counted apart: everything but `ignored` and `ignore_share` is about
    the other objects. A size is sqrt(area) in pixels. Histograms have `edges`, one more than
    `counts`; those of sizes and aspect ratios are even in the logarithm, 4 bins to an octave, and
    leave out boxes without area.

    Returns:
        images, empty_images: how many, and how many without objects.
        objects, ignored, ignore_share: how many, regions to be ignored, and their share of both.
        without_area: objects with a side of 0 or less.
        classes: name -> objects, ignored, and mean, deviation, min, p5 (quantile 5 %), median, p95
            and max of their sizes, None without objects.
        size: the same numbers of all objects.
        bands: benchmark -> band -> how many objects, see `BANDS`.
        sizes, aspect_ratios (width / height), objects_per_image: histograms.
        image_sizes: width, height and number of the ten most frequent ones.
    """
    sides = object_sides(data)
    labels = np.concatenate([[], *(image.labels[~image.ignore] for image in data.images)])
    regions = np.concatenate([[], *(image.labels[image.ignore] for image in data.images)])
    sizes = np.sqrt(sides.prod(1).clip(0))
    per_image = np.array([int((~image.ignore).sum()) for image in data.images], int)
    proper = (sides > 0).all(1)
    ratios = sides[proper, 0] / sides[proper, 1]
    total = len(sides) + len(regions)
    return {
        "images": len(data.images),
        "empty_images": int((per_image == 0).sum()),
        "objects": len(sides),
        "ignored": len(regions),
        "ignore_share": len(regions) / total if total else 0.0,
        "without_area": int((~proper).sum()),
        "classes": {
            name: {
                "objects": int((labels == label).sum()),
                "ignored": int((regions == label).sum()),
                **_spread(sizes[labels == label]),
            }
            for label, name in enumerate(data.classes, 1)
        },
        "size": _spread(sizes),
        "bands": {name: _counts(bands, sides) for name, bands in BANDS.items()},
        "sizes": _octaves(sizes[proper]),
        "aspect_ratios": _octaves(ratios),
        "objects_per_image": _per_image(per_image),
        "image_sizes": _image_sizes(data),
    }


def band_numbers(data: AnnotatedSet, bands: Bands) -> NDArray[np.int64]:
    """[K] the band of every object that is not to be ignored."""
    return _numbers(bands, object_sides(data))


def object_sides(data: AnnotatedSet) -> Array:
    """[K, 2] width and height of the objects that count."""
    return np.concatenate([np.zeros((0, 2)), *(x.bbox[~x.ignore, 2:] for x in data.images)])


def _numbers(bands: Bands, sides: Array) -> NDArray[np.int64]:
    sizes = sides.max(1, initial=0) if bands.long_side else np.sqrt(sides.prod(1).clip(0))
    return np.searchsorted(bands.limits, sizes, "right") - 1


def _counts(bands: Bands, sides: Array) -> dict[str, int]:
    counts = np.bincount(_numbers(bands, sides), minlength=len(bands.names))
    return dict(zip(bands.names, counts.tolist(), strict=True))


def _spread(sizes: Array) -> dict[str, float | None]:
    names = ("mean", "deviation", "min", "p5", "median", "p95", "max")
    if len(sizes) == 0:
        return dict.fromkeys(names)
    quantiles = np.quantile(sizes, [0, 0.05, 0.5, 0.95, 1])
    values = [sizes.mean(), sizes.std(), *quantiles]
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _octaves(values: Array) -> dict[str, list[float]]:
    """A histogram of positive values, 4 bins to an octave."""
    if len(values) == 0:
        return {"edges": [], "counts": []}
    steps = np.floor(4 * np.log2(values)).astype(int)
    low, high = int(steps.min()), int(steps.max())
    counts = np.bincount(steps - low)
    edges = 2 ** (np.arange(low, high + 2) / 4)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _per_image(counts: Array) -> dict[str, list[float]]:
    """0, 1, 2-3, 4-7, 8-15, ... objects."""
    if len(counts) == 0:
        return {"edges": [], "counts": []}
    edges = [0, *(2**k for k in range(int(counts.max()).bit_length() + 1))]
    return {"edges": edges, "counts": np.histogram(counts, [*edges[:-1], np.inf])[0].tolist()}


def _image_sizes(data: AnnotatedSet) -> list[dict[str, int]]:
    """The ten most frequent ones."""
    sizes, counts = np.unique(
        np.array([(image.width, image.height) for image in data.images], int).reshape(-1, 2),
        axis=0,
        return_counts=True,
    )
    order: Sequence[int] = np.argsort(-counts, kind="stable")[:10].tolist()
    return [
        {"width": int(sizes[k, 0]), "height": int(sizes[k, 1]), "images": int(counts[k])}
        for k in order
    ]
