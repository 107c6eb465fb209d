"""What every reader gives and every writer takes: images and the objects in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image and what is in it.

    Attributes:
        id: of the image in its set, unique.
        file_name: relative to the folder of the set, with slashes.
        width: in pixels.
        height: in pixels.
        bbox: [K, 4] float64 x y width height in pixels, as files have them: nothing is rounded.
        labels: [K] int64 in 1..len(classes) of the set; 0 where `ignore` is of every class.
        ignore: [K] bool, regions in which nothing counts.
        attributes: name -> array [K, ...] of what else a format knows of its objects (iscrowd,
            truncation, difficult, ...); one of objects has None for those without a value. Writers
            keep what their format has a place for.
        corner: x1 y1 x2 y2 in the large image, if this is a tile of one; `file_name` is then that
            of the large image.
        extra: what else a format knows of the image.
    """

    id: int
    file_name: str
    width: int
    height: int
    bbox: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    corner: tuple[int, int, int, int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.bbox.shape != (count, 4):
            raise ValueError(f"bbox must be [{count}, 4] like labels, got {list(self.bbox.shape)}")
        for name, column in {"ignore": self.ignore, **self.attributes}.items():
            if len(column) != count:
                raise ValueError(f"{name} must have length {count} like labels, got {len(column)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes(self) -> Tensor:
        """`bbox` as [K, 4] float32 x1 y1 x2 y2 in pixels."""
        corners = np.concatenate([self.bbox[:, :2], self.bbox[:, :2] + self.bbox[:, 2:]], 1)
        return torch.from_numpy(corners.astype(np.float32))

    def select(self, keep: NDArray[Any]) -> "AnnotatedImage":
        """The image with the objects that a mask [K] or indices name."""
        return replace(
            self,
            bbox=self.bbox[keep],
            labels=self.labels[keep],
            ignore=self.ignore[keep],
            attributes={name: column[keep] for name, column in self.attributes.items()},
        )


@dataclass(frozen=True, eq=False)
class AnnotatedSet:
    """A data set.

    Attributes:
        images: in the order of the file; images without objects included.
        classes: names; label k is classes[k - 1].
        category_ids: label k is category category_ids[k - 1] of the file.
        folder: which `file_name` is relative to; None: unknown, there are no pixels.
        extra: what else a format knows of the set.
    """

    images: tuple[AnnotatedImage, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    folder: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def path(self, image: AnnotatedImage) -> Path:
        """Of the image's file.

        Raises:
            ValueError: the set has no folder.
        """
        if self.folder is None:
            raise ValueError(f"the set of {image.file_name} must have a folder of images, got none")
        return self.folder / image.file_name
