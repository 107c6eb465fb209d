"""Images from files by windows."""

import threading
import tracemalloc

import numpy as np
import pytest
import rasterio
import torch
from pictures import (
    assert_windows,
    colours,
    encoded,
    picture,
    png_chunk,
    png_header,
    three,
    whole,
    write_raster,
)
from PIL import Image, ImageOps

from tinyops.data.dataset import decode
from tinyops.data.types import AnnotatedImage
from tinyops.inference import source as source_module
from tinyops.inference.decoded import DecodedSource
from tinyops.inference.source import open_source


def coco(path):
    """The file as training sees it."""
    none = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    return path, AnnotatedImage(1, path.name, 48, 36, *none)


def bytes_of(image):
    """What 8-bit pixels show, by numpy alone where the mode has no colour arithmetic."""
    values = np.asarray(image)
    if image.mode == "1":
        return np.repeat(values[..., None], 3, 2).astype(np.uint8) * 255
    if image.mode in ("L", "LA"):
        return np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, 2)
    if image.mode == "P":
        return np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[values]
    if image.mode in ("RGB", "RGBA"):
        return values[..., :3]
    return np.asarray(image.convert("RGB"))


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "P", "RGB", "RGBA"),
}


def read_by(cases):
    """The cases with their readers: rasterio reads TIFF alone."""
    readers = {"TIFF": ("geo", "plain")}
    return [(*case, reader) for case in cases for reader in readers.get(case[0], ("geo",))]


WITH_OPTIONS = [
    ("JPEG", "L", {}),
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "CMYK", {}),
    ("PNG", "P", {"transparency": b"\0\x80"}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "L", {"transparency": 3}),
    ("PNG", "RGB", {"transparency": (1, 2, 3)}),
    ("GIF", "P", {"transparency": 3}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {}),
    ("TIFF", "YCbCr", {"compression": "tiff_lzw"}),  # Pillow 12 cannot read plain ones
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "L", {"compression": "packbits"}),
    ("TIFF", "1", {"compression": "group4"}),
]
LOSSLESS = [(kind, mode) for kind, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize(("kind", "mode", "reader"), read_by(LOSSLESS), indirect=["reader"])
def test_files_of_8_bits_give_the_pixels_that_were_written(kind, mode, tmp_path, reader):
    if mode == "LAB":
        image = Image.frombytes("LAB", (48, 36), colours().tobytes())
    else:
        image = picture(mode)
    path = tmp_path / f"a.{kind}"
    image.save(path, kind)
    assert_windows(path, bytes_of(image))


@pytest.mark.parametrize(
    ("kind", "mode", "options", "reader"), read_by(WITH_OPTIONS), indirect=["reader"]
)
@pytest.mark.filterwarnings("error")
def test_files_of_8_bits_give_the_pixels_that_training_sees(kind, mode, options, tmp_path, reader):
    path = tmp_path / f"a.{kind}"
    picture(mode).save(path, kind, **options)
    tolerance = 1 if mode == "YCbCr" and reader == "geo" else 0  # GDAL rounds in another way
    assert_windows(path, decode(*coco(path)), tolerance)


def test_jpeg_in_tiff_is_near_what_was_written(tmp_path, reader):
    smooth = np.linspace(0, 200, 48).astype(np.uint8)[None, :, None] + np.array([0, 20, 40])
    pixels = np.broadcast_to(smooth.astype(np.uint8), (36, 48, 3))
    path = tmp_path / "a.tif"
    write_raster(
        path, pixels.transpose(2, 0, 1), compress="jpeg", photometric="ycbcr", interleave="pixel"
    )
    assert_windows(path, pixels, tolerance=8)


def test_inverted_grey_and_few_bits_per_pixel(tmp_path, reader):
    grey = colours()[..., 0]
    white = write_raster(tmp_path / "white.tif", grey, photometric="MINISWHITE")
    assert_windows(white, np.repeat(255 - grey[..., None], 3, 2))
    for bits in (1, 2, 4):
        path = write_raster(tmp_path / f"{bits}.tif", grey >> (8 - bits), nbits=bits)
        shown = (grey >> (8 - bits)) * (255 // (2**bits - 1))
        assert_windows(path, np.repeat(shown[..., None], 3, 2))


def test_the_first_of_several_pictures_is_read(tmp_path, reader):
    for kind in ("GIF", "TIFF", "WEBP"):
        path = tmp_path / f"a.{kind}"
        options = {"lossless": True} if kind == "WEBP" else {}
        first, second = picture("RGB", seed=3), picture("RGB", seed=7)
        first = first.convert("P").convert("RGB")
        first.save(path, kind, save_all=True, append_images=[second], **options)
        assert_windows(path, np.asarray(first), tolerance=0 if kind != "GIF" else 1)


# Orientation


UPRIGHT = {  # EXIF's words: where the first row and the first column of stored pixels are seen
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.transpose(1, 0, 2),  # left, top
    6: lambda stored: np.rot90(stored, -1),  # right, top
    7: lambda stored: np.rot90(stored, -1)[::-1],  # right, bottom
    8: lambda stored: np.rot90(stored),  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_to_windows(orientation, tmp_path, reader):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture("RGB")
    seen = UPRIGHT[orientation](colours())
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        path = tmp_path / f"a.{kind}"
        image.save(path, kind, exif=exif, **options)
        assert_windows(path, seen)
        assert_windows(path, colours(), exif=False)
    path = tmp_path / "a.jpg"
    image.save(path, exif=exif)
    with Image.open(path) as file:
        assert_windows(path, np.asarray(ImageOps.exif_transpose(file)))
        assert_windows(path, np.asarray(file), exif=False)


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(picture("RGB"), "PNG")
    end = plain.rindex(b"IEND") - 4
    late = plain[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[end:]
    (tmp_path / "a.png").write_bytes(late)
    assert_windows(tmp_path / "a.png", UPRIGHT[6](colours()))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_metadata_do_not_matter(exif, tmp_path):
    picture("RGB").save(tmp_path / "a.png", exif=exif)
    assert_windows(tmp_path / "a.png", colours())


# Maps


def test_georeference_maps_corners_to_the_map(tmp_path):
    path = tmp_path / "a.tif"
    affine = rasterio.Affine(2, 0.5, 500_000, 0.25, -2, 5_000_000)
    write_raster(
        path,
        colours().transpose(2, 0, 1),
        crs="EPSG:32633",
        transform=affine,
        tiled=True,
        blockxsize=16,
        blockysize=16,
        compress="deflate",
    )
    assert_windows(path, colours())
    georeference = open_source(path).georeference
    assert georeference.crs == "EPSG:32633"
    corners = torch.tensor([[0.0, 0.0], [48.0, 0.0], [0.0, 36.0], [48.0, 36.0]])
    assert georeference.to_map(corners).tolist() == [
        [500_000, 5_000_000],
        [500_000 + 96, 5_000_000 + 12],
        [500_000 + 18, 5_000_000 - 72],
        [500_000 + 114, 5_000_000 - 60],
    ]


def test_plain_files_have_no_georeference(tmp_path, reader):
    for kind in ("PNG", "TIFF"):
        picture("RGB").save(tmp_path / f"a.{kind}", kind)
        assert open_source(tmp_path / f"a.{kind}").georeference is None


# Windows and memory


def test_windows_outside_the_image_are_refused(tmp_path, reader):
    for kind in ("PNG", "TIFF"):
        picture("RGB").save(tmp_path / f"a.{kind}", kind)
        source = open_source(tmp_path / f"a.{kind}")
        for window in ((0, 0, 49, 36), (0, 0, 48, 37), (-1, 0, 3, 3), (5, 5, 5, 8), (6, 5, 5, 8)):
            with pytest.raises(ValueError, match="window must lie inside the 48x36 px of"):
                source.read(window)
        source.close()
        source.close()
        with pytest.raises(ValueError, match="is closed"):
            source.read((0, 0, 1, 1))


def test_images_of_one_pixel(tmp_path, reader):
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        Image.new("RGB", (1, 1), (255, 0, 0)).save(tmp_path / f"a.{kind}", kind)
        assert whole(tmp_path / f"a.{kind}").tolist() == [[[255, 0, 0]]]


def test_opened_in_one_thread_and_read_in_another(tmp_path, reader):
    for kind in ("PNG", "TIFF"):
        path, sources = tmp_path / f"a.{kind}", []
        picture("RGB").save(path, kind)
        thread = threading.Thread(
            target=lambda p, s: s.append(open_source(p)), args=(path, sources)
        )
        thread.start()
        thread.join()
        assert np.array_equal(sources[0].read((0, 0, 48, 36)), colours())


def tiled_file(path):
    values = np.random.default_rng(0).integers(0, 256, (3, 4096, 4096), np.uint8)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "pixel"}
    return write_raster(path, values, compress="deflate", zlevel=1, **options), values


def test_windows_of_a_tiled_tiff_decode_their_own_tiles_alone(tmp_path):
    path, values = tiled_file(tmp_path / "a.tif")
    with Image.open(path) as file:
        offsets, lengths = file.tag_v2[324], file.tag_v2[325]
    data = bytearray(path.read_bytes())
    near = {row * 16 + column for row in (4, 5) for column in (7, 8, 9)}
    for k, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if k not in near:
            data[offset : offset + length] = bytes(length)  # cannot be decoded
    path.write_bytes(data)
    source = open_source(path)
    x1, y1, x2, y2 = 1800, 1030, 2440, 1530
    tracemalloc.start()
    pixels = source.read((x1, y1, x2, y2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(pixels, values[:, y1:y2, x1:x2].transpose(1, 2, 0))
    assert peak < 4 * pixels.nbytes
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot read .*a\.tif: ") as caught:
            source.read((x1 + 300, y1, x2 + 300, y2))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "I;16", "CMYK"])
def test_windows_of_a_decoded_file_convert_their_own_pixels_alone(mode, tmp_path):
    path = tmp_path / "a.tif"
    image = picture(mode).resize((2000, 1500), Image.Resampling.NEAREST)
    image.save(path)
    source = DecodedSource(path, exif=True, stretch=None)
    source.read((0, 0, 1, 1))  # Pillow decodes, into memory of its own
    tracemalloc.start()
    pixels = source.read((700, 500, 1340, 1012))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * pixels.nbytes < 2000 * 1500 * 2


# Size


def test_sizes_beyond_the_limit_are_refused_before_decoding(tmp_path, reader):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(40_000, 40_000))
    with pytest.raises(ValueError, match=r"a\.png must have 1 to 1073741824 pixels, got 40000x4"):
        open_source(path)


def test_limit_of_streamed_files(tmp_path, monkeypatch):
    picture("RGB").save(tmp_path / "a.tif")
    monkeypatch.setattr(source_module, "MAX_STREAMED_PIXELS", 48 * 36 - 1)
    with pytest.raises(ValueError, match=r"a\.tif must have 1 to 1727 pixels, got 48x36"):
        open_source(tmp_path / "a.tif")


@pytest.mark.filterwarnings("error")
def test_limit_of_pillow_does_not_hold(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "TIFF", "GIF", "BMP"):
        options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        Image.fromarray(colours()[..., 0]).save(tmp_path / f"a.{kind}", kind, **options)
        assert_windows(tmp_path / f"a.{kind}", three(colours()[..., 0]))
        assert np.array_equal(decode(*coco(tmp_path / f"a.{kind}")), three(colours()[..., 0]))
    assert Image.MAX_IMAGE_PIXELS == 100
