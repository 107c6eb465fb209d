"""Pixels of more than 8 bits, and bands."""

import numpy as np
import pytest
import rasterio
from pictures import assert_windows, colours, deep, picture, three, whole, write_raster
from PIL import Image
from rasterio.enums import ColorInterp as Meaning

from tinyops.inference import source as source_module
from tinyops.inference.decoded import DecodedSource
from tinyops.inference.raster import RasterSource
from tinyops.inference.source import open_source


def test_of_16_bits_the_highest_8_are_taken(tmp_path, reader):
    high = (deep() >> 8).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        path = tmp_path / f"a.{kind}"
        picture("I;16").save(path, kind)
        assert_windows(path, three(high))
    colour = np.stack([deep(seed=seed) for seed in range(3)])
    png = write_raster(tmp_path / "rgb.png", colour, "PNG")
    tiff = write_raster(tmp_path / "rgb.tif", colour, photometric="RGB", interleave="pixel")
    for path in (png, tiff):
        assert_windows(path, (colour >> 8).astype(np.uint8).transpose(1, 2, 0))


def test_depth_that_the_file_states_is_used(tmp_path, reader):
    path = write_raster(tmp_path / "a.tif", deep(bits=12), nbits=12)
    assert_windows(path, three((deep(bits=12) >> 4).astype(np.uint8)))


def test_stretch_maps_linearly_and_clips(tmp_path, reader):
    values = np.zeros((36, 48), np.uint16)
    values[0, :5] = 99, 100, 200, 300, 301
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        Image.fromarray(values).save(path)
        pixels = whole(path, stretch=(100, 300))
        assert pixels[0, :5].tolist() == [[0] * 3, [0] * 3, [128] * 3, [255] * 3, [255] * 3]


def test_floats_are_in_0_to_1_and_nan_is_black(tmp_path, reader):
    values = np.zeros((36, 48), np.float32)
    values[0, :4] = 0, 0.5, 1, np.nan
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    assert whole(path)[0, :4, 0].tolist() == [0, 128, 255, 0]
    Image.fromarray(np.full((36, 48), np.nan, np.float32)).save(path)
    assert not whole(path).any()
    values[0, 2] = 1.5
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"a\.tif has float32 values from 0\.0 to 1\.5.*stretch"):
        whole(path)
    assert whole(path, stretch=(0, 1.5))[0, :4, 0].tolist() == [0, 85, 255, 0]


def test_values_beyond_16_bits_need_a_stretch(tmp_path, reader):
    values = np.zeros((36, 48), np.int32)
    values[0, :3] = 0, 70_000, -1
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"values from -1 to 70000, expected 0\.\.65535.*stretch"):
        whole(path)
    assert whole(path, stretch=(0, 140_000))[0, :3, 0].tolist() == [0, 128, 0]


def test_nodata_is_black(tmp_path):
    values = np.full((36, 48), 0.5, np.float32)
    values[3, 4] = -9999
    pixels = whole(write_raster(tmp_path / "a.tif", values, nodata=-9999))
    assert pixels[3, 4].tolist() == [0, 0, 0]
    assert (np.delete(pixels.reshape(-1, 3), 3 * 48 + 4, 0) == 128).all()


@pytest.mark.parametrize("stretch", [(3, 3), (4, 3), (float("nan"), 3), (0, float("inf"))])
def test_stretch_must_rise(tmp_path, stretch):
    picture("I;16").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="stretch must be"):
        open_source(tmp_path / "a.png", stretch=stretch)


def test_stretch_leaves_8_bits_as_they_are(tmp_path, reader):
    for name in ("a.png", "p.png", "a.tif", "a.jpg", "a.gif", "a.webp", "a.bmp", "a.ppm"):
        path = tmp_path / name
        picture("P" if name == "p.png" else "RGB").save(path)
        assert_windows(path, whole(path), stretch=(0, 10))


def test_stretch_is_refused_for_what_pillow_has_cut_to_8_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "find_spec", lambda name: None)
    values = np.stack([deep(seed=seed) for seed in range(4)])
    colour = {"photometric": "RGB", "interleave": "pixel"}
    write_raster(tmp_path / "rgb.png", values[:3], "PNG")
    write_raster(tmp_path / "la.png", values[:2], "PNG")
    write_raster(tmp_path / "rgb.tif", values[:3], **colour)
    write_raster(tmp_path / "rgba.tif", values, **colour, compress="deflate")
    (tmp_path / "a.ppm").write_bytes(b"P6 48 36 65535\n" + values[:3].tobytes())
    picture("RGB").save(tmp_path / "a.sgi", bpc=2)
    picture("RGB").save(tmp_path / "a.jp2")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"stretch must be None for {path}, of which Pillow"):
            open_source(path, stretch=(0, 10))


# Bands


def test_bands_are_chosen_by_number(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 36, 48), np.uint8)
    path = write_raster(tmp_path / "a.tif", values, photometric="MINISBLACK")
    with pytest.raises(ValueError, match=r"a\.tif has 5 bands.*choose by bands"):
        open_source(path)
    assert_windows(path, values[[3, 0, 4]].transpose(1, 2, 0), bands=(4, 1, 5))
    assert_windows(path, three(values[1]), bands=(2,))
    for bands in ((0, 1, 2), (1, 2, 6), (1, 2), ()):
        with pytest.raises(ValueError, match=r"bands must be one or three of 1\.\.5"):
            open_source(path, bands=bands)
    picture("RGB").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="bands must be None"):
        open_source(tmp_path / "a.png", bands=(1, 2, 3))


def test_three_bands_without_names_are_red_green_blue(tmp_path):
    values = np.random.default_rng(0).random((3, 36, 48)).astype(np.float32)
    path = write_raster(tmp_path / "a.tif", values)
    assert_windows(path, (values * 255).round().astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bands_called_red_green_blue_are_found_anywhere(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (4, 36, 48), np.uint8)
    path = write_raster(tmp_path / "a.tif", values, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [Meaning.blue, Meaning.green, Meaning.red, Meaning.undefined]
    assert_windows(path, values[[2, 1, 0]].transpose(1, 2, 0))


def test_kinds_that_only_rasterio_reads_say_what_to_install(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "a.tif", np.zeros((5, 36, 48), np.uint8))
    monkeypatch.setattr(source_module, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"a\.tif.*tinyops\[geo\]"):
        open_source(path)


def test_jpeg_2000_is_read_with_and_without_rasterio(tmp_path, reader):
    path = tmp_path / "a.jp2"
    picture("RGB").save(path, irreversible=False)
    assert_windows(path, colours())
    assert isinstance(open_source(path), RasterSource if reader == "geo" else DecodedSource)
