"""Read data sets in COCO form."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CocoImage:
    """One image and what is in it.

    Attributes:
        id: as in the json.
        path: of the file.
        width: in pixels.
        height: in pixels.
        boxes: [K, 4] float32 x1 y1 x2 y2 in pixels.
        labels: [K] int64 in 1..len(classes).
        ignore: [K] bool, regions in which nothing counts (`iscrowd`, `ignore` or `uncertain`).
    """

    id: int
    path: Path
    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    ignore: Tensor


@dataclass(frozen=True)
class CocoSet:
    """A data set.

    Attributes:
        images: in the order of the json; images without objects included.
        classes: names; label k is classes[k - 1].
        category_ids: label k is category category_ids[k - 1] of the json.
        ground_truth: the json itself, for evaluation.
    """

    images: tuple[CocoImage, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    ground_truth: Mapping[str, Any]


def read_coco(
    annotations: str | os.PathLike[str],
    image_folder: str | os.PathLike[str] | None,
    *,
    drop_empty_boxes: bool = False,
) -> CocoSet:
    """Read and check a COCO json; labels count from 1 in the order of the category ids.

    Args:
        annotations: the json.
        image_folder: folder to which `file_name` is relative; None: unknown, no file is looked for.
        drop_empty_boxes: leave out boxes without area instead of refusing them.

    Raises:
        FileNotFoundError: the json or an image does not exist.
        ValueError: the first entry that is not what it should be, and why.
    """
    path = Path(annotations)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # of JSON, or of the text's encoding
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        data = _checked(content, Path(image_folder or ""), drop_empty_boxes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    missing = [image.path for image in data.images if not image.path.is_file()]
    if image_folder is not None and missing:
        raise FileNotFoundError(
            f"{len(missing)} image files are missing, the first is {missing[0]}"
        )
    return data


def _checked(content: Any, folder: Path, drop_empty_boxes: bool) -> CocoSet:
    if not isinstance(content, dict):
        raise ValueError(f"expected an object with images, got {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{key} must be a list, got {content.get(key)!r:.40}")
    if not content["categories"]:
        raise ValueError("categories must not be empty")
    names: dict[int, str] = {}
    for k, category in enumerate(content["categories"]):
        names[_new_id(f"categories[{k}]", category, names)] = str(category.get("name"))
    category_ids = tuple(sorted(names))
    labels = {category_id: label for label, category_id in enumerate(category_ids, 1)}

    entries: dict[int, dict[str, Any]] = {}
    for k, image in enumerate(content["images"]):
        where = f"images[{k}]"
        entries[_new_id(where, image, entries)] = image
        for key in ("width", "height"):
            if not isinstance(image.get(key), int) or image[key] < 1:
                raise ValueError(f"{where}: {key} must be a positive int, got {image.get(key)!r}")
        if not isinstance(image.get("file_name"), str):
            raise ValueError(f"{where}: file_name must be a text, got {image.get('file_name')!r}")

    rows: dict[int, list[tuple[list[float], int, bool]]] = {key: [] for key in entries}
    for k, entry in enumerate(content["annotations"]):
        image_id, row = _annotation(f"annotations[{k}]", entry, rows, labels, drop_empty_boxes)
        if row is not None:
            rows[image_id].append(row)
    images = tuple(_image(entry, folder, rows[key]) for key, entry in entries.items())
    classes = tuple(names[category_id] for category_id in category_ids)
    return CocoSet(images, classes, category_ids, content)


def _new_id(where: str, entry: Any, taken: Mapping[int, Any]) -> int:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object, got {entry!r:.40}")
    found = entry.get("id")
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"{where}: id must be an int, got {found!r}")
    if found in taken:
        raise ValueError(f"{where}: id {found} is taken")
    return found


def _annotation(
    where: str,
    entry: Any,
    images: Mapping[int, Any],
    labels: Mapping[int, int],
    drop_empty_boxes: bool,
) -> tuple[int, tuple[list[float], int, bool] | None]:
    """(image id, (x1 y1 x2 y2, label, ignore)), with None for a box to be left out."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object, got {entry!r:.40}")
    image_id: Any = entry.get("image_id")
    category_id: Any = entry.get("category_id")
    box: Any = entry.get("bbox")
    if not isinstance(image_id, int) or image_id not in images:
        raise ValueError(f"{where}: image_id {image_id!r} does not exist")
    if not isinstance(category_id, int) or category_id not in labels:
        raise ValueError(f"{where}: category_id {category_id!r} does not exist")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"{where}: bbox must be [x, y, width, height], got {box!r:.60}")
    if not all(map(_is_number, box)):
        raise ValueError(f"{where}: bbox must be of finite numbers, got {box}")
    if not _is_number(entry.get("area", 0)):
        raise ValueError(f"{where}: area must be a finite number, got {entry['area']!r}")
    x, y, width, height = map(float, box)
    if width < 0 or height < 0:
        raise ValueError(f"{where}: bbox must not have a negative size, got {box}")
    if width * height == 0:
        if drop_empty_boxes:
            return image_id, None
        raise ValueError(f"{where}: bbox has no area ({box}); drop_empty_boxes leaves such out")
    ignore = any(bool(entry.get(key, False)) for key in ("iscrowd", "ignore", "uncertain"))
    return image_id, ([x, y, x + width, y + height], labels[category_id], ignore)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30  # of float32; False for NaN


def _image(
    entry: Mapping[str, Any], folder: Path, rows: list[tuple[list[float], int, bool]]
) -> CocoImage:
    return CocoImage(
        id=entry["id"],
        path=folder / entry["file_name"],
        width=entry["width"],
        height=entry["height"],
        boxes=torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        ignore=torch.tensor([row[2] for row in rows], dtype=torch.bool),
    )
