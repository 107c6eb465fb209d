"""TIFF and JPEG 2000 by windows from disk, through rasterio (the optional extra `geo`)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tinyops.data.tiles import Window
from tinyops.inference.pixels import FileSource, Stretch, naming, quiet, to_bytes
from tinyops.inference.types import Georeference

_CACHE = 2**28  # bytes: the blocks under a row of windows of an image of 80,000 px
_MAX_BLOCK = 2**30  # pixels; a window needs its blocks whole in memory
_ORIENTATION = 274


def _gdal() -> Any:
    """Keeps GDAL from writing to stderr, and its cache small if it is the first to use GDAL."""
    return rasterio.Env(GDAL_CACHEMAX=os.environ.get("GDAL_CACHEMAX", _CACHE))


class RasterSource(FileSource):
    """The first page of a TIFF, or a JPEG 2000, of which only windows are decoded.

    GDAL keeps decoded blocks up to GDAL_CACHEMAX: what the environment says, else 256 MiB, unless
    the program has used GDAL before, whose own limit is 5 % of the memory.
    """

    def __init__(
        self,
        path: Path,
        file: Any,
        *,
        exif: bool,
        stretch: Stretch | None,
        bands: Sequence[int] | None,
    ) -> None:
        name = str(path)
        with naming(name):
            meaning = [colour.name for colour in file.colorinterp]
            georeference = None
            if file.crs is not None and not file.transform.is_identity:
                georeference = Georeference(tuple(file.transform)[:6], file.crs.to_string())
        orientation, end = _tiff_facts(path)
        if not exif or georeference is not None:  # maps refer to stored pixels
            orientation = 1
        super().__init__(name, (file.width, file.height), orientation, georeference)
        self._bands, self._stretch = _chosen(bands, meaning, name), stretch
        first = self._bands[0]
        self._dtype = np.dtype(file.dtypes[first - 1])
        with naming(name):
            one = len(self._bands) == 1
            self._palette = _palette(file, first) if one else None
            self._inverted = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
            bits = file.tags(first, ns="IMAGE_STRUCTURE").get("NBITS")
            self._bits = int(bits or min(8 * self._dtype.itemsize, 16))
            self._nodata = file.nodata
        if self._dtype.kind not in "uif" or self._dtype == np.int8:
            raise ValueError(f"{path} must have integers or floats as pixels, got {self._dtype}")
        if max(h * w for h, w in file.block_shapes) > _MAX_BLOCK:
            raise ValueError(
                f"{path} must have blocks of at most {_MAX_BLOCK} px, got {file.block_shapes[0]}"
            )
        if end > (length := path.stat().st_size):  # now, not when the last window is read
            raise OSError(f"cannot read {path}: it is cut short, {length} of {end} bytes are there")
        self._file = file

    def _stored(self, window: Window) -> NDArray[np.uint8]:
        x1, y1, x2, y2 = window
        with naming(self.name), _gdal():
            values = self._file.read(self._bands, window=((y1, y2), (x1, x2)))  # [B, h, w]
        if self._palette is not None:
            return self._palette[np.minimum(values[0], len(self._palette) - 1)]
        pixels = self._bytes(values)
        if self._inverted:
            pixels = 255 - pixels
        h, w = pixels.shape[1:]
        return np.broadcast_to(pixels, (3, h, w)).transpose(1, 2, 0)

    def _bytes(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if self._dtype == np.uint8:
            if self._bits == 8:
                return values
            return (values.astype(np.uint16) * 255 // (2**self._bits - 1)).astype(np.uint8)
        missing = values == self._nodata  # nowhere if there is no such value
        pixels = to_bytes(
            np.where(missing, 0, values).astype(self._dtype), self._bits, self._stretch, self.name
        )
        return np.where(missing, np.uint8(0), pixels)


def open_raster(
    path: Path, driver: str, *, exif: bool, stretch: Stretch | None, bands: Sequence[int] | None
) -> RasterSource | None:
    """The file; None if its colours are of a kind that only Pillow converts (CMYK, CIELAB)."""
    with _gdal(), quiet():
        with naming(str(path)):
            file = rasterio.open(os.path.abspath(path), driver=driver, sharing=False)
            colours = file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE", "YCbCr")
        try:
            if colours == "YCbCr":  # GDAL makes it RGB
                return RasterSource(path, file, exif=exif, stretch=stretch, bands=bands)
        except BaseException:
            file.close()
            raise
        file.close()
        return None


def _chosen(bands: Sequence[int] | None, meaning: list[str], name: str) -> list[int]:
    """Numbers from 1 of the bands that are shown: one, or red, green and blue."""
    if bands is not None:
        if len(bands) not in (1, 3) or not all(1 <= band <= len(meaning) for band in bands):
            raise ValueError(
                f"bands must be one or three of 1..{len(meaning)} for {name}, got {tuple(bands)}"
            )
        return list(bands)
    if {"red", "green", "blue"} <= set(meaning):
        return [meaning.index(colour) + 1 for colour in ("red", "green", "blue")]
    colours = [k for k, colour in enumerate(meaning, 1) if colour != "alpha"]
    if len(colours) not in (1, 3):
        raise ValueError(
            f"{name} has {len(meaning)} bands, of which none are called red, green and blue; "
            "choose by bands=(r, g, b)"
        )
    return colours


def _palette(file: Any, band: int) -> NDArray[np.uint8] | None:
    """[N, 3] colours of the values of a band."""
    if file.colorinterp[band - 1].name != "palette":
        return None
    colours = file.colormap(band)
    palette = np.zeros((max(colours) + 1, 3), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour[:3]
    return palette


def _tiff_facts(path: Path) -> tuple[int, int]:
    """Orientation, and how long the file must be; 1 and 0 where Pillow finds no such tags."""
    with open(path, "rb") as file:
        try:
            head = file.read(8)
            tags = ImageFileDirectory_v2(head + (file.read(8) if head[2] == 43 else b""))
            file.seek(tags.next)
            tags.load(file)
            blocks = [
                offset + length
                for offsets, lengths in ((273, 279), (324, 325))  # of strips, of tiles
                for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=True)
            ]
            return int(tags.get(_ORIENTATION, 1)), int(max(blocks, default=0))
        except Exception:  # GDAL judges the file, this is only what GDAL does not tell
            return 1, 0
