"""COCO json, and what TinyPerson, AI-TOD, DroneSwarms and SODA-D add to it.

One file per split: images (id, file_name, width, height), categories (id, name) and annotations
(image_id, category_id, bbox = x y width height in pixels; mostly id, area, iscrowd, segmentation).
Whatever else entries have is kept and written again.

- TinyPerson (TinyBenchmark's README): ids from 0; the flags `ignore`, `uncertain`, `logo` and
  `in_dense_image`; boxes that are `ignore` or `uncertain` do not count. The tiles that its
  splitter writes have `corner` [x1, y1, x2, y2] in the large image that `file_name` names, boxes in
  pixels of the tile, and `old_images`, the list before. Erased sets look like any other.
- AI-TOD, AI-TOD-v2 and DroneSwarms: plain COCO.
- SODA-D: `ignore` of an annotation, and a category of the name `ignore`: regions in which no class
  counts. They get label 0 and the category is no class.

Boxes that are `iscrowd`, `ignore` or `uncertain` get `ignore`.
"""

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinyops._files import replacing
from tinyops.data.formats.common import IGNORE, column, columns, is_number, joined, kept_boxes
from tinyops.data.types import AnnotatedImage, AnnotatedSet

_IGNORED = ("iscrowd", "ignore", "uncertain")
_FLAGS = (*_IGNORED, "logo", "in_dense_image")
_CORE = ("image_id", "category_id", "bbox")
# Annotations that are Python objects at a time: more of them make the garbage collector walk more.
_CHUNK = 256


def read(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """See `tinyops.data.read`; labels count from 1 in the order of the category ids."""
    if split is not None:
        raise ValueError(f"{path}: split must be None, as COCO has a file per split; got {split}")
    text, refused = path.read_bytes().removeprefix(codecs.BOM_UTF8), None
    try:
        content = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            content, refused = json.loads(text), error  # it knows NaN, whose place is then found
        except (ValueError, RecursionError) as reason:
            raise ValueError(f"{path} is not JSON: {reason}") from reason
    try:
        data = _checked(content, images, drop_empty_boxes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if refused is not None:
        raise ValueError(f"{path} is not JSON: {refused}")
    return data


def write(data: AnnotatedSet, path: Path) -> list[str]:
    """Write a json; see `tinyops.data.write`."""
    encode = msgspec.json.Encoder().encode
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(encode(_head(data))[:-1] + b',"annotations":[')
        between = b"\n"
        for chunk in _chunks(_annotations(data)):
            file.write(between + encode(chunk)[1:-1])
            between = b",\n"
        file.write(b"]}\n")
    return []


def to_coco(data: AnnotatedSet) -> dict[str, Any]:
    """The content of a json, as evaluation takes it.

    Annotations keep their `id` where all have one and no two the same; else they count from 1.
    Where `ignore` has no flag that says so, `iscrowd` and `ignore` are set; where it is not set, no
    flag is. Label 0 becomes a category named "ignore".
    """
    return {**_head(data), "annotations": list(_annotations(data))}


def _decoded(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def _checked(content: Any, folder: Path | None, drop_empty_boxes: bool) -> AnnotatedSet:
    if not isinstance(content, dict):
        raise ValueError(f"expected an object with images, got {type(content).__name__}")
    annotations = content.pop("annotations", None)
    if isinstance(annotations, msgspec.Raw):
        try:
            annotations = msgspec.json.decode(annotations, type=list[msgspec.Raw])
        except msgspec.ValidationError:  # no list
            annotations = _decoded(annotations)
    content = {key: _decoded(value) for key, value in content.items()}
    images, categories = content.pop("images", None), content.pop("categories", None)
    for key, value in (
        ("images", images),
        ("annotations", annotations),
        ("categories", categories),
    ):
        if not isinstance(value, list):
            raise ValueError(f"{key} must be a list, got {value!r:.40}")
    labels, classes, category_ids, extra = _categories(categories)
    for k, image in enumerate(images):
        _check_image(f"images[{k}]", image)
    places = _places("images", images)
    bbox, label, place, attributes = _read_annotations(annotations, places, labels)
    keep = kept_boxes(bbox, lambda k: f"annotations[{k}]", drop_empty_boxes)
    ignore = label == 0
    for name in _IGNORED:
        if name in attributes:
            ignore = ignore | (attributes[name] != 0)
    order = np.flatnonzero(keep)[np.argsort(place[keep], kind="stable")]
    bounds = np.searchsorted(place[order], np.arange(len(images) + 1))
    bbox, label, ignore = bbox[order], label[order], ignore[order]
    attributes = {name: values[order] for name, values in attributes.items()}
    result = tuple(
        _image(
            image, bbox[a:b], label[a:b], ignore[a:b], {n: v[a:b] for n, v in attributes.items()}
        )
        for image, a, b in zip(images, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    )
    return AnnotatedSet(result, classes, category_ids, folder, {**content, **extra})


def _categories(
    entries: list[Any],
) -> tuple[dict[int, int], tuple[str, ...], tuple[int, ...], dict[str, Any]]:
    """Category id -> label, the classes, their ids, and what else is known of the categories."""
    if not entries:
        raise ValueError("categories must not be empty")
    for k, entry in enumerate(entries):
        _object(f"categories[{k}]", entry)
        if not isinstance(entry.get("name"), str):
            raise ValueError(f"categories[{k}]: name must be a text, got {entry.get('name')!r:.40}")
    _places("categories", entries)
    entries = sorted(entries, key=lambda entry: entry["id"])
    extra: dict[str, Any] = {}
    ignored = [entry for entry in entries if entry["name"] == IGNORE]
    if len(ignored) == 1 < len(entries):
        entries.remove(ignored[0])
        extra["ignore_category"] = ignored[0]
    labels = {entry["id"]: label for label, entry in enumerate(entries, 1)}
    labels.update({entry["id"]: 0 for entry in ignored if "ignore_category" in extra})
    classes = tuple(entry["name"] for entry in entries)
    rest = [{k: v for k, v in entry.items() if k not in ("id", "name")} for entry in entries]
    if any(rest):
        extra["categories"] = rest
    return labels, classes, tuple(entry["id"] for entry in entries), extra


def _places(kind: str, entries: list[Any]) -> dict[int, int]:
    """Id -> index of the entry."""
    places: dict[int, int] = {}
    for k, entry in enumerate(entries):
        found = entry.get("id")
        if type(found) is not int or abs(found) >= 2**63:
            raise ValueError(f"{kind}[{k}]: id must be an int, got {found!r:.40}")
        if found in places:
            raise ValueError(f"{kind}[{k}]: id {found} is taken")
        places[found] = k
    return places


def _object(where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object, got {entry!r:.40}")


def _check_image(where: str, entry: Any) -> None:
    _object(where, entry)
    for key in ("width", "height"):
        if type(entry.get(key)) is not int or not 1 <= entry[key] < 2**31:
            raise ValueError(f"{where}: {key} must be a positive int, got {entry.get(key)!r:.40}")
    if not isinstance(entry.get("file_name"), str) or "\0" in entry["file_name"]:
        raise ValueError(f"{where}: file_name must be a text, got {entry.get('file_name')!r:.40}")
    corner = entry.get("corner")
    if corner is None:
        return
    good = isinstance(corner, list) and len(corner) == 4 and all(type(x) is int for x in corner)
    size = [entry["width"], entry["height"]]
    if not good or min(corner) < 0 or [corner[2] - corner[0], corner[3] - corner[1]] != size:
        raise ValueError(
            f"{where}: corner must be [x1, y1, x2, y2] of a tile of {size[0]}x{size[1]}, "
            f"got {corner!r:.60}"
        )


def _read_annotations(
    entries: list[Any], images: Mapping[int, int], labels: Mapping[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Columns of all annotations: bbox, label, index of the image, and attributes."""
    decode = msgspec.json.Decoder(list[dict[str, Any]]).decode
    core, parts = [], []
    for start in range(0, len(entries), _CHUNK):
        chunk = entries[start : start + _CHUNK]
        if isinstance(chunk[0], msgspec.Raw):
            text = b"[" + b",".join(chunk) + b"]"
            try:
                chunk = decode(text)
            except msgspec.ValidationError:  # an entry is no object
                chunk = msgspec.json.decode(text)
        try:
            core.append(_core(chunk, images, labels))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            for k, entry in enumerate(chunk, start):
                _check_annotation(f"annotations[{k}]", entry, images, labels)
            raise  # an entry that the check takes and the columns do not is a mistake of ours
        parts.append({"": core[-1][1], **columns(chunk, _CORE)})  # never without a column
    if not entries:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64), {}
    attributes = joined(parts)
    del attributes[""]
    for name in _FLAGS:
        if name in attributes and (attributes[name].dtype == object or attributes[name].ndim > 1):
            attributes[name] = np.array([bool(value) for value in attributes[name].tolist()])
    bbox, label, place = (np.concatenate(x) for x in zip(*core, strict=True))
    return bbox, label, place, attributes


def _core(
    chunk: list[Any], images: Mapping[int, int], labels: Mapping[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """bbox, label and index of the image; an error of any kind if something is wrong."""
    if {type(entry[key]) for entry in chunk for key in ("image_id", "category_id")} - {int}:
        raise TypeError("ids")
    places = [images[entry["image_id"]] for entry in chunk]
    found = [labels[entry["category_id"]] for entry in chunk]
    boxes = column([entry["bbox"] for entry in chunk])
    if boxes.dtype.kind not in "if":
        boxes = np.array([list(map(float, entry["bbox"])) for entry in chunk])
    if boxes.shape != (len(chunk), 4) or {type(x) for e in chunk for x in e["bbox"]} - {int, float}:
        raise ValueError("bbox")
    if not all(map(is_number, (entry.get("area", 0) for entry in chunk))):
        raise ValueError("area")
    return boxes.astype(np.float64), np.array(found, np.int64), np.array(places, np.int64)


def _check_annotation(
    where: str, entry: Any, images: Mapping[int, int], labels: Mapping[int, int]
) -> None:
    _object(where, entry)
    for key, known in (("image_id", images), ("category_id", labels)):
        if type(entry.get(key)) is not int or entry[key] not in known:
            raise ValueError(f"{where}: {key} {entry.get(key)!r:.40} does not exist")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"{where}: bbox must be [x, y, width, height], got {box!r:.60}")
    if not all(map(is_number, box)):
        raise ValueError(f"{where}: bbox must be of finite numbers, got {box!r:.80}")
    if not is_number(entry.get("area", 0)):
        raise ValueError(f"{where}: area must be a finite number, got {entry['area']!r:.40}")


def _image(
    entry: Mapping[str, Any],
    bbox: NDArray[np.float64],
    labels: NDArray[np.int64],
    ignore: NDArray[np.bool_],
    attributes: Mapping[str, NDArray[Any]],
) -> AnnotatedImage:
    rest = dict(entry)
    number, name, width, height = (rest.pop(k) for k in ("id", "file_name", "width", "height"))
    corner = rest.pop("corner", None)
    corner = None if corner is None else tuple(corner)
    return AnnotatedImage(
        number, name, width, height, bbox, labels, ignore, attributes, corner, rest
    )


def _head(data: AnnotatedSet) -> dict[str, Any]:
    """All but the annotations."""
    images = []
    for image in data.images:
        entry = {"id": image.id, "file_name": image.file_name, "width": image.width}
        entry |= {"height": image.height, **image.extra}
        images.append(entry if image.corner is None else {**entry, "corner": list(image.corner)})
    extra = dict(data.extra)
    rest = extra.pop("categories", [])
    rest = rest if len(rest) == len(data.classes) else [{}] * len(data.classes)
    categories = [
        {"id": key, "name": name, **more}
        for key, name, more in zip(data.category_ids, data.classes, rest, strict=True)
    ]
    ignored = extra.pop("ignore_category", None)
    if ignored is not None or any((image.labels == 0).any() for image in data.images):
        categories.append({**(ignored or {}), "id": _ignore_id(data), "name": IGNORE})
    return {**extra, "images": images, "categories": categories}


def _ignore_id(data: AnnotatedSet) -> int:
    found = data.extra.get("ignore_category", {}).get("id", 0)
    return found if "ignore_category" in data.extra else max(data.category_ids, default=0) + 1


def _own_ids(data: AnnotatedSet) -> bool:
    """Whether all objects have ids, and no two the same."""
    found = [image.attributes.get("id", np.zeros(0)) for image in data.images if len(image)]
    if not found or any(ids.dtype.kind != "i" for ids in found):
        return False
    ids = np.concatenate(found)
    return len(np.unique(ids)) == len(ids)


def _unsaid(data: AnnotatedSet, image: AnnotatedImage) -> NDArray[np.bool_]:
    """[K] objects to be ignored that neither a flag nor the category of the file calls so."""
    said = image.labels == 0 if "ignore_category" in data.extra else ~image.ignore
    for name in _IGNORED:
        said = said | (image.attributes.get(name, np.zeros(1)) != 0)
    return image.ignore & ~said


def _annotations(data: AnnotatedSet) -> Iterator[dict[str, Any]]:
    """Image by image."""
    known = _own_ids(data)
    add = ["iscrowd"]  # AI-TOD's evaluator wants it everywhere
    if any(_unsaid(data, image).any() for image in data.images):
        add.append("ignore")
    category_ids = (_ignore_id(data), *data.category_ids)
    number = 0
    for image in data.images:
        table = {name: values for name, values in image.attributes.items() if name not in _CORE}
        unsaid = _unsaid(data, image)
        for name in add:
            table.setdefault(name, np.zeros(len(image), np.int64))
        for name in _IGNORED:
            if name in table:
                flag = np.where(image.ignore, table[name], table[name].dtype.type(0))
                table[name] = np.where(unsaid & (name in add), 1, flag) if unsaid.any() else flag
        if "area" not in table:
            table["area"] = image.bbox[:, 2] * image.bbox[:, 3]
        names, rows = list(table), zip(*(values.tolist() for values in table.values()), strict=True)
        for box, label, row in zip(image.bbox.tolist(), image.labels.tolist(), rows, strict=True):
            number += 1
            entry = {"id": number, "image_id": image.id, "category_id": category_ids[label]}
            more = {n: v for n, v in zip(names, row, strict=True) if v is not None}
            if not known:
                more.pop("id", None)
            yield {**entry, "bbox": box, **more}


def _chunks(entries: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
