"""Images that tiled detection reads: files, arrays in memory, and lists of files."""

import glob
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tinyops.data.pillow import MODES, any_size, rgb_pixels
from tinyops.data.tiles import Window
from tinyops.inference.pixels import (
    FileSource,
    Stretch,
    checked,
    checked_stretch,
    naming,
    to_bytes,
)
from tinyops.inference.types import Source

MAX_PIXELS = 2**30  # of an image that is decoded whole
MAX_STREAMED_PIXELS = 2**34
_SUFFIXES_TEXT = (
    ".avif .bmp .dib .gif .j2k .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp"
)
SUFFIXES = frozenset(_SUFFIXES_TEXT.split())
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_ORIENTATION = 0x0112


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
        stretch: pixel values (low, high) that become 0 and 255, for pixels of more than 8 bits.
        bands: numbers from 1 of the band, or of the red, green and blue ones, to be read by
            rasterio; None: those that the file calls so, else of one to three bands all.

    Raises:
        OSError: the file is missing, unreadable, cut short or no image.
        ValueError: the image is of a kind that is refused, or an argument is wrong.
    """
    path = Path(path)
    checked_stretch(stretch)
    head = _head(path)
    source: FileSource | None = None
    driver = "GTiff" if head.startswith(_TIFF) else "JP2OpenJPEG"
    if head.startswith(_TIFF + _JPEG_2000) and find_spec("rasterio") is not None:
        from tinyops.inference.raster import open_raster

        source = open_raster(path, driver, exif=exif, stretch=stretch, bands=bands)
    limit = MAX_PIXELS if source is None else MAX_STREAMED_PIXELS
    if source is None:
        if bands is not None:
            raise ValueError(f"bands must be None for {path}, which Pillow reads, got {bands}")
        source = _PillowSource(path, exif=exif, stretch=stretch)
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


class _PillowSource(FileSource):
    """A file that Pillow decodes whole, at the first read; converted window by window."""

    def __init__(self, path: Path, *, exif: bool, stretch: Stretch | None) -> None:
        with naming(str(path)), any_size():
            image = Image.open(path)
        try:
            if image.format in ("EPS", "WMF") or image.mode not in MODES + _DEEP:
                raise ValueError(
                    f"{path} must hold pixels of mode {', '.join(MODES + _DEEP)}, "
                    f"got {image.format} of mode {image.mode}"
                )
            if stretch is not None and image.mode in MODES:
                raise ValueError(
                    f"stretch must be None for {path}, which Pillow reads as 8-bit {image.mode}, "
                    f"got {stretch}"
                )
            orientation = _orientation(path, image) if exif or image.format == "TIFF" else 1
            if image.format == "TIFF":  # Pillow has applied it
                orientation = 1 if exif else {6: 8, 8: 6}.get(orientation, orientation)
            super().__init__(str(path), image.size, orientation)
        except BaseException:
            image.close()
            raise
        self._file, self._stretch = image, stretch
        self._bits = 12 if image.tile and image.tile[0][3] == "I;12" else 16
        self._large = image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0)

    def _stored(self, window: Window) -> NDArray[np.uint8]:
        with naming(self.name), any_size() if self._large else nullcontext():
            self._file.load()
            crop = self._file.crop(window)
        return _rgb(crop, self._bits, self._stretch, self.name)


def _rgb(image: Image.Image, bits: int, stretch: Stretch | None, name: str) -> NDArray[np.uint8]:
    if image.mode in MODES:
        return rgb_pixels(image)
    grey = to_bytes(np.asarray(image), bits, stretch, name)
    return np.broadcast_to(grey[..., None], (*grey.shape, 3))


def _orientation(path: Path, image: Image.Image) -> int:
    """1 to 8; 1 if the file says nothing or nonsense."""
    if image.format == "PNG" and "exif" not in image.info:
        _find_late_exif(path, image)
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))  # PNG's own would decode
    except Exception:  # as image viewers do: bad metadata are no reason not to show the pixels
        return 1


def _find_late_exif(path: Path, image: Image.Image) -> None:
    """PNG may have EXIF behind the pixels, where Pillow sees it only after decoding."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                image.info["exif"] = b"Exif\0\0" + file.read(length)
                return
            file.seek(length + 4, os.SEEK_CUR)


class ArraySource:
    """An image in memory.

    Args:
        image: uint8 array [H, W, 3] (RGB) or [H, W] (grey), uint8 tensor [3, H, W] of any device,
            or a PIL image, whose orientation in EXIF is not applied. Memory is shared: an image
            that is changed is read as changed.
        name: for messages and results.

    Raises:
        ValueError: the image is of another kind, or has no pixels.
    """

    georeference = None

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
                f"{name} must be a uint8 array [H, W, 3] or [H, W], a uint8 tensor [3, H, W] or a "
                f"PIL image, with at least one pixel, got {kind}"
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
            return np.array(_rgb(crop, 16, None, self.name))
        pixels = self._image[y1:y2, x1:x2]
        return np.array(
            pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2), order="C"
        )

    def close(self) -> None:
        """Let go of the image; the source is not read again."""
        self._image = None


def _is_image(image: Any) -> bool:
    if isinstance(image, Image.Image):
        return image.mode in MODES + _DEEP and image.width * image.height > 0
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
