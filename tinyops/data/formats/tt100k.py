"""Tsinghua-Tencent 100K: one json for all splits.

    annotations.json          {"types": [name, ...], "imgs": {id: {"id", "path", "objects": [...]}}}
    <split>/ids.txt           a line per image of the split
    <split>/<id>.jpg          `path` of the image

Facts from the data set's python code (anno_func.py). An object has `category`, a name, and `bbox`:
xmin ymin xmax ymax, edges in pixels; many have `polygon` ([[x, y], ...]) or `ellipse` ([[cx, cy],
[a, b], angle]) and `ellipse_org`, kept as attributes. There is no place for regions to be ignored.
The images' sizes are in their files.
"""

from pathlib import Path
from typing import Any

import msgspec

from tinyops.data.formats import common
from tinyops.data.types import AnnotatedImage, AnnotatedSet

IMAGES = ""
_ATTRIBUTES = ("polygon", "ellipse", "ellipse_org")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_NAME = "TT100K"


def read(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """See `tinyops.data.read`; `path` is annotations.json or its folder."""
    path = path / "annotations.json" if path.is_dir() else path
    images = images or path.parent
    common.need_folder(_NAME, images)
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: it is not JSON: {error}") from error
    entries = content.get("imgs") if isinstance(content, dict) else None
    types = content.get("types", []) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not isinstance(types, list):
        raise ValueError(f"{path}: expected an object with types and imgs")
    for key, entry in entries.items():
        _check_image(f"{path}: imgs[{key!r:.40}]", entry)
    known = {file.parent.name: file for file in sorted(path.parent.glob("*/ids.txt"))}
    chosen = common.choose_split(path, split, known)
    keys = list(entries)
    if chosen is not None:
        keys = [line for line in common.read_lines(known[chosen]) if line]
        unknown = [key for key in keys if key not in entries]
        if unknown:
            raise ValueError(f"{known[chosen]}: {unknown[0]!r:.40} is not in {path}")
    types = types or sorted({x["category"] for entry in entries.values() for x in entry["objects"]})
    if not all(isinstance(name, str) for name in types) or len(set(types)) < len(types):
        raise ValueError(f"{path}: types must be names, each once, got {types!r:.60}")
    labels = {name: k for k, name in enumerate(types, 1)}
    found = []
    for key in keys:
        where, entry = f"{path}: imgs[{key!r}]", entries[key]
        size = common.image_size(images / entry["path"])
        found.append(_read_image(where, entry, size, labels, drop_empty_boxes))
    if len({image.id for image in found}) < len(found):
        raise ValueError(f"{path}: two of the images have the same id")
    return AnnotatedSet(tuple(found), tuple(types), tuple(range(1, len(types) + 1)), images)


def _check_image(where: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("objects"), list):
        raise ValueError(f"{where} must have a list of objects, got {entry!r:.60}")
    name = entry.get("path")
    number = entry.get("id")
    if type(number) is not int or abs(number) >= 2**63 or not isinstance(name, str) or "\0" in name:
        raise ValueError(f"{where} must have an int id and a path, got {entry!r:.60}")
    for k, found in enumerate(entry["objects"]):
        good = isinstance(found, dict) and isinstance(found.get("category"), str)
        edges = found.get("bbox") if good else None
        if not good or not isinstance(edges, dict):
            raise ValueError(f"{where} object {k} must have category and bbox, got {found!r:.60}")
        for edge in _EDGES:
            if not common.is_number(edges.get(edge)):
                raise ValueError(
                    f"{where} object {k}: bbox must have the number {edge}, got {edges!r:.80}"
                )


def _read_image(
    where: str,
    entry: dict[str, Any],
    size: tuple[int, int],
    labels: dict[str, int],
    drop_empty_boxes: bool,
) -> AnnotatedImage:
    rows = []
    for k, found in enumerate(entry["objects"]):
        if found["category"] not in labels:
            raise ValueError(
                f"{where} object {k}: category {found['category']!r:.40} is not in types"
            )
        x1, y1, x2, y2 = (float(found["bbox"][edge]) for edge in _EDGES)
        rows.append(([x1, y1, x2 - x1, y2 - y1], labels[found["category"]], False))
    return common.make_image(
        entry["id"],
        entry["path"],
        size,
        rows,
        common.columns(entry["objects"], ("category", "bbox")),
        lambda k: f"{where} object {k}",
        drop_empty_boxes,
    )


def write(data: AnnotatedSet, folder: Path, *, split: str = "train") -> list[str]:
    """Write annotations.json and <split>/ids.txt; see `tinyops.data.write`.

    Raises:
        ValueError: two classes have the same name.
    """
    common.need_distinct_classes(data, _NAME)
    data, notes = common.without_ignored(data, _NAME)
    entries = {}
    for image, name in zip(data.images, common.file_names(data, _NAME, stems=False), strict=True):
        columns = {key: v.tolist() for key, v in image.attributes.items() if key in _ATTRIBUTES}
        objects: list[dict[str, Any]] = []
        for k, (x, y, width, height) in enumerate(image.bbox.tolist()):
            edges = dict(zip(_EDGES, (x, y, x + width, y + height), strict=True))
            more = {key: v[k] for key, v in columns.items() if v[k] is not None}
            category = data.classes[int(image.labels[k]) - 1]
            objects.append({"category": category, "bbox": edges, **more})
        entries[str(image.id)] = {"id": image.id, "path": name, "objects": objects}
    content = {"types": data.classes, "imgs": entries}
    common.write_text(folder / "annotations.json", [msgspec.json.encode(content).decode()])
    common.write_text(folder / split / "ids.txt", list(entries))
    return notes + common.losses(data, _NAME, _ATTRIBUTES, image_ids=True)
