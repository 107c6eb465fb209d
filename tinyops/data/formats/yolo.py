"""YOLO texts, as Ultralytics documents them: one per image.

    data.yaml                 path (its folder if it has none), train, val, test, names
    images/<split>/<name>.jpg
    labels/<split>/<name>.txt a line per object: class cx cy width height, shares of the image

Classes count from 0. A line of a class and the corners of a polygon, as Ultralytics has them for
segmentation, gives the box around it. A split is a folder of images, a list of such, or a text with
an image a line; the labels of .../images/<name>.jpg are .../labels/<name>.txt (the last folder
images is replaced), or beside the image. An image without a text, or with an empty one, has no
objects; that no image has a text is an error. Instead of data.yaml there may be classes.txt, a line
per class, with `images` and `labels`, or images and texts in the same folder. There is no place for
regions to be ignored. The images' sizes are in their files.
"""

import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tinyops.data.formats import common
from tinyops.data.types import AnnotatedImage, AnnotatedSet

IMAGES = "images/{split}"
TABLES = (
    "data.yaml",
    "data.yml",
    "dataset.yaml",
    "classes.txt",
)  # in the order they are looked for
_FIELDS = "class cx cy width height"
_NAME = "YOLO"


def read(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """See `tinyops.data.read`; `path` is data.yaml, classes.txt, or the folder of one of them."""
    table = path
    if path.is_dir():
        found = [path / name for name in TABLES if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path}: expected one of {', '.join(TABLES)}, found none")
        table = found[0]
    if table.suffix == ".txt":
        if split is not None:
            raise ValueError(f"{table}: split must be None without a data.yaml, got {split}")
        classes = common.read_lines(table)
        folder = table.parent / "images"
        folders = [folder if folder.is_dir() else table.parent]
    else:
        classes, folders = _read_yaml(table, split)
    if images is not None:
        folders = [images]
    root, names = _images(table, folders)
    texts = [_labels(root / name) for name in names]
    if texts and not any(text.is_file() for text in texts):
        raise FileNotFoundError(
            f"{table}: none of {len(texts)} images has a text of labels, the first of which "
            f"would be {texts[0]}"
        )
    result = []
    for number, (name, text) in enumerate(zip(names, texts, strict=True), 1):
        size = common.image_size(root / name)
        result.append(_read_image(text, number, name, size, len(classes), drop_empty_boxes))
    return AnnotatedSet(tuple(result), tuple(classes), tuple(range(1, len(classes) + 1)), root)


def _read_yaml(path: Path, split: str | None) -> tuple[list[str], list[Path]]:
    """The classes, and what the images of a split are in."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a mapping with names, got {type(content).__name__}")
    names = content.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list) or not names or not {type(n) for n in names} <= {str, int}:
        raise ValueError(f"{path}: names must be the classes from 0 on, got {reprlib.repr(names)}")
    known = [key for key in ("train", "val", "test") if content.get(key)]
    chosen = common.choose_split(path, split, known)
    places: Any = content.get(chosen) if chosen else None
    places = places if isinstance(places, list) else [places]
    if not all(isinstance(place, str) for place in places):
        raise ValueError(f"{path}: {chosen or 'train'} must be paths, got {reprlib.repr(places)}")
    root = path.parent / str(content.get("path") or "")
    return list(map(str, names)), [_place(root, place) for place in places]


def _place(root: Path, place: str) -> Path:
    """Roboflow writes ../train/images where it means train/images, and Ultralytics takes it."""
    found = root / place
    if not found.exists() and place.startswith("../"):
        found = root / place[3:]
    return found


def _images(table: Path, places: list[Path]) -> tuple[Path, list[str]]:
    """A folder, and the names of the images relative to it."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += [place / name for name in common.image_files(place).values()]
        elif place.suffix == ".txt" and place.is_file():
            found += [_place(place.parent, line) for line in common.read_lines(place) if line]
        else:
            raise FileNotFoundError(f"{table}: expected images in {place}, found nothing")
    folders = [str(path.parent) for path in found]
    root = (
        places[0] if len(places) == 1 and places[0].is_dir() else Path(os.path.commonpath(folders))
    )
    return root, [Path(os.path.relpath(path, root)).as_posix() for path in found]


def _labels(image: Path) -> Path:
    """Ultralytics takes the last folder of the name images; else the text is beside the image."""
    beside = image.with_suffix(".txt")
    before, images, after = str(beside).rpartition(f"{os.sep}images{os.sep}")
    apart = Path(f"{before}{os.sep}labels{os.sep}{after}")
    return apart if images and not beside.is_file() else beside


def _read_image(
    text: Path, number: int, name: str, size: tuple[int, int], classes: int, drop_empty_boxes: bool
) -> AnnotatedImage:
    rows, lines = [], []
    for k, line in enumerate(common.read_lines(text) if text.is_file() else [], 1):
        if line:
            where = f"{text} line {k}"
            corners = (len(line.split()) - 1) // 2
            fields = _FIELDS if corners < 3 else "class" + " x y" * corners
            values = common.numbers(where, line, fields)
            label = common.whole(where, "class", values[0], high=classes - 1) + 1
            for field, value in zip(fields.split()[1:], values[1:], strict=True):
                if not 0 <= value <= 1:
                    raise ValueError(f"{where}: {field} must be a share in 0..1, got {value:g}")
            sides = [v * size[k % 2] for k, v in enumerate(values[1:])]
            if corners < 3:
                cx, cy, width, height = sides
                x, y = cx - width / 2, cy - height / 2
            else:
                x, y = min(sides[::2]), min(sides[1::2])
                width, height = max(sides[::2]) - x, max(sides[1::2]) - y
            rows.append(([x, y, width, height], label, False))
            lines.append(where)
    return common.make_image(number, name, size, rows, {}, lines.__getitem__, drop_empty_boxes)


def write(data: AnnotatedSet, folder: Path, *, split: str = "train") -> list[str]:
    """Write the texts and data.yaml; see `tinyops.data.write`. What is outside an image is cut."""
    data, notes = common.without_ignored(data, _NAME)
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be train, val or test in {_NAME}, got {split!r}")
    cut = outside = 0
    for image, name in zip(data.images, common.file_names(data, _NAME), strict=True):
        size = np.array([image.width, image.height] * 2, np.float64)
        low, high = image.bbox[:, :2], image.bbox[:, :2] + image.bbox[:, 2:]
        beyond = np.any((low < 0) | (high > size[:2]), axis=1)
        low, high = np.clip(low, 0, size[:2]), np.clip(high, 0, size[:2])
        sides = np.where(beyond[:, None], high - low, image.bbox[:, 2:])
        seen = np.all(sides > 0, axis=1)
        cut, outside = cut + int((beyond & seen).sum()), outside + int((~seen).sum())
        shares = np.minimum(np.concatenate([low + sides / 2, sides], 1) / size, 1)[seen]
        lines = [
            " ".join(map(repr, [label - 1, *row]))
            for label, row in zip(image.labels[seen].tolist(), shares.tolist(), strict=True)
        ]
        common.write_text(_labels(folder / IMAGES.format(split=split) / name), lines)
    table = {split: IMAGES.format(split=split), "names": dict(enumerate(data.classes))}
    common.write_text(
        folder / "data.yaml",
        [yaml.safe_dump(table, sort_keys=False, allow_unicode=True).rstrip()],
    )
    if cut:
        notes.append(f"{cut} boxes are cut at the edge of their image: {_NAME} has shares of it")
    if outside:
        notes.append(f"{outside} boxes outside their image are left out: {_NAME} has shares of it")
    return notes + common.losses(data, _NAME)
