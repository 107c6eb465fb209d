"""Small images with one class each, in batches: what backbones learn from before detectors do."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 32
CHANNELS = 3
BYTES = CHANNELS * SIDE * SIDE  # of an image


@dataclass(frozen=True)
class SmallImages:
    """Images of 32 x 32 pixels.

    Attributes:
        parts: [n, 3, 32, 32] uint8 each, as the files have them: shared memory, or on the disk.
        labels: [N] int64 in 0..len(classes)-1, of all parts in a row.
        classes: names.
    """

    parts: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images [n, 3, 32, 32] uint8 and labels [n] int64, in memory of their own."""
        wanted = np.asarray(indices, np.int64)
        ends = np.cumsum([len(part) for part in self.parts])
        owner = np.searchsorted(ends, wanted, side="right")
        pixels = np.empty((len(wanted), CHANNELS, SIDE, SIDE), np.uint8)
        for k in np.unique(owner):
            here = owner == k
            part = self.parts[k]
            pixels[here] = part[wanted[here] - (ends[k] - len(part))]
        return torch.from_numpy(pixels), torch.from_numpy(self.labels[wanted])


@dataclass(frozen=True)
class Augmented:
    """Randomly shifted and mirrored images, for `tinyops.train.make_loader`.

    Attributes:
        data: of the images.
        padding: black pixels put around an image before 32 x 32 of them are cut out; 4 is usual.
        flip: mirror half of the images.
    """

    data: SmallImages
    padding: int = 4
    flip: bool = True

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images [n, 3, 32, 32] uint8 and labels [n] int64.

        Args:
            indices: of the images.
            seeds: 63 random bits for each; what happens to an image is a function of its own.
        """
        images, labels = self.data.take(indices)
        bits = torch.tensor(seeds, dtype=torch.int64)
        if self.padding:
            padded = F.pad(images, [self.padding] * 4)
            windows = padded.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # [n, 3, places, places, 32, 32]
            places = 2 * self.padding + 1
            y, x = (bits >> 1) % places, (bits >> 32) % places
            images = windows[torch.arange(len(images)), :, y, x]
        if self.flip:
            mirrored = (bits & 1).bool()
            images[mirrored] = images[mirrored].flip(3)
        return images, labels


def pixels_of(values: Any, name: str) -> NDArray[np.uint8]:
    """[N, 3072] uint8 as [N, 3, 32, 32] in the same memory.

    Args:
        values: rows of planes of red, green and blue.
        name: of the file and the field, for messages.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{name} must be an array [N, {BYTES}] uint8, got {_kind(values)}")
    if values.dtype != np.uint8 or values.shape[1:] != (BYTES,) or not len(values):
        shape = list(values.shape)
        raise ValueError(f"{name} must be [N, {BYTES}] uint8, got {shape} {values.dtype}")
    return values.reshape(-1, CHANNELS, SIDE, SIDE)


def labels_of(values: Any, count: int, classes: int, name: str, *, first: int) -> NDArray[np.int64]:
    """[N] int64 in 0..classes-1.

    Args:
        values: a list or an array of numbers.
        count: N.
        classes: how many there are.
        name: of the file and the field, for messages.
        first: the number of the first class in the file.

    Raises:
        ValueError: naming the field and the index, what was expected and what came.
    """
    found = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(found, list) or len(found) != count:
        size = f" of {len(found)}" if isinstance(found, list) else ""
        raise ValueError(f"{name} must be a list of {count} numbers, got {_kind(values)}{size}")
    for k, label in enumerate(found):
        if type(label) is not int or not first <= label < first + classes:
            last = first + classes - 1
            shown = reprlib.repr(label)  # of lists in lists, say, which may have no end
            raise ValueError(f"{name}[{k}] must be an integer in {first}..{last}, got {shown}")
    return np.array(found, np.int64) - first


def _kind(value: Any) -> str:
    return "none" if value is None else type(value).__name__
