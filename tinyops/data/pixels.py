"""The pixels of a data set: of one image, without what is to be ignored, and of tiles as files."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyops.data.dataset import decode
from tinyops.data.tiles import Window
from tinyops.data.types import AnnotatedImage, AnnotatedSet

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB
Fill = Literal["mean", "black"]
Suffix = Literal[".png", ".jpg"]


def read_pixels(data: AnnotatedSet, image: AnnotatedImage) -> Pixels:
    """uint8 [H, W, 3] RGB of an image, or of a tile of one.

    Raises:
        ValueError: the set has no folder, or the file is not what the set says.
        OSError: the file cannot be decoded.
    """
    pixels = decode(data.path(image), image)
    x1, y1, x2, y2 = image.corner or (0, 0, image.width, image.height)
    return pixels[y1:y2, x1:x2]


def erased(pixels: Pixels, image: AnnotatedImage, fill: Fill = "mean") -> Pixels:
    """A copy in which the regions to be ignored are filled; objects in them keep their pixels.

    TinyPerson's training images have the mean colour of each region there, SODA-D's patches black.
    All pixels that a region touches are filled.

    Args:
        pixels: of the image.
        image: says where the regions are.
        fill: with what.
    """
    result = pixels.copy()
    windows = [_window(image, k) for k in range(len(image))]
    for k in np.flatnonzero(image.ignore).tolist():
        region = pixels[windows[k]]
        if region.size:
            result[windows[k]] = region.mean((0, 1)).round() if fill == "mean" else 0
    for k in np.flatnonzero(~image.ignore).tolist():
        result[windows[k]] = pixels[windows[k]]
    return result


def _window(image: AnnotatedImage, k: int) -> tuple[slice, slice]:
    x, y, width, height = image.bbox[k]
    limits = (image.width, image.height)
    low = np.clip(np.floor((x, y)), 0, limits).astype(int)
    high = np.clip(np.ceil((x + width, y + height)), low, limits).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def without_ignored(data: AnnotatedSet) -> AnnotatedSet:
    """The set without the boxes of regions to be ignored."""
    return replace(data, images=tuple(image.select(~image.ignore) for image in data.images))


def write_erased(
    data: AnnotatedSet, folder: Path, fill: Fill = "mean", *, suffix: Suffix = ".png"
) -> AnnotatedSet:
    """Write every image with its regions to be ignored filled, and give the set without them.

    Args:
        data: of whole images.
        folder: gets a file for each, under its name but for the suffix.
        fill: see `erased`.
        suffix: of the files; .jpg has a quality of 95.

    Raises:
        ValueError: two files would have one name, or an image is not what the set says.
        OSError: a file cannot be read or written.
    """
    names = _names(data.images, suffix)

    def one(image: AnnotatedImage) -> None:
        _save(erased(read_pixels(data, image), image, fill), folder / names[image.id])

    _all(one, data.images)
    images = (replace(image, file_name=names[image.id]) for image in data.images)
    return without_ignored(replace(data, images=tuple(images), folder=folder))


def write_tiles(
    data: AnnotatedSet,
    tiles: AnnotatedSet,
    folder: Path,
    fill: Fill | None = None,
    *,
    suffix: Suffix = ".png",
) -> AnnotatedSet:
    """Write every tile as an image of its own.

    Args:
        data: of whole images.
        tiles: of them, by `cut_set`.
        folder: gets the files, <image>_<x>_<y><suffix>.
        fill: of the regions to be ignored in `data`, see `erased`; None: they stay.
        suffix: of the files; .jpg has a quality of 95.

    Returns:
        The same tiles as whole images of `folder`; `merge_tiles` finds in `extra` what they were.

    Raises:
        ValueError: two files would have one name, or an image is not what the set says.
        OSError: a file cannot be read or written.
    """
    names = _names(tiles.images, suffix)
    of_image: dict[str, list[tuple[int, Window]]] = {}
    written = []
    for tile in tiles.images:
        window = tile.corner or (0, 0, tile.width, tile.height)
        of_image.setdefault(tile.file_name, []).append((tile.id, window))
        extra = {**tile.extra, "tile_of": tile.file_name, "tile_corner": list(window)}
        written.append(replace(tile, file_name=names[tile.id], corner=None, extra=extra))

    def one(image: AnnotatedImage) -> None:
        windows = of_image.get(image.file_name, [])
        if windows:
            pixels = read_pixels(data, image)
            pixels = pixels if fill is None else erased(pixels, image, fill)
            for number, (x1, y1, x2, y2) in windows:
                _save(pixels[y1:y2, x1:x2], folder / names[number])

    _all(one, data.images)
    return replace(tiles, images=tuple(written), folder=folder)


def _all(work: Callable[[AnnotatedImage], None], images: Iterable[AnnotatedImage]) -> None:
    """Do work for all images, on some threads; raises what it raises."""
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(work, images):
            pass


def _names(images: Iterable[AnnotatedImage], suffix: Suffix) -> dict[int, str]:
    """Id -> name of the file to be written."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for image in images:
        path = PurePosixPath(image.file_name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"file_name must lead into the folder, got {image.file_name!r}")
        end = "" if image.corner is None else f"_{image.corner[0]}_{image.corner[1]}"
        names[image.id] = str(path.with_name(path.stem + end + suffix))
        if names[image.id] in taken:
            raise ValueError(f"file names must differ in more than the suffix, got two {path.stem}")
        taken.add(names[image.id])
    return names


def _save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=95)
