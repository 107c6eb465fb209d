"""VisDrone's rows, from json or from the texts of its toolkit, checked."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyops.evaluation.tables import in_range, load, named

_SUFFIXES = (".jpg", ".jpeg", ".png")


class Scene(NamedTuple):
    """One image.

    Attributes:
        name: of the image, without a suffix.
        size: width and height in pixels; None: unknown, and there is no ignored region.
        truth: [N, 6] left, top, width, height in pixels, score (0: ignored), category in 0..11.
        found: [K, 6] likewise, with the detections' scores.
    """

    name: str
    size: tuple[int, int] | None
    truth: NDArray[np.float64]
    found: NDArray[np.float64]


class _Truth(msgspec.Struct):
    name: str
    gt: list[list[float]]
    width: int | None = None
    height: int | None = None


class _Found(msgspec.Struct):
    name: str
    dt: list[list[float]]


def read_scenes(ground_truth: Any, detections: Any, images: Any = None) -> list[Scene]:
    """Images with what is in them and what was found, in the order of the ground truth.

    Args:
        ground_truth: a list of {name, width, height, gt: rows}, or a json with one; or a folder
            with a text per image, or with such a folder `annotations`. Rows have eight numbers, of
            which the first six are read.
        detections: a list of {name, dt: rows}, or a json with one; or a folder with a text per
            image. An image that it does not have is one without detections.
        images: folder of the pictures, of which texts need the sizes; None: the folder `images`
            beside that of the texts.

    Raises:
        OSError: a file cannot be read.
        ValueError: file or argument, index or line, and what is wrong there.
    """
    sizes: dict[str, tuple[int, int]] = {}
    if _is_folder(ground_truth):
        texts = folder_of_texts(Path(ground_truth))
        truth = _texts(texts)
        folder = Path(images or texts.parent / "images")
        for name, rows in truth.items():
            if (rows[:, 5] == 0).any():
                sizes[name] = _picture_size(folder, name)
    else:
        with named(ground_truth, "ground_truth"):
            entries = load(ground_truth, list[_Truth])
            truth = _by_name(entries, [x.gt for x in entries], "gt")
            for k, entry in enumerate(entries):
                if entry.width is not None and entry.height is not None:
                    if min(entry.width, entry.height) < 1 or entry.width * entry.height >= 2**31:
                        raise ValueError(
                            f"[{k}]: width and height must be positive, their product below 2**31, "
                            f"got {entry.width} x {entry.height}"
                        )
                    sizes[entry.name] = (entry.width, entry.height)
                elif (truth[entry.name][:, 5] == 0).any():
                    raise ValueError(f"[{k}]: ignored regions need the width and height")
    if _is_folder(detections):
        found = _texts(Path(detections))
    else:
        with named(detections, "detections"):
            entries = load(detections, list[_Found])
            found = _by_name(entries, [x.dt for x in entries], "dt")
    with named(detections, "detections"):
        if unknown := [name for name in found if name not in truth]:
            raise ValueError(
                f"{len(unknown)} images are not in the ground truth, the first is {unknown[0]}"
            )
    nothing = np.zeros((0, 6))
    return [Scene(name, sizes.get(name), x, found.get(name, nothing)) for name, x in truth.items()]


def folder_of_texts(folder: Path) -> Path:
    """The folder of a split has its texts in `annotations`."""
    inner = folder / "annotations"
    return inner if inner.is_dir() and not any(folder.glob("*.txt")) else folder


def _is_folder(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).is_dir()


def _by_name(entries: list[Any], rows: list[Any], field: str) -> dict[str, NDArray[np.float64]]:
    result: dict[str, NDArray[np.float64]] = {}
    for k, (entry, values) in enumerate(zip(entries, rows, strict=True)):
        if entry.name in result:
            raise ValueError(f"[{k}].name must be another than those before, got {entry.name!r}")
        result[entry.name] = _rows(values, [f"[{k}].{field}[{n}]" for n in range(len(values))])
    return result


def _texts(folder: Path) -> dict[str, NDArray[np.float64]]:
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise ValueError(f"{folder}: expected a .txt for each image, found none")
    result = {}
    for path in paths:
        with named(path, ""):
            rows, places = [], []
            for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
                text = line.strip().rstrip(",")
                if not text:
                    continue
                places.append(f"line {number}")
                try:
                    rows.append([float(x) for x in text.split(",")])
                except ValueError:
                    raise ValueError(f"line {number} must be numbers, got {text!r:.60}") from None
            result[path.stem] = _rows(rows, places)
    return result


def _rows(rows: Sequence[Sequence[float]], places: Sequence[str]) -> NDArray[np.float64]:
    for row, place in zip(rows, places, strict=True):
        if len(row) < 6:
            raise ValueError(
                f"{place} must be left, top, width, height, score, category, ..., got {row}"
            )
    values = np.array([row[:6] for row in rows], np.float64).reshape(-1, 6)
    good = in_range(values).all(1) & (values[:, 2:4] >= 0).all(1)
    good &= np.isin(values[:, 5], range(12))
    if not good.all():
        k = int(good.argmin())
        raise ValueError(
            f"{places[k]} must be finite and below 1e100, its size not negative, its category in "
            f"0..11, got {values[k].tolist()}"
        )
    return values


def _picture_size(folder: Path, name: str) -> tuple[int, int]:
    for suffix in _SUFFIXES:
        path = folder / (name + suffix)
        if path.is_file():
            try:
                with Image.open(path) as picture:
                    return picture.size
            except Image.DecompressionBombError as error:
                raise ValueError(f"{path}: {error}") from None
    raise ValueError(
        f"{folder}: expected a picture of {name}, whose size its ignored regions need; found none"
    )
