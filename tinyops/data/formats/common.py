"""What the formats have in common: checks, columns of attributes, names, sizes and losses."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tinyops.data.pillow import any_size
from tinyops.data.types import AnnotatedImage, AnnotatedSet

IGNORE = "ignore"  # as SODA-D names the category of its regions in which no class counts
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")
_LIMIT = 1e30  # of numbers; float32 ends at 3e38


def column(values: Sequence[Any]) -> NDArray[Any]:
    """[K, ...] numbers, if all are numbers or lists of numbers of one shape; else objects."""
    kinds = set(map(type, values))
    if kinds <= {bool, int, float} or kinds == {list}:
        with suppress(ValueError):  # lists of several lengths
            array = np.array(values)
            if array.dtype.kind in "bif":
                return array
    objects = np.empty(len(values), object)
    for k, value in enumerate(values):
        objects[k] = value
    return objects


def columns(entries: Sequence[Mapping[str, Any]], skip: Collection[str]) -> dict[str, NDArray[Any]]:
    """The fields of entries besides some; an entry without a field has None there."""
    names = dict.fromkeys(name for entry in entries for name in entry if name not in skip)
    return {name: column([entry.get(name) for entry in entries]) for name in names}


def joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Columns one after the other; each part has at least one."""
    result: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part.get(name) for part in parts]
        arrays = [values for values in found if values is not None]
        kinds = {(values.dtype == object, values.shape[1:]) for values in arrays}
        if len(kinds) == 1 and len(arrays) == len(parts):
            result[name] = np.concatenate(arrays)
        else:
            rows: list[Any] = []
            for part, values in zip(parts, found, strict=True):
                none = [None] * len(next(iter(part.values())))
                rows += none if values is None else values.tolist()
            result[name] = column(rows)
    return result


def kept_boxes(
    bbox: NDArray[np.float64], where: Callable[[int], str], drop_empty_boxes: bool
) -> NDArray[np.bool_]:
    """Which boxes [K, 4] x y width height stay: those that have an area.

    Raises:
        ValueError: naming `where(k)`: a number is not finite, a size is negative, or there is no
            area and such boxes are not to be dropped.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        finite = (np.abs(bbox) < _LIMIT).all(1)
        negative = (bbox[:, 2:] < 0).any(1)
        empty = bbox[:, 2] * bbox[:, 3] == 0
    faults = {"must be of finite numbers": ~finite, "must not have a negative size": negative}
    if not drop_empty_boxes:
        faults["has no area, and only drop_empty_boxes leaves such out"] = empty
    for text, wrong in faults.items():
        if wrong.any():
            k = int(wrong.argmax())
            raise ValueError(f"{where(k)}: bbox {text}, got {bbox[k].tolist()}")
    return ~empty


def make_image(
    number: int,
    file_name: str,
    size: tuple[int, int],
    rows: Sequence[tuple[Sequence[float], int, bool]],
    attributes: Mapping[str, NDArray[Any]],
    where: Callable[[int], str],
    drop_empty_boxes: bool,
) -> AnnotatedImage:
    """An image of rows (x y width height, label, ignore), checked by `kept_boxes`."""
    bbox = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    image = AnnotatedImage(
        number,
        file_name,
        *size,
        bbox,
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.bool_),
        attributes,
    )
    return image.select(kept_boxes(bbox, where, drop_empty_boxes))


def read_lines(path: Path) -> list[str]:
    """Of a text file, without spaces around them; the last one is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8: {error}") from None
    if "\0" in text:
        raise ValueError(f"{path} must be a text, got a NUL")
    return [line.strip() for line in text.rstrip().splitlines()]


def numbers(where: str, line: str, fields: str, separator: str | None = None) -> list[float]:
    """The numbers of a line, one for each word in `fields`."""
    words, count = line.split(separator), len(fields.split())
    values: list[float] = []
    with suppress(ValueError):
        values = [float(word) for word in words]
    if len(values) != count or not all(abs(value) < _LIMIT for value in values):
        raise ValueError(f"{where}: {fields} must be finite numbers, got {line!r:.80}")
    return values


def is_number(value: Any) -> bool:
    """A number of JSON that float32 can hold; no NaN."""
    return type(value) in (int, float) and abs(value) < _LIMIT


def whole(where: str, field: str, value: float, low: float = 0, high: float = 2**53 - 1) -> int:
    """A number from a file that must be a whole one in low..high."""
    if value != int(value) or not low <= value <= high:
        raise ValueError(
            f"{where}: {field} must be a whole number in {low:g}..{high:g}, got {value:g}"
        )
    return int(value)


def whole_column(image: AnnotatedImage, name: str) -> NDArray[np.int64]:
    """[K] of an attribute; zeros if it is not there, or no column of whole numbers from -1 on."""
    values = image.attributes.get(name)
    if values is None or not _is_whole(values):
        return np.zeros(len(image), np.int64)
    return values.astype(np.int64)


def _is_whole(values: NDArray[Any]) -> bool:
    return (
        values.dtype.kind in "bi"
        and values.ndim == 1
        and bool((values.astype(np.int64) >= -1).all())
    )


def image_files(folder: Path) -> dict[str, str]:
    """Name without suffix -> name, of the images in a folder and the folders in it, sorted.

    Raises:
        ValueError: two images differ in their suffix alone.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            name = path.relative_to(folder).as_posix()
            stem = stem_of(name)
            if stem in found:
                raise ValueError(f"{folder}: {found[stem]} and {name} have the same annotations")
            found[stem] = name
    return found


def stem_of(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in the header of an image.

    Raises:
        OSError: there is no such file, or it is no image.
    """
    try:
        with any_size(), Image.open(path) as file:  # nothing is decoded
            return file.size
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise OSError(f"cannot read the size of {path}: {error}") from None


def need_folder(name: str, images: Path) -> None:
    """Refuse a folder that is not there."""
    if not images.is_dir():
        raise FileNotFoundError(
            f"{name} has the sizes of its images in their files alone: expected a folder {images}, "
            "found none; images names another"
        )


def choose_split(path: Path, split: str | None, known: Collection[str]) -> str | None:
    """The split to read: the given one, or the only one there is."""
    if split is None and len(known) <= 1:
        return next(iter(known), None)
    if split is None or split not in known:
        names = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{path}: split must be one of those here, {names}; got {split}")
    return split


def file_names(
    data: AnnotatedSet, name: str, *, stems: bool = True, tiles: bool = False
) -> list[str]:
    """The names of the images' files, fit to be written under a folder.

    Raises:
        ValueError: a name leads out of the folder, two images would share their annotations, or an
            image is a tile, for which formats other than COCO have no place.
    """
    taken: dict[str, str] = {}
    for image in data.images:
        file = image.file_name
        path = PurePosixPath(file)
        if not path.name or path.as_posix() != file or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"image {image.id}: cannot write under the name {file!r}")
        if not file.isprintable() or file != file.strip():
            raise ValueError(f"image {image.id}: cannot write under the name {file!r}")
        if image.corner is not None and not tiles:
            raise ValueError(f"image {image.id} is a tile of {file}, which {name} cannot say")
        key = stem_of(file) if stems else file
        if key in taken and not tiles:
            raise ValueError(f"{taken[key]} and {file} would have the same annotations in {name}")
        taken[key] = file
    return [image.file_name for image in data.images]


def need_distinct_classes(data: AnnotatedSet, name: str) -> None:
    """Refuse two classes of one name, which a format without numbers of classes would mix up."""
    twice = [key for key, count in Counter(data.classes).items() if count > 1]
    if twice:
        raise ValueError(f"{name} tells classes by their names, and two are {twice[0]!r}")


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write lines; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def whole_pixels(bbox: NDArray[np.float64]) -> NDArray[np.int64]:
    """[K, 4] x y width height with edges at the nearest whole pixels, halves up, and sizes >= 1."""
    edges = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], 1)
    edges = np.floor(np.clip(edges, -(2.0**53), 2.0**53) + 0.5)
    sizes = np.maximum(edges[:, 2:] - edges[:, :2], 1)
    return np.concatenate([edges[:, :2], sizes], 1).astype(np.int64)


def rounding(data: AnnotatedSet, name: str) -> list[str]:
    """The line about boxes that `whole_pixels` changes."""
    changed = sum(
        int((np.abs(whole_pixels(image.bbox) - image.bbox) > 1e-6).any(1).sum())
        for image in data.images
    )
    return [f"{changed} boxes are rounded: {name} has whole pixels"] if changed else []


def without_ignored(data: AnnotatedSet, name: str) -> tuple[AnnotatedSet, list[str]]:
    """The set without regions to be ignored, and the line about them."""
    count = sum(int(image.ignore.sum()) for image in data.images)
    if not count:
        return data, []
    images = tuple(image.select(~image.ignore) for image in data.images)
    line = f"{count} boxes marked ignore are left out: {name} has no place for them"
    return replace(data, images=images), [line]


def losses(
    data: AnnotatedSet,
    name: str,
    attributes: Collection[str] = (),
    *,
    whole_attributes: Collection[str] = (),
    image_ids: bool = False,
    class_ids: bool = False,
) -> list[str]:
    """A line for every other thing that a format has no place for.

    Args:
        data: what is written.
        name: of the format.
        attributes: those of objects that it holds.
        whole_attributes: those that it holds as `whole_column` gives them.
        image_ids: it holds the ids and the order of images.
        class_ids: there is nothing to say of the classes' numbers.
    """
    boxes: Counter[str] = Counter()
    images: Counter[str] = Counter()
    for image in data.images:
        images.update(image.extra.keys())
        for key, values in image.attributes.items():
            if key == IGNORE:
                continue  # the flags of the set, which have a place or are left out, say it
            if key == "area":
                area = image.bbox[:, 2] * image.bbox[:, 3]
                values = np.abs(values.astype(np.float64) - area) > 1e-6 * area  # none: as NaN
            held = key in attributes or (key in whole_attributes and _is_whole(values))
            if not held:
                boxes[key] += _said(values)
    lines = [f"{n} boxes lose their {key}" for key, n in boxes.items() if n]
    lines += [f"{n} images lose their {key}" for key, n in images.items()]
    lines += [f"the set loses its {key}" for key in data.extra]
    counting = tuple(range(1, len(data.images) + 1))
    by_name = sorted(data.images, key=lambda image: stem_of(image.file_name))
    if not image_ids and tuple(image.id for image in by_name) != counting:
        lines.append("the images lose their ids and their order")
    if not class_ids and data.category_ids != tuple(range(1, len(data.classes) + 1)):
        lines.append("the classes lose their ids")
    return [f"{line}: {name} has no place for them" for line in lines]


def _said(values: NDArray[Any]) -> int:
    """How many objects have a value other than none and zero."""
    if values.dtype == object:
        return sum(value is not None for value in values)
    return int((values != 0).any(tuple(range(1, values.ndim))).sum())
