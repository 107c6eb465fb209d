"""Pixels of files as RGB bytes, in the orientation in which they are meant to be seen."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from tinyops.data.tiles import Window
from tinyops.inference.types import Georeference

Stretch = tuple[float, float]
_filters_lock = threading.Lock()


class FileSource:
    """A file that is read by windows; see `tinyops.inference.types.Source`.

    Subclasses set `_file` and say how stored pixels are read, in `_stored`.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        orientation: int = 1,
        georeference: Georeference | None = None,
    ) -> None:
        self.name, self.georeference = name, georeference
        # EXIF: stored pixels are transposed, then mirrored.
        self._transposed = orientation in (5, 6, 7, 8)
        self._mirrored = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)  # in x, in y
        self.width, self.height = size[::-1] if self._transposed else size
        self._file: Any = None

    def read(self, window: Window) -> NDArray[np.uint8]:
        """RGB pixels [h, w, 3] of a window.

        Raises:
            ValueError: the window is not inside the image, or values cannot be mapped to bytes.
            OSError: pixels cannot be decoded; later reads fail as well.
        """
        x1, y1, x2, y2 = checked(window, self)
        if self._file is None:
            raise ValueError(f"{self.name} is closed")
        if self._mirrored[0]:
            x1, x2 = self.width - x2, self.width - x1
        if self._mirrored[1]:
            y1, y2 = self.height - y2, self.height - y1
        pixels = self._stored((y1, x1, y2, x2) if self._transposed else (x1, y1, x2, y2))
        if self._transposed:
            pixels = pixels.transpose(1, 0, 2)
        across, down = (slice(None, None, -1 if mirrored else 1) for mirrored in self._mirrored)
        return np.array(pixels[down, across], order="C")

    def close(self) -> None:
        """Free the pixels and the file; the source is not read again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stored(self, window: Window) -> NDArray[np.uint8]:
        raise NotImplementedError


def checked(window: Window, source: Any) -> Window:
    """The window, if it lies inside the source."""
    x1, y1, x2, y2 = window
    if not (0 <= x1 < x2 <= source.width and 0 <= y1 < y2 <= source.height):
        raise ValueError(
            f"window must lie inside the {source.width}x{source.height} px of {source.name}, "
            f"got {window}"
        )
    return window


def to_bytes(
    values: NDArray[Any], bits: int, stretch: Stretch | None, name: str
) -> NDArray[np.uint8]:
    """Pixel values of more than 8 bits as bytes.

    Args:
        values: of any shape, integers or floats. NaN becomes 0.
        bits: of which integers make use; the highest 8 are taken. Floats are in 0..1.
        stretch: what becomes 0 and 255; linear between, clipped outside. None: the rule above.
        name: of the image, for the message.

    Raises:
        ValueError: `stretch` is None and a value is out of the range.
    """
    real = values.dtype.kind == "f"
    if stretch is not None:
        low, high = stretch
        exact = np.float32 if values.itemsize <= 2 else np.float64
        scaled = (values.astype(exact) - low) * (255 / (high - low))
        return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
    top = 1 if real else 2**bits - 1
    if ((values < 0) | (values > top)).any():
        raise ValueError(
            f"{name} has {values.dtype} values from {np.nanmin(values)} to {np.nanmax(values)}, "
            f"expected 0..{top}; say by stretch=(low, high) which are black and white"
        )
    if real:
        return np.nan_to_num(values * 255).round().astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def checked_stretch(stretch: Stretch | None) -> Stretch | None:
    """The same, if it is two finite values that rise."""
    if stretch is not None and not (np.isfinite(stretch).all() and stretch[0] < stretch[1]):
        raise ValueError(f"stretch must be (low, high) with low < high, got {stretch}")
    return stretch


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Whatever a decoder raises becomes an OSError of one line that names the file."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise OSError(f"cannot read {name}: no image of a kind that can be decoded") from error
    except Exception as error:  # Pillow raises struct.error, SyntaxError, IndexError and more
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise OSError(f"cannot read {name}: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of metadata; filters are the process's, so one thread at a time is here."""
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
