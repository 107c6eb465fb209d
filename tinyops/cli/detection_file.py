"""Files of `tinyops detect`, COCO json and CSV, read back."""

import csv
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tinyops.evaluation.tables import Results, in_range, load, named, read_results
from tinyops.inference.formats import COLUMNS


@dataclass(frozen=True)
class DetectionFile:
    """What a file says was detected.

    Attributes:
        images: id -> file name; empty in a list of COCO results, which has the ids of a benchmark.
        categories: id -> name; those without one are left out.
        results: of these ids.
    """

    images: dict[int, str]
    categories: dict[int, str]
    results: Results


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Category(msgspec.Struct):
    id: int
    name: str


class _Tables(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]


def read_detections(path: str | os.PathLike[str]) -> DetectionFile:
    """Read COCO json, an object or a list of results (.json), or CSV (.csv).

    Raises:
        OSError: the file cannot be read.
        ValueError: naming the file and the entry: what was expected and what came.
    """
    path = Path(path)
    readers = {".json": _read_json, ".csv": _read_csv}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(f"{path}: expected a file of detections, {' or '.join(readers)}")
    return readers[suffix](path)


def _read_json(path: Path) -> DetectionFile:
    results = read_results(path)
    if results.name == "results":  # a list
        return DetectionFile({}, {}, results)
    with named(path, ""):
        tables = load(path, _Tables)
        images = _names("images", [(x.id, x.file_name) for x in tables.images])
        categories = _names("categories", [(x.id, x.name) for x in tables.categories])
        for ids, known, field in (
            (results.image_ids, images, "image_id"),
            (results.category_ids, categories, "category_id"),
        ):
            good = np.isin(ids, list(known))
            if not good.all():
                k = int(good.argmin())
                raise ValueError(f"annotations[{k}].{field} does not exist: {ids[k]}")
    # What `write_coco` gives them for want of names.
    categories = {key: name for key, name in categories.items() if name != str(key)}
    return DetectionFile(images, categories, results)


def _names(table: str, rows: Sequence[tuple[int, str]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for k, (number, name) in enumerate(rows):
        if number in names:
            raise ValueError(f"{table}[{k}].id must be another than those before, got {number}")
        names[number] = name
    return names


def _read_csv(path: Path) -> DetectionFile:
    images: dict[str, int] = {}
    categories: dict[int, str] = {}
    lines, image_ids, labels, boxes, scores = [], [], [], [], []
    with (
        named(path, ""),
        path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.reader(file)
        try:
            if tuple(next(rows, ())) != COLUMNS:
                raise ValueError(f"the first line must be {','.join(COLUMNS)}")
            for row in rows:
                where = f"line {rows.line_num}"
                try:
                    image, label, name, score, x1, y1, x2, y2 = row
                    box = [float(x1), float(y1), float(x2), float(y2)]
                    labels.append(operator.index(np.int64(int(label))))
                    scores.append(float(score))
                except (ValueError, OverflowError):
                    raise ValueError(f"{where} must be {','.join(COLUMNS)}, got {row}") from None
                lines.append(rows.line_num)
                image_ids.append(images.setdefault(image, len(images) + 1))
                boxes.append(box)
                if name and categories.setdefault(labels[-1], name) != name:
                    raise ValueError(f"{where}: label {label} has two names, {name} is the second")
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from None
        corners = np.array(boxes, np.float64).reshape(-1, 4)

        def check(good: Any, wish: str) -> None:
            if not good.all():
                k = int(good.argmin())
                raise ValueError(f"line {lines[k]}: {wish}, got {boxes[k]}, {scores[k]}")

        check(in_range(corners).all(1), "the box must be finite and below 1e100")
        check((corners[:, :2] <= corners[:, 2:]).all(1), "the box must have x1 <= x2 and y1 <= y2")
        check(np.isfinite(scores), "the score must be finite")
    sides = np.round(corners[:, 2:] - corners[:, :2], 3)  # as in COCO json
    results = Results(
        np.array(image_ids, np.int64),
        np.array(labels, np.int64),
        np.concatenate([corners[:, :2], sides], 1),
        np.array(scores, np.float64),
        source=os.fspath(path),
    )
    return DetectionFile({number: name for name, number in images.items()}, categories, results)
