"""Files that are broken, cut short or no images."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import encoded, picture, whole, write_raster

from tinyops.inference.source import open_source


def assert_refused(path, error=OSError):
    with pytest.raises(error) as caught:
        whole(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.tif", "a"])
def test_what_is_no_image_is_one_line_that_names_the_file(name, tmp_path, reader):
    path = tmp_path / name
    noise = np.random.default_rng(0).bytes(3000)
    for data in (b"x", b"hello\nworld\n" * 50, noise, b"II*\0", b"MM\0*" + noise, b"\x89PNG\r\n"):
        path.write_bytes(data)
        assert_refused(path)
    path.write_bytes(b"")
    assert "the file is empty" in assert_refused(path)


def test_what_is_no_file_is_one_line_that_names_it(tmp_path):
    assert_refused(tmp_path / "missing.png", FileNotFoundError)
    (tmp_path / "folder.png").mkdir()
    assert_refused(tmp_path / "folder.png", IsADirectoryError)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert_refused(tmp_path / "link.png", FileNotFoundError)
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in assert_refused(tmp_path / "pipe.png")


def test_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    picture("RGB").save(path)

    def refuse(file, *args, **options):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"a\.png"):
        open_source(path)


def test_drawings_and_unknown_pixels_are_refused(tmp_path):
    picture("RGB").save(tmp_path / "a.eps")
    assert "got EPS" in assert_refused(tmp_path / "a.eps", ValueError)
    write_raster(tmp_path / "a.tif", np.zeros((36, 48), np.complex64))
    assert "integers or floats" in assert_refused(tmp_path / "a.tif", ValueError)


def test_streamed_file_that_is_cut_short_is_refused_before_it_is_read(tmp_path):
    values = np.zeros((3, 128, 128), np.uint8)
    path = write_raster(tmp_path / "a.tif", values, tiled=True, blockxsize=64, blockysize=64)
    whole(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OSError, match=r"cannot read .*a\.tif: it is cut short"):
        open_source(path)


def attempt(path, window=(0, 0, 48, 36)):
    """Pixels; None if the file is refused in one line that names it, each time it is read."""
    try:
        source = open_source(path)
    except (OSError, ValueError):
        assert_refused(path, (OSError, ValueError))
        return None
    try:
        return source.read(window)
    except (OSError, ValueError):  # the second attempt must not give half a picture
        with pytest.raises((OSError, ValueError)) as caught:
            source.read(window)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return None
    finally:
        source.close()


KINDS = {
    "png": ("RGB", "PNG", {}),
    "jpg": ("RGB", "JPEG", {}),
    "progressive.jpg": ("RGB", "JPEG", {"progressive": True}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "webp": ("RGB", "WEBP", {"lossless": True}),
    "tif": ("RGB", "TIFF", {}),
    "lzw.tif": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "p.tif": ("P", "TIFF", {}),
    "jp2": ("RGB", "JPEG2000", {}),
    "ppm": ("RGB", "PPM", {}),
    "tga": ("RGB", "TGA", {}),
}


@pytest.mark.parametrize(
    ("name", "reader"),
    [*((name, "geo") for name in KINDS), *((name, "plain") for name in ("tif", "lzw.tif", "jp2"))],
    indirect=["reader"],
)
def test_truncated_files_are_refused_or_whole(name, tmp_path, reader):
    mode, kind, options = KINDS[name]
    data = encoded(picture(mode), kind, **options)
    path = tmp_path / f"a.{name}"
    path.write_bytes(data)
    expected = whole(path)
    cuts = sorted(
        {*range(0, len(data), max(1, len(data) // 40)), *range(len(data) - 20, len(data))}
    )
    refused = 0
    for cut in cuts:
        path.write_bytes(data[:cut])
        pixels = attempt(path)
        assert pixels is None or np.array_equal(pixels, expected), f"{cut} of {len(data)} bytes"
        refused += pixels is None
    assert refused >= len(cuts) - 21


ENCODED = {name: encoded(picture(mode), kind, **o) for name, (mode, kind, o) in KINDS.items()}


@settings(
    max_examples=200,
    deadline=5000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(sorted(KINDS)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    near=st.sampled_from([32, 256, 10**6]),
)
def test_corrupt_files_are_read_or_refused(name, flips, near, tmp_path, reader):
    data = bytearray(ENCODED[name])
    for place, value in flips:
        data[place % min(near, len(data))] = value
    path = tmp_path / f"b.{name}"
    path.write_bytes(data)
    pixels = attempt(path, (0, 0, 1, 1))
    assert pixels is None or pixels.shape == (1, 1, 3)
