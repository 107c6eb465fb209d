"""Files that Pillow decodes whole."""

import os
import re
import struct
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from tinyops.data.pillow import MODES, any_size, rgb_pixels
from tinyops.data.tiles import Window
from tinyops.inference.pixels import FileSource, Stretch, naming, quiet, to_bytes

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of more than 8 bits
_DRAWINGS = ("EPS", "WMF")  # Pillow would start another program to draw them
_SILENT = ("AVIF", "JPEG2000")  # of colours of more than 8 bits, Pillow keeps to itself how many
_ORIENTATION = 0x0112


class DecodedSource(FileSource):
    """The first picture of a file, decoded by the first read, converted window by window."""

    def __init__(self, path: Path, *, exif: bool, stretch: Stretch | None) -> None:
        with naming(str(path)), any_size(), quiet():
            image = Image.open(path)
            orientation = _orientation(path, image)
        try:
            if image.format in _DRAWINGS or image.mode not in MODES + _DEEP:
                raise ValueError(
                    f"{path} must hold pixels of mode {', '.join(MODES + _DEEP)}, "
                    f"got {image.format} of mode {image.mode}"
                )
            if stretch is not None and image.mode in MODES and _is_cut(image):
                raise ValueError(
                    f"stretch must be None for {path}, of which Pillow reads 8 bits of those that "
                    f"the {image.format} has or may have, got {stretch}"
                )
            if image.format == "TIFF":  # here Pillow applies it, wanted or not
                undo = {6: 8, 8: 6}.get(orientation, orientation)
                orientation = 1 if exif else undo
            elif not exif:
                orientation = 1
            super().__init__(str(path), image.size, orientation)
        except BaseException:
            image.close()
            raise
        self._file, self._stretch = image, stretch
        self._size, self._mode = image.size, image.mode
        self._bits = 12 if "I;12" in str(image.tile[:1]) else 16  # a TIFF's
        self._failed: OSError | None = None
        self._large = image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0)

    def _stored(self, window: Window) -> NDArray[np.uint8]:
        if self._failed is not None:  # Pillow would give what it has decoded so far
            raise self._failed
        try:
            with naming(self.name), any_size() if self._large else nullcontext():
                self._file.load()
                if (self._file.size, self._file.mode) != (self._size, self._mode):
                    raise OSError(f"its header says {self._size} {self._mode}, its pixels do not")
                crop = self._file.crop(window)
        except OSError as error:
            self._failed = error
            raise
        if crop.mode in MODES:
            return rgb_pixels(crop)
        grey = to_bytes(np.asarray(crop), self._bits, self._stretch, self.name)
        return np.broadcast_to(grey[..., None], (*grey.shape, 3))


def _is_cut(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow's 8 bits are of more in the file, or may be, if it does not tell."""
    if image.format in _SILENT:
        return True
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (1,))) > 8
    how = image.tile[0] if image.tile else None
    if image.format == "PPM":
        return how is not None and isinstance(how.args, tuple) and how.args[1] > 255
    return re.search("SGI16|;16[BLN]", str(how)) is not None


def _orientation(path: Path, image: Image.Image) -> int:
    """1 to 8; 1 if the file says nothing or nonsense."""
    try:
        if image.format == "PNG" and "exif" not in image.info:
            _find_late_exif(path, image)
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
