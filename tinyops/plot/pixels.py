"""Pixels of images of any size, read by windows."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Window = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels
Pixels = NDArray[np.uint8]  # [h, w, 3] RGB

MAX_READ = 8_000_000  # pixels that are read at once
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


class WindowedImage(Protocol):
    """An image that is read by windows; a `tinyops.inference.types.Source` is one."""

    width: int
    height: int

    def read(self, window: Window) -> Pixels:
        """RGB pixels [h, w, 3] of x1 y1 x2 y2."""
        ...


class _Picture:
    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.width, self.height = image.size

    def read(self, window: Window) -> Pixels:
        return np.asarray(self.image.crop(window).convert("RGB"))


class _Array:
    def __init__(self, array: Pixels) -> None:
        self.array = array
        self.height, self.width = array.shape[:2]

    def read(self, window: Window) -> Pixels:
        x1, y1, x2, y2 = window
        part = self.array[y1:y2, x1:x2].reshape(y2 - y1, x2 - x1, -1)
        return np.repeat(part, 3, 2) if part.shape[2] == 1 else part[..., :3]


def as_windowed(image: Any) -> WindowedImage:
    """A picture, a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or what has `read`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise ValueError(f"image must have 8 bits per channel, got mode {image.mode!r}")
        return _Picture(image)
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
            raise ValueError(
                f"image must be uint8 [H, W] or [H, W, 1, 3 or 4], got {image.dtype} "
                f"{list(image.shape)}"
            )
        return _Array(image)
    if not all(hasattr(image, name) for name in ("read", "width", "height")):
        raise ValueError(
            f"image must be a picture, an array or a source, got {type(image).__name__}"
        )
    source: WindowedImage = image
    return source


def shrink(image: WindowedImage, width: int, height: int) -> Pixels:
    """The whole image at [height, width], averaged over areas; no larger than it is.

    It is read by strips of at most `MAX_READ` pixels (or a few rows); the result is that of the
    whole image at once, but for rounding.
    """
    factor = image.height / height
    margin = 2 + int(2 * factor) if factor > 1 else 0  # the filter reaches beyond its strip
    rows = max(1, int((MAX_READ / image.width - 2 * margin) / factor))
    result = np.empty((height, width, 3), np.uint8)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        top = max(int(first * factor) - margin, 0)
        bottom = min(int(np.ceil(last * factor)) + margin, image.height)
        strip = image.read((0, top, image.width, bottom))
        if (width, height) != (image.width, image.height):
            box = (0, first * factor - top, image.width, min(last * factor, image.height) - top)
            size = (width, last - first)
            strip = np.asarray(Image.fromarray(strip).resize(size, Image.Resampling.HAMMING, box))
        result[first:last] = strip
    return result
