"""Scale Match and Monotone Scale Match (Yu et al., Scale Match for Tiny Person Detection, 2020).

Images of one data set are resized until their objects are as large as those of another: a training
on COCO then prepares for objects of a few pixels.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from tinyops.data.types import AnnotatedSet

Draw = Callable[[], float]  # a number in [0, 1)


def object_sizes(data: AnnotatedSet) -> NDArray[np.float64]:
    """[K] sqrt(area) in pixels of all objects that are not to be ignored."""
    boxes = [image.bbox[~image.ignore, 2:] for image in data.images]
    return np.sqrt(np.concatenate(boxes).prod(1)) if boxes else np.empty(0)


@dataclass(frozen=True)
class SizeHistogram:
    """How large the objects of a data set are.

    Attributes:
        probabilities: [B], their sum is 1.
        edges: [B + 1] sizes in pixels, rising.
    """

    probabilities: NDArray[np.float64]
    edges: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        sizes: NDArray[np.float64],
        bins: int = 100,
        *,
        tails: float | None = None,
        logarithmic: bool = False,
    ) -> "SizeHistogram":
        """The histogram of sizes.

        The first and the last bin hold the smallest and the largest sizes, half of `tails` each;
        those between are equally wide, so that a few large objects do not make them coarse.

        Args:
            sizes: [K] in pixels, in any order.
            bins: tails included.
            tails: share of the sizes in the two tails; None: 2 / bins; 0: no tails.
            logarithmic: bins between the tails are equally wide in log(size).

        Raises:
            ValueError: an option out of range, no sizes, or such that are not finite and positive.
        """
        tails = 2 / bins if tails is None and bins > 0 else tails
        if tails is None or bins < (3 if tails else 1) or not 0 <= tails < 1:
            raise ValueError(f"bins must be 3 or more and tails in [0, 1), got {bins} and {tails}")
        if len(sizes) == 0 or not (np.isfinite(sizes).all() and sizes.min() > 0):
            raise ValueError(
                "sizes must be finite and positive, and at least one, "
                f"got {reprlib.repr(sizes.tolist())}"
            )
        sizes = np.sort(sizes)
        total = len(sizes)
        head, last = int(total * tails / 2), int(total * (1 - tails / 2))
        if head == last:
            raise ValueError(f"sizes must be enough for tails of {tails}, got {total}")
        middle = sizes[head:last]
        inner = bins - 2 if tails else bins
        if logarithmic:
            low, high = np.log(middle[0]), np.log(middle[-1])
            edges = np.exp(np.linspace(low, high, inner + 1)).clip(middle[0], middle[-1])
            edges[0], edges[-1] = middle[0], middle[-1]
        else:
            edges = np.linspace(middle[0], middle[-1], inner + 1)
        counts = np.histogram(middle, edges)[0]
        if tails:
            counts = np.concatenate([[head], counts, [total - last]])
            edges = np.concatenate([sizes[:1], edges, sizes[-1:]])
        return cls(counts / total, edges)

    def quantiles(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """[B + 1] edges that share out other sizes [K] as these bins share out their own."""
        if len(sizes) == 0:
            raise ValueError("sizes must be at least one, got none")
        sizes = np.sort(sizes)
        places = (np.cumsum(self.probabilities) * len(sizes)).astype(int)
        edges = sizes[np.minimum(places, len(sizes) - 1)]
        edges[-1] = sizes[-1]
        return np.concatenate([sizes[:1], edges])


class ScaleMatch:
    """Resize an image so that the size of its objects follows a histogram; boxes go along.

    The size of an image is the geometric mean of sqrt((w + 1)(h + 1)) over its objects, as in the
    authors' second code; ignored ones do not count. The wanted size is drawn: first a bin, then
    evenly in it. Up to five draws are made for a scale inside `limits`. Objects with less than 2 px
    of w + 1 or h + 1 at the new size are dropped; an image that has no objects, or would have none
    left, gets the scale `default`.

    As a transform it is called with an image and a target with boxes, labels and ignore, and draws
    from torch's generator. Bilinear, with antialiasing.

    Args:
        target: sizes to be matched.
        limits: of the scale.
        outside: what becomes of scales that are not in the limits: they are clipped, or replaced by
            `default`.
        default: scale of images without objects.

    Raises:
        ValueError: an option out of range.
    """

    _TRIES = 5

    def __init__(
        self,
        target: SizeHistogram,
        *,
        limits: tuple[float, float] = (0.1, 1.0),
        outside: Literal["clip", "default"] = "clip",
        default: float = 0.25,
    ) -> None:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError(f"limits must be positive and rising, got {limits}")
        if outside not in ("clip", "default"):
            raise ValueError(f'outside must be "clip" or "default", got {outside!r}')
        if not default > 0:
            raise ValueError(f"default must be above 0, got {default}")
        self.target, self.limits, self.outside, self.default = target, limits, outside, default
        self._steps = np.cumsum(target.probabilities)

    def new_size(
        self, boxes: NDArray[np.floating[Any]], size: tuple[int, int], draw: Draw
    ) -> tuple[int, int]:
        """The new height and width of an image.

        Args:
            boxes: [K, 4] x1 y1 x2 y2 in pixels, of objects that count.
            size: height and width.
            draw: gives the next random number.
        """
        sides = boxes[:, 2:] - boxes[:, :2]
        scale = self.default
        if len(sides):
            own = float(np.exp(np.log(np.sqrt((sides + 1).prod(1))).mean()))
            wanted = self._scale(own, draw)
            if (sides * wanted + 1 >= 2).all(1).any():
                scale = wanted
        height, width = (max(1, round(side * scale)) for side in size)
        return height, width

    def _scale(self, own: float, draw: Draw) -> float:
        for _ in range(self._TRIES):
            scale = self._draw(draw) / own
            if self.limits[0] < scale < self.limits[1]:
                return scale
        return self._inside(scale)

    def _draw(self, draw: Draw) -> float:
        k = int(np.searchsorted(self._steps + 1e-6, draw()))  # the first with draw <= step
        low, high = self.target.edges[k : k + 2]
        return float(low + draw() * (high - low))

    def _inside(self, scale: float) -> float:
        if self.limits[0] < scale < self.limits[1]:
            return scale
        return float(np.clip(scale, *self.limits)) if self.outside == "clip" else self.default

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        boxes = target["boxes"].as_subclass(Tensor)[~target["ignore"]]
        old = (image.shape[-2], image.shape[-1])
        size = self.new_size(boxes.numpy(), old, lambda: float(torch.rand((), dtype=torch.float64)))
        image = v2.functional.resize(image, list(size), antialias=True)
        boxes = v2.functional.resize(target["boxes"], list(size))
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        left = {name: target[name][keep] for name in ("labels", "ignore")}
        return image, {**target, **left, "boxes": tv_tensors.wrap(boxes[keep], like=boxes)}


class MonotoneScaleMatch(ScaleMatch):
    """Scale Match that draws nothing: the larger an image's objects, the larger they become.

    The sizes of the source set are shared out over the bins of the target; within a bin the mapping
    is linear. See `ScaleMatch` for the rest.

    Args:
        target: sizes to be matched.
        source: [K] sizes of the objects of the set whose images are resized.
        options: those of `ScaleMatch`.

    Raises:
        ValueError: an option out of range, or no sizes.
    """

    def __init__(self, target: SizeHistogram, source: NDArray[np.float64], **options: Any) -> None:
        super().__init__(target, **options)
        self._edges = target.quantiles(source)

    def map(self, size: float) -> float:
        """The size that one of the source set becomes; smaller and larger ones go with the ends."""
        k = int(np.searchsorted(self._edges[1:-1], size - 1e-6))  # the first edge not below
        low, high = self._edges[k : k + 2]
        start, end = self.target.edges[k : k + 2]
        share = min(max((size - low) / (high - low), 0), 1) if high > low else 0
        return float(start + share * (end - start))

    def _scale(self, own: float, draw: Draw) -> float:
        return self._inside(self.map(own) / own)
