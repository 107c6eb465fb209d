"""What tiled detection reads, how it looks at it, and what it gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyops.data.tiles import Window

Flip = Literal["none", "horizontal", "vertical", "both"]
FLIPS: tuple[Flip, ...] = ("none", "horizontal", "vertical", "both")


class Source(Protocol):
    """An image that is read by windows.

    Attributes:
        name: for messages and results; of a file its path.
        width, height: in pixels, as the image is meant to be seen (EXIF applied).
        georeference: where the pixels lie on a map; None: nowhere.
    """

    name: str
    width: int
    height: int
    georeference: "Georeference | None"

    def read(self, window: Window) -> NDArray[np.uint8]:
        """RGB pixels [h, w, 3] of x1 y1 x2 y2; OSError or ValueError names the image."""
        ...

    def close(self) -> None:
        """Free what is held; the source is not read again."""
        ...


@dataclass(frozen=True)
class Georeference:
    """An affine map from pixels to map coordinates: x' = a x + b y + c, y' = d x + e y + f."""

    affine: tuple[float, float, float, float, float, float]  # a b c d e f
    crs: str  # such as "EPSG:32633", or WKT

    def to_map(self, points: Tensor) -> Tensor:
        """[..., 2] x y in pixels to map coordinates, float64."""
        a, b, c, d, e, f = self.affine
        x, y = points.double().unbind(-1)
        return torch.stack([a * x + b * y + c, d * x + e * y + f], -1)


@dataclass(frozen=True)
class View:
    """One way in which the model looks at an image: enlarged by `scale`, mirrored by `flip`."""

    scale: float = 1.0
    flip: Flip = "none"


@dataclass(frozen=True)
class Detection:
    """How objects are looked for; see `tinyops.detect`."""

    tile: tuple[int, int] | None = (640, 512)
    overlap: int | tuple[int, int] = 100
    batch: int | None = None  # 8, and 1 on a CPU
    views: tuple[View, ...] = (View(),)
    min_score: float = 0.0
    iou_threshold: float = 0.5
    ios_threshold: float = 0.5
    edge: float = 2.0
    merge: Literal["none", "union"] = "none"
    class_agnostic: bool = False
    amp: Literal["none", "bf16", "fp16"] = "none"


class Found(dict[str, Tensor]):
    """The objects of an image: boxes [K, 4] x1 y1 x2 y2 in its pixels, scores [K], labels [K].

    Best first, on the CPU. It is a plain dict besides the attributes.

    Attributes:
        name: of the image; of a file its path.
        width, height: of the image in pixels.
        categories: names of the labels 1, 2, ...; None: unknown.
        tiles: [T, 4] float32 windows x1 y1 x2 y2 that the model looked at, in pixels of the image.
        removed: [R, 4] float32 boxes that stitching removed.
        seconds: time of each stage: "read", "network", "stitch".
        georeference: of the image.
    """

    def __init__(
        self,
        detections: Mapping[str, Tensor],
        *,
        name: str,
        width: int,
        height: int,
        categories: tuple[str, ...] | None = None,
        tiles: Tensor | None = None,
        removed: Tensor | None = None,
        seconds: Mapping[str, float] | None = None,
        georeference: Georeference | None = None,
    ) -> None:
        super().__init__(detections)
        self.name, self.width, self.height = name, width, height
        self.categories = categories
        self.tiles = torch.zeros(0, 4) if tiles is None else tiles
        self.removed = torch.zeros(0, 4) if removed is None else removed
        self.seconds = dict(seconds or {})
        self.georeference = georeference
