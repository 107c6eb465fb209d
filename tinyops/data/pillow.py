"""Files of pictures of 8-bit pixels, by Pillow."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What `rgb_pixels` takes.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
_limit_lock = threading.Lock()


@contextmanager
def any_size() -> Iterator[None]:
    """Without Pillow's limit of 179 Mpx against bombs; the caller has another reason to trust.

    The limit is Pillow's global, so one thread at a time is in here.
    """
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an image in one of `MODES`; transparency is dropped."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # Pillow warns that it is dropped
    return np.asarray(image.convert("RGB"))
