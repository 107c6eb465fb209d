"""Images in memory, and lists of files."""

import numpy as np
import pytest
import torch
from pictures import WINDOWS, colours, picture
from PIL import Image

from tinyops.inference.source import ArraySource, find_images

GREY = np.repeat(colours()[..., :1], 3, 2)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (colours(), colours()),
        (colours()[..., 0], GREY),
        (colours()[:, ::-1], colours()[:, ::-1]),
        (torch.from_numpy(colours()).permute(2, 0, 1), colours()),
        (torch.from_numpy(colours()).permute(2, 0, 1).contiguous(), colours()),
        (picture("RGB"), colours()),
        (picture("RGBA"), colours()),
        (Image.fromarray(GREY[..., 0]), GREY),
    ],
)
def test_images_in_memory_give_their_pixels(image, expected):
    source = ArraySource(image, name="mine")
    assert (source.name, source.width, source.height) == ("mine", 48, 36)
    assert source.georeference is None
    for x1, y1, x2, y2 in WINDOWS:
        pixels = source.read((x1, y1, x2, y2))
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert np.array_equal(pixels, expected[y1:y2, x1:x2])
        pixels[:] = 0  # of a copy
    assert np.array_equal(source.read((0, 0, 48, 36)), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        torch.zeros(3, 4, 5),
        torch.zeros(1, 4, 5, dtype=torch.uint8),
        torch.zeros(3, 0, 5, dtype=torch.uint8),
        Image.new("F", (4, 5)),
        Image.new("RGB", (0, 5)),
        "a.jpg",
    ],
)
def test_other_things_in_memory_are_refused(image):
    with pytest.raises(ValueError, match=r"mine must be a uint8 array.*got a"):
        ArraySource(image, name="mine")


def test_windows_of_memory_lie_inside_and_closed_memory_is_not_read():
    source = ArraySource(colours())
    for window in ((0, 0, 49, 36), (-1, 0, 3, 3), (5, 5, 5, 8)):
        with pytest.raises(ValueError, match="window must lie inside the 48x36 px of array"):
            source.read(window)
    source.close()
    with pytest.raises(ValueError, match="array is closed"):
        source.read((0, 0, 1, 1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "sub/c.tif", "sub/deep/d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "tiles.png").mkdir()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["b.jpg"], ["b.jpg"]),
        (["notes.txt"], ["notes.txt"]),
        ([".hidden.png"], [".hidden.png"]),
        (["."], ["a.PNG", "b.jpg", "lost.png"]),
        (["sub"], ["sub/c.tif"]),
        (["*.jpg", "b.jpg", "./b.jpg"], ["b.jpg"]),
        (["b*", "notes.*"], ["b.jpg", "notes.txt"]),
        (["**/*.tif", "sub/**/*.webp"], ["sub/c.tif", "sub/deep/d.webp"]),
        (["sub/c.tif", "a.PNG"], ["a.PNG", "sub/c.tif"]),
        (["*.png"], ["lost.png"]),
    ],
)
def test_files_directories_and_globs(folder, patterns, expected):
    assert [str(path) for path in find_images(patterns)] == expected


def test_one_file_by_two_names_of_its_folder_is_found_once(folder):
    assert len(find_images([str(folder / "b.jpg"), "b.jpg", "sub/../b.jpg"])) == 1


def test_names_with_brackets_are_files_first(folder):
    (folder / "x[1].png").touch()
    (folder / "x1.png").touch()
    assert [str(path) for path in find_images(["x[1].png"])] == ["x[1].png"]


@pytest.mark.parametrize("pattern", ["none.jpg", "*.bmp", "empty", "nowhere/*.png"])
def test_pattern_without_a_file_is_named(folder, pattern):
    (folder / "empty").mkdir()
    (folder / "empty" / "readme.txt").touch()
    with pytest.raises(FileNotFoundError) as caught:
        find_images(["b.jpg", pattern])
    assert str(caught.value).startswith(f"{pattern}: ")


def test_no_patterns_give_no_files():
    assert find_images([]) == []
