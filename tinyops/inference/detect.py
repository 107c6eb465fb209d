"""`tinyops.detect`: objects of images from files and from memory."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tinyops.data.tiles import Window
from tinyops.inference.engine import Model, detect_sources
from tinyops.inference.source import ArraySource, open_source
from tinyops.inference.types import Detection, Flip, Georeference, Source, View

Picture = str | Path | Image.Image | NDArray[np.uint8] | Tensor


def detect(
    model: Model,
    images: Picture | Sequence[Picture],
    *,
    tile: tuple[int, int] | None = (640, 512),
    overlap: int | tuple[int, int] = 100,
    batch: int | None = None,
    scales: Sequence[float] = (1.0,),
    flips: Sequence[Flip] = ("none",),
    min_score: float = 0.0,
    device: torch.device | str | None = None,
    amp: Literal["none", "bf16", "fp16"] = "none",
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
    edge: float = 2.0,
    merge: Literal["none", "union"] = "none",
    class_agnostic: bool = False,
    categories: Sequence[str] | None = None,
) -> Any:  # a Result, or a list of them
    """Detect in images of any size: cut tiles, run the model on batches of them, stitch.

    Args:
        model: any detector with torchvision's contract; see `tinyops.inference.engine`.
        images: an image or a list or tuple of images. An image is a path, a PIL image, a uint8
            array [H, W, 3] or [H, W], or a tensor [3, H, W], uint8 or floats in 0..1.
        tile: width and height in pixels that the model sees; None: whole images.
        overlap: pixels that neighbouring tiles share, of what the model sees, the same both ways
            or (horizontal, vertical); more than the largest object.
        batch: tiles of one size that the model sees at once, of several images if need be; None: 8,
            and 1 on a CPU, where that is fastest.
        scales: by which images are enlarged. With several, the model looks at them in all scales,
            each in all `flips`, and the views are merged like neighbouring tiles.
        flips: of "none", "horizontal", "vertical", "both".
        min_score: detections with less are left out.
        device: where the model is; None: that of its first parameter, and the CPU if it has none.
        amp: "none", "bf16" or "fp16".
        iou_threshold: of `tinyops.ops.stitch_tiles`, as are the next four.
        ios_threshold: likewise.
        edge: likewise, in pixels of the image.
        merge: likewise.
        class_agnostic: likewise.
        categories: names of the labels 1, 2, ...; None: `model.categories`, if there are any.

    Returns:
        A `Result`: boxes [K, 4] x1 y1 x2 y2 in pixels of the image, scores [K] and labels [K], best
        first, on the CPU. For a list or tuple of images a list of them.

    Raises:
        ValueError: an argument is out of range, or a file is no image that can be read.
        OSError: a file cannot be read.
    """
    how = Detection(
        tile=tile,
        overlap=overlap,
        batch=batch,
        views=tuple(View(*pair) for pair in itertools.product(scales, flips)),
        min_score=min_score,
        iou_threshold=iou_threshold,
        ios_threshold=ios_threshold,
        edge=edge,
        merge=merge,
        class_agnostic=class_agnostic,
        amp=amp,
    )
    row: Any = images if isinstance(images, list | tuple) else [images]
    results = list(detect_sources(model, _sources(row), how, device=device, categories=categories))
    return results if row is images else results[0]


def _sources(images: Sequence[Picture]) -> Iterator[Source]:
    for k, image in enumerate(images):
        name = f"image {k}"
        if isinstance(image, str | Path):
            yield open_source(image)
        elif isinstance(image, Tensor) and image.is_floating_point():
            yield _FloatSource(image, name)
        elif isinstance(image, Tensor | np.ndarray | Image.Image):
            yield ArraySource(image, name=name)
        else:
            raise ValueError(
                "images must be paths, PIL images, arrays or tensors, "
                f"got {type(image).__name__} as {name}"
            )


class _FloatSource:
    """A tensor of floats, which stay as they are: the engine takes them too."""

    georeference: Georeference | None = None

    def __init__(self, image: Tensor, name: str) -> None:
        if image.dim() != 3 or len(image) != 3 or not image.numel():
            raise ValueError(
                f"{name} must be a tensor [3, H, W] with pixels, got {list(image.shape)}"
            )
        self.name = name
        self.height, self.width = image.shape[1:]
        self._image = image.detach()

    def read(self, window: Window) -> Any:
        x1, y1, x2, y2 = window
        return self._image[:, y1:y2, x1:x2].permute(1, 2, 0).float().cpu().numpy()

    def close(self) -> None:
        del self._image
