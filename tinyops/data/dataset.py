"""Tiles of a data set as training and validation samples."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from tinyops.data.pillow import MODES, any_size, rgb_pixels
from tinyops.data.tiles import Window, clip_to_window, tile_windows
from tinyops.data.types import AnnotatedImage, AnnotatedSet

_MAX_PIXELS = 2**30  # of a file of which the annotations say only where a tile is
_SMALL = 32  # px; COCO's small objects
Transform = Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


class CocoTiles(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Tiles cut on the fly from images of any size.

    A sample is an image, float32 [3, h, w] in 0..1, and a target: boxes [K, 4] float32 x1 y1 x2 y2
    in pixels of the tile, labels [K] int64 from 1, ignore [K] bool, image_id [] int64, and corner
    [2] int64: x and y of the tile in its image. Images smaller than a tile are kept whole.

    Whatever the transform draws is a function of (seed, epoch, index), so samples do not depend on
    the number of workers, and a resumed run sees what an uninterrupted one would. The epoch lies in
    shared memory: `set_epoch` reaches workers that live on.

    Args:
        data: with a folder. Its images may be tiles of larger ones themselves (`corner`).
        tile: width and height of the tiles in pixels; None takes whole images.
        overlap: pixels that neighbouring tiles share. With more than the side of the largest
            object, some tile shows every object whole.
        cut: what becomes of objects that a tile shows by less than `min_visible`. "drop" forgets
            them, as TinyBenchmark's splitter does. "ignore" keeps the visible part as a region in
            which nothing counts; it is the default, since half a person is no background, and the
            neighbouring tile has the object anyway. Regions to be ignored are cut in the same way.
        min_visible: least sqrt(visible share of the area) of an object.
        keep_empty: keep tiles in which no object is left.
        repeat_small: how often to have each tile with an object of up to 32 px (sqrt(area)) that is
            not to be ignored. Kisantal et al. (Augmentation for small object detection, 2019)
            repeat such images; 3 was best for them.
        transform: called as transform(image, target) with the image as uint8 `tv_tensors.Image`
            and the boxes as `tv_tensors.BoundingBoxes`; transforms v2 fit.
        seed: of the transform's random numbers.
        cache_bytes: decoded images kept by each worker; the latest one is kept at any size.

    Raises:
        ValueError: `cut`, `min_visible` or `repeat_small` is out of range; at access, a file that
            has another size than the set states, or a kind of pixels that is not 8-bit.
        OSError: at access, a file that cannot be decoded.
    """

    def __init__(
        self,
        data: AnnotatedSet,
        *,
        tile: tuple[int, int] | None = (640, 512),
        overlap: int | tuple[int, int] = 30,
        cut: Literal["drop", "ignore"] = "ignore",
        min_visible: float = 0.7,
        keep_empty: bool = True,
        repeat_small: int = 1,
        transform: Transform | None = None,
        seed: int = 0,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        if cut not in ("drop", "ignore"):
            raise ValueError(f'cut must be "drop" or "ignore", got {cut!r}')
        if not 0 < min_visible <= 1:
            raise ValueError(f"min_visible must be in (0, 1], got {min_visible}")
        if repeat_small < 1:
            raise ValueError(f"repeat_small must be at least 1, got {repeat_small}")
        self.data, self.transform, self.seed = data, transform, seed
        self._cut, self._min_visible = cut, min_visible
        self._images = _ImageCache(cache_bytes)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.tiles: list[tuple[int, Window]] = []  # (index of the image, window)
        for k, image in enumerate(data.images):
            size = tile or (image.width, image.height)
            windows = tile_windows(image.width, image.height, size, overlap if tile else 0)
            self.tiles += [(k, window) for window in windows]
        if not keep_empty:
            self.tiles = [entry for entry in self.tiles if not self._target(*entry)[2].all()]
        if repeat_small > 1:
            times = [repeat_small if self._has_small(*entry) else 1 for entry in self.tiles]
            self.tiles = [x for x, n in zip(self.tiles, times, strict=True) for _ in range(n)]

    def __len__(self) -> int:
        return len(self.tiles)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of an epoch; to be called before its loader is iterated."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.sample(index, int(self._epoch))

    def sample(self, index: int, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A sample of any epoch, whatever `set_epoch` says; for loaders that run across epochs."""
        if not 0 <= index < len(self.tiles):
            raise IndexError(f"index must be in 0..{len(self.tiles) - 1}, got {index}")
        number, window = self.tiles[index]
        x1, y1, x2, y2 = window
        pixels = self._images.get(self.data, self.data.images[number])[y1:y2, x1:x2]
        image: Tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())  # [3, h, w] uint8
        boxes, labels, ignore = self._target(number, window)
        target: dict[str, Any] = {
            "boxes": boxes,
            "labels": labels,
            "ignore": ignore,
            "image_id": torch.tensor(self.data.images[number].id),
            "corner": torch.tensor((x1, y1)),
        }
        if self.transform is not None:
            target["boxes"] = tv_tensors.BoundingBoxes(
                boxes, format="XYXY", canvas_size=image.shape[-2:]
            )
            image, target = self._transformed(index, epoch, tv_tensors.Image(image), target)
        plain = {key: value.as_subclass(Tensor) for key, value in target.items()}
        image = image.as_subclass(Tensor)
        return image.float() / 255 if image.dtype == torch.uint8 else image, plain

    def _transformed(
        self, index: int, epoch: int, image: Tensor, target: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        assert self.transform is not None
        words = np.random.SeedSequence([self.seed, epoch, index])
        with torch.random.fork_rng(devices=[]):  # the CPU's generator alone is touched
            torch.default_generator.manual_seed(int(words.generate_state(1, np.uint64)[0]))
            return self.transform(image, target)

    def _target(self, number: int, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, labels and ignore flags of one tile."""
        image = self.data.images[number]
        labels, ignore = torch.from_numpy(image.labels), torch.from_numpy(image.ignore)
        boxes, visible = clip_to_window(image.boxes, window)
        whole = visible >= self._min_visible
        if self._cut == "drop":
            return boxes[whole], labels[whole], ignore[whole]
        seen = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)  # less than a pixel shows nothing
        keep = whole | seen
        return boxes[keep], labels[keep], (ignore | ~whole)[keep]

    def _has_small(self, number: int, window: Window) -> bool:
        boxes, _labels, ignore = self._target(number, window)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return bool((~ignore & (areas <= _SMALL**2)).any())


class _ImageCache:
    """The latest decoded images, up to a number of bytes; copies start empty."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._images: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()

    def __getstate__(self) -> int:
        return self._limit

    def __setstate__(self, limit: int) -> None:
        self.__init__(limit)  # type: ignore[misc]

    def get(self, data: AnnotatedSet, image: AnnotatedImage) -> NDArray[np.uint8]:
        path = data.path(image)
        if path in self._images:
            self._images.move_to_end(path)
        else:
            size = image.width * image.height * 3
            while self._images and self._held + size > self._limit:  # before decoding takes more
                self._held -= self._images.popitem(last=False)[1].nbytes
            pixels = decode(path, image)
            self._images[path] = pixels
            self._held += pixels.nbytes
        x1, y1, x2, y2 = image.corner or (0, 0, image.width, image.height)
        return self._images[path][y1:y2, x1:x2]


def decode(path: Path, image: AnnotatedImage) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB pixels of a file: of the large image, if `image` is a tile of one.

    The orientation in EXIF is not applied: COCO's tools ignore it, so boxes refer to stored pixels.
    Transparency is dropped.

    Raises:
        ValueError: the file's size is not that of `image`, or its pixels are not 8-bit.
        OSError: the file cannot be decoded.
    """
    with _opened(path, image) as file, any_size():  # Pillow counts the pixels of a TIFF once more
        return rgb_pixels(file)


def check_headers(data: AnnotatedSet) -> None:
    """Open every file without decoding its pixels, which is quick.

    Raises:
        ValueError: as `decode` does, for the first such file; the set has no folder.
        OSError: likewise, if the file is no image.
    """
    for image in data.images:
        with _opened(data.path(image), image):
            pass


@contextmanager
def _opened(path: Path, image: AnnotatedImage) -> Iterator[Image.Image]:
    """The file of an image, when it is what the set says; errors name it."""
    try:
        with any_size():  # the set vouches for the size, compared before anything is decoded
            opened = Image.open(path)
        with opened as file:
            width, height = file.size
            if image.corner is None and file.size != (image.width, image.height):
                raise ValueError(
                    f"{path} must be {image.width}x{image.height} px as its annotations say, "
                    f"got {width}x{height}"
                )
            right, bottom = image.corner[2:] if image.corner is not None else file.size
            fits = right <= width and bottom <= height and width * height <= _MAX_PIXELS
            if image.corner is not None and not fits:
                raise ValueError(
                    f"{path} must be of at most {_MAX_PIXELS} px and hold the tile {image.corner}, "
                    f"got {width}x{height}"
                )
            if file.mode not in MODES:
                raise ValueError(f"{path} must have 8-bit pixels, got mode {file.mode}")
            yield file
    except OSError as error:
        raise OSError(f"cannot decode {path}: {error}") from error
