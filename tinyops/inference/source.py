"""Images that tiled detection reads: files, arrays in memory, and lists of files."""

import glob
import os
import stat
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tinyops.data.pillow import MODES, rgb_pixels
from tinyops.data.tiles import Window
from tinyops.inference.decoded import DecodedSource
from tinyops.inference.pixels import FileSource, Stretch, checked, checked_stretch, naming
from tinyops.inference.types import Georeference, Source

MAX_PIXELS = 2**30  # of an image that is decoded whole
MAX_STREAMED_PIXELS = 2**34
_SUFFIXES_TEXT = (
    ".avif .bmp .dib .gif .j2k .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp"
)
SUFFIXES = frozenset(_SUFFIXES_TEXT.split())
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")


def open_source(
    path: Path | str,
    *,
    exif: bool = True,
    stretch: Stretch | None = None,
    bands: Sequence[int] | None = None,
) -> Source:
    """Open an image file of any kind that Pillow reads, or, with the extra `geo`, rasterio.

    TIFF and JPEG 2000 are streamed from disk where rasterio is installed: only the windows that are
    read are decoded. Everything else is decoded whole by the first `read` and held until `close` as
    Pillow's bytes: 1 per pixel of grey and palette, 2 of 16-bit grey, 4 of colour.

    - Bytes are those that training sees: transparency is dropped, CMYK is converted.
    - Integers of more than 8 bits: the highest 8 of the bits that the file states, else of 16.
      Floats: 0..1. Other values need `stretch`. NaN and, in such pixels, nodata become 0.
    - The orientation in EXIF is applied, except to georeferenced files.
    - Of files of several pictures, the first.

    Args:
        path: of the file.
        exif: apply the orientation.
        stretch: pixel values (low, high) that become 0 and 255. Pixels of 8 bits stay as they are.
            Colours of more bits that Pillow reads, as in PNG, are refused: it has cut them to 8
            bits. So are all of AVIF, and of JPEG 2000 without rasterio, which may be such.
        bands: numbers from 1 of the band, or of the red, green and blue ones, to be read by
            rasterio; None: those that the file calls so, else all of one band or of three.

    Raises:
        OSError: the file is missing, unreadable, cut short or no image.
        ValueError: the image is of a kind that is refused, or an argument is wrong.
    """
    path = Path(path)
    checked_stretch(stretch)
    head = _head(path)
    source: FileSource | None = None
    raster = head.startswith(_TIFF + _JPEG_2000)
    geo = find_spec("rasterio") is not None
    driver = "GTiff" if head.startswith(_TIFF) else "JP2OpenJPEG"
    if raster and geo:
        from tinyops.inference.raster import open_raster

        source = open_raster(path, driver, exif=exif, stretch=stretch, bands=bands)
    limit = MAX_PIXELS if source is None else MAX_STREAMED_PIXELS
    if source is None:
        if bands is not None:
            raise ValueError(f"bands must be None for {path}, which Pillow reads, got {bands}")
        try:
            source = DecodedSource(path, exif=exif, stretch=stretch)
        except OSError as error:
            if raster and not geo:
                raise OSError(f"{error}; more kinds with pip install 'tinyops[geo]'") from error
            raise
    if not 0 < source.width * source.height <= limit:
        source.close()
        raise ValueError(
            f"{path} must have 1 to {limit} pixels, got {source.width}x{source.height}"
        )
    return source


def _head(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError(f"cannot read {path}: not a regular file")  # a pipe would block
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise OSError(f"cannot read {path}: the file is empty")
    return head


class ArraySource:
    """An image in memory.

    Args:
        image: uint8 array [H, W, 3] (RGB) or [H, W] (grey), uint8 tensor [3, H, W] of any device,
            or a PIL image of 8 bits, whose orientation in EXIF is not applied. Memory is shared: an
            image that is changed is read as changed.
        name: for messages and results.

    Raises:
        ValueError: the image is of another kind, or has no pixels.
    """

    georeference: Georeference | None = None

    def __init__(
        self, image: NDArray[np.uint8] | Tensor | Image.Image, name: str = "array"
    ) -> None:
        self.name = name
        if isinstance(image, Tensor):
            kind = f"a {image.dtype} tensor {list(image.shape)}"
            if image.ndim == 3 and len(image) == 3:
                image = image.detach().cpu().permute(1, 2, 0).numpy()
        elif isinstance(image, Image.Image):
            kind = f"a PIL image of mode {image.mode}, {image.width}x{image.height}"
        else:
            image = np.asarray(image)
            kind = f"a {image.dtype} array {list(image.shape)}"
        if not _is_image(image):
            raise ValueError(
                f"{name} must be a uint8 array [H, W, 3] or [H, W], a uint8 tensor [3, H, W] or an "
                f"8-bit PIL image, with at least one pixel, got {kind}"
            )
        self._image: Any = image
        if isinstance(image, Image.Image):
            self.width, self.height = image.size
        else:
            self.height, self.width = image.shape[:2]

    def read(self, window: Window) -> NDArray[np.uint8]:
        """A copy of the RGB pixels [h, w, 3] of a window; ValueError if it is not inside."""
        x1, y1, x2, y2 = checked(window, self)
        if self._image is None:
            raise ValueError(f"{self.name} is closed")
        if isinstance(self._image, Image.Image):
            with naming(self.name):
                crop = self._image.crop(window)
                return np.array(rgb_pixels(crop))
        pixels = self._image[y1:y2, x1:x2]
        return np.array(
            pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2), order="C"
        )

    def close(self) -> None:
        """Let go of the image; the source is not read again."""
        self._image = None


def _is_image(image: Any) -> bool:
    if isinstance(image, Image.Image):
        return image.mode in MODES and image.width * image.height > 0
    colour = image.ndim == 3 and image.shape[2] == 3
    return image.dtype == np.uint8 and (image.ndim == 2 or colour) and image.size > 0


def find_images(patterns: Sequence[str | Path]) -> list[Path]:
    """Paths of image files, sorted, each once.

    Args:
        patterns: files, directories, and globs, in which `**` stands for any directories. Of a
            directory, those files in it are taken that are not hidden and have a suffix of
            `SUFFIXES`; files that are named or that match a glob are taken whatever they are.

    Raises:
        FileNotFoundError: naming the pattern for which there is no file.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        paths = _matches(str(pattern))
        if not paths:
            raise FileNotFoundError(f"{pattern}: there is no such file, or no image in it")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return sorted(found.values())


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        return [
            file
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES
            and not file.name.startswith(".")
            and not file.is_dir()  # a broken link is taken: reading it says what is wrong
        ]
    if os.path.lexists(path):
        return [path]
    return [Path(match) for match in glob.glob(pattern, recursive=True) if not os.path.isdir(match)]
