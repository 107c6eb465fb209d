"""Erased regions, and tiles as files."""

from dataclasses import replace

import numpy as np
import pytest
from annotated import annotated_image, annotated_set
from PIL import Image

from tinyops.data import read, write
from tinyops.data.pixels import erased, read_pixels, without_ignored, write_erased, write_tiles
from tinyops.data.tile_set import cut_set, merge_tiles

BOXES = [(10, 10, 20, 10), (22.5, 12, 4, 4), (50, 30, 100, 100), (70, 5, 6, 6)]
IGNORE = [1, 0, 1, 0]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    images = []
    for number in range(2):
        pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        name = f"sub/{number}.png"
        Image.fromarray(pixels).save(tmp_path / name)
        images.append(annotated_image(number, (90, 60), BOXES, ignore=IGNORE, file_name=name))
    return annotated_set(*images, folder=tmp_path)


def stored(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_regions_are_filled_and_objects_in_them_stay(data, fill):
    pixels = read_pixels(data, data.images[0])
    result = erased(pixels, data.images[0], fill)
    expected = pixels.copy()
    for rows, columns in ((slice(10, 20), slice(10, 30)), (slice(30, 60), slice(50, 90))):
        region = pixels[rows, columns].reshape(-1, 3)
        expected[rows, columns] = region.mean(0).round() if fill == "mean" else 0
    expected[12:16, 22:27] = pixels[12:16, 22:27]
    assert (result == expected).all()
    assert (pixels == stored(data.path(data.images[0]))).all()


def test_regions_outside_of_the_image_fill_nothing(data):
    image = annotated_image(
        0, (90, 60), [(95, 5, 9, 9), (-9, -9, 5, 5), (3, 3, 0, 0)], None, [1] * 3
    )
    pixels = read_pixels(data, data.images[0])
    assert (erased(pixels, image) == pixels).all()


def test_erased_images_are_written_without_their_regions(data, tmp_path):
    written = write_erased(data, tmp_path / "out", suffix=".png")
    assert [len(image) for image in written.images] == [2, 2]
    assert not any(image.ignore.any() for image in written.images)
    for before, after in zip(data.images, written.images, strict=True):
        expected = erased(read_pixels(data, before), before)
        assert (stored(written.path(after)) == expected).all()
        assert after.file_name == before.file_name
    assert [len(image) for image in without_ignored(data).images] == [2, 2]


@pytest.mark.parametrize("fill", [None, "mean"])
def test_tiles_are_files_that_merge_like_corners(data, tmp_path, fill):
    tiles = cut_set(data, (50, 40), 10)
    files = write_tiles(data, tiles, tmp_path / "out", fill)
    assert files.images[1].file_name == "sub/0_40_0.png"
    for tile, file in zip(tiles.images, files.images, strict=True):
        assert file.corner is None
        x1, y1, x2, y2 = tile.corner
        whole = read_pixels(data, data.images[0 if "0" in tile.file_name else 1])
        whole = whole if fill is None else erased(whole, data.images[0])
        assert (stored(files.path(file)) == whole[y1:y2, x1:x2]).all()
        assert (file.width, file.height) == (x2 - x1, y2 - y1)
    write(files, tmp_path / "tiles.json", "coco")
    again = read(tmp_path / "tiles.json", images=tmp_path / "out")
    found = [
        {"image_id": tile.id, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5 + tile.id / 99}
        for tile in tiles.images
    ]
    assert merge_tiles(again, found) == merge_tiles(tiles, found)


def test_pixels_of_a_tile_are_those_at_its_corner(data):
    tile = cut_set(data, (50, 40), 10).images[3]
    x1, y1, x2, y2 = tile.corner
    assert (read_pixels(data, tile) == read_pixels(data, data.images[0])[y1:y2, x1:x2]).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [(("a.png", "a.jpg"), "differ in more than the suffix"), (("../a.png", "b.png"), "into")],
)
def test_names_that_cannot_be_written_are_refused(data, tmp_path, names, message):
    images = [replace(x, file_name=name) for x, name in zip(data.images, names, strict=True)]
    bad = replace(data, images=tuple(images))
    with pytest.raises(ValueError, match=message):
        write_erased(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()
