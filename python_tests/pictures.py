"""Small image files of every kind."""

import io
import warnings
import zlib

import numpy as np
import rasterio
from PIL import Image

from tinyops.inference.source import open_source

WINDOWS = [  # x1 y1 x2 y2 of an image of 48x36
    (0, 0, 48, 36),
    (0, 0, 1, 1),
    (47, 35, 48, 36),
    (0, 30, 17, 36),
    (41, 0, 48, 36),
    (13, 7, 31, 22),
]


def colours(height=36, width=48, seed=0):
    """uint8 [H, W, 3]: blocks of 3x3 px, so that JPEG comes close to it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 3, 3), np.uint8)
    return np.kron(blocks, np.ones((3, 3, 1), np.uint8))


def picture(mode, seed=0):
    """48x36 px in a mode of Pillow, with transparency that varies."""
    image = Image.fromarray(colours(seed=seed))
    alpha = Image.fromarray(colours(seed=seed + 1)[..., 0])
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(alpha)
        return image
    if mode == "I;16":
        return Image.fromarray(deep())
    return image.convert(mode)


def deep(bits=16, seed=0):
    """uint16 [36, 48] that uses all of the bits."""
    return np.random.default_rng(seed).integers(0, 2**bits, (36, 48), np.uint16)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_raster(path, values, driver="GTiff", **options):
    """A file of [H, W] or [B, H, W] values by rasterio."""
    values = values[None] if values.ndim == 2 else values
    count, height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver=driver,
            width=width,
            height=height,
            count=count,
            dtype=values.dtype,
            **options,
        ) as file:
            file.write(values)
    return path


def png_chunk(kind, data):
    body = kind + data
    return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def png_header(width, height):
    """A PNG of 1 bit per pixel that ends where its pixels begin."""
    fields = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", fields) + png_chunk(b"IDAT", b"")


def whole(path, **options):
    source = open_source(path, **options)
    pixels = source.read((0, 0, source.width, source.height))
    source.close()
    return pixels


def three(grey):
    return np.repeat(grey[..., None], 3, 2)


def assert_windows(path, expected, tolerance=0, **options):
    source = open_source(path, **options)
    assert source.name == str(path)
    assert (source.height, source.width, 3) == expected.shape
    for x1, y1, x2, y2 in WINDOWS:
        if expected.shape[0] > expected.shape[1]:
            x1, y1, x2, y2 = y1, x1, y2, x2
        pixels = source.read((x1, y1, x2, y2))
        wanted = expected[y1:y2, x1:x2]
        assert pixels.dtype == np.uint8
        assert pixels.shape == wanted.shape
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        assert np.abs(pixels.astype(int) - wanted).max() <= tolerance
    source.close()
