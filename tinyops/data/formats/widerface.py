"""WIDER FACE: one text or mat per split.

    wider_face_split/wider_face_<split>_bbx_gt.txt    or wider_face_<split>.mat
    WIDER_<split>/images/<event>/<name>.jpg

Facts from the readme of wider_face_split. For every image the text has its name, the number of its
faces, and a line for each: x y width height blur expression illumination invalid occlusion pose. A
number of 0 is followed by one line of zeros all the same. All numbers are whole ones. `invalid`
faces get `ignore`. The mat has cells of cells: event_list, file_list (names without .jpg) and, per
image, face_bbx_list and <attribute>_label_list. The images' sizes are in their files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyops.data.formats import common
from tinyops.data.types import AnnotatedSet

IMAGES = "WIDER_{split}/images"
_SPLITS = "wider_face_split"
_FIELDS = "x y width height blur expression illumination invalid occlusion pose"
_ATTRIBUTES = _FIELDS.split()[4:]
_NAME = "WIDER FACE"
_Image = tuple[str, list[list[float]], list[str]]  # name, rows of numbers, where each is


def read(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """See `tinyops.data.read`; `path` is a text, a mat, or the folder with `wider_face_split`."""
    file = path
    if path.is_dir():
        known = {
            name.name[11:-11]: name for name in (path / _SPLITS).glob("wider_face_*_bbx_gt.txt")
        }
        chosen = common.choose_split(path, split, known)
        if chosen is None:
            raise ValueError(
                f"{path / _SPLITS}: expected wider_face_<split>_bbx_gt.txt, found none"
            )
        file = known[chosen]
    images = images or file.parent.parent / IMAGES.format(split=_split(file))
    common.need_folder(_NAME, images)
    found = _read_mat(file) if file.suffix == ".mat" else _read_text(file)
    result = []
    for number, (name, values, where) in enumerate(found, 1):
        more = [
            [common.whole(place, *x, low=-1) for x in zip(_ATTRIBUTES, row[4:], strict=True)]
            for place, row in zip(where, values, strict=True)
        ]
        table = np.array(more, np.int64).reshape(-1, len(_ATTRIBUTES))
        attributes = dict(zip(_ATTRIBUTES, table.T, strict=True))
        rows = [(row[:4], 1, row[7] != 0) for row in values]
        size = common.image_size(images / name)
        result.append(
            common.make_image(
                number, name, size, rows, attributes, where.__getitem__, drop_empty_boxes
            )
        )
    return AnnotatedSet(tuple(result), ("face",), (1,), images)


def _split(file: Path) -> str:
    return file.stem.removeprefix("wider_face_").removesuffix("_bbx_gt")


def _read_text(path: Path) -> Iterator[_Image]:
    lines = common.read_lines(path)
    k = 0
    while k < len(lines):
        name, where = lines[k], f"{path} line {k + 2}"
        if k + 1 == len(lines):
            raise ValueError(f"{where}: expected the number of faces of {name!r:.80}, got the end")
        count = common.whole(
            where, "the number of faces", *common.numbers(where, lines[k + 1], "count")
        )
        k += 2
        if k + count > len(lines):
            raise ValueError(f"{where}: expected {count} faces, got {len(lines) - k} lines")
        places = [f"{path} line {n + 1}" for n in range(k, k + count)]
        rows = [common.numbers(place, lines[k + n], _FIELDS) for n, place in enumerate(places)]
        yield name, rows, places
        k += count
        if count == 0 and k < len(lines) and lines[k].split() == ["0"] * 10:
            k += 1


def _read_mat(path: Path) -> Iterator[_Image]:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise ValueError(f"{path}: a mat needs the package scipy: pip install scipy") from None
    try:
        content = loadmat(path)
        lists = [content[f"{key}_label_list"] for key in _ATTRIBUTES]
        for e, event in enumerate(content["event_list"][:, 0]):
            for k, name in enumerate(content["file_list"][e, 0][:, 0]):
                boxes = content["face_bbx_list"][e, 0][k, 0].reshape(-1, 4)
                parts = [part[e, 0][k, 0].reshape(-1, 1) for part in lists]
                rows = np.concatenate([boxes, *parts], 1).astype(np.float64)
                place = f"{path} {_text(event)}/{_text(name)}"
                places = [f"{place} face {n}" for n in range(1, len(rows) + 1)]
                yield f"{_text(event)}/{_text(name)}.jpg", rows.tolist(), places
    except Exception as error:  # scipy raises many kinds, whatever is wrong with a file
        raise ValueError(f"{path} must be a mat of {_NAME}: {error}") from error


def _text(cell: Any) -> str:
    return str(cell.item())


def write(data: AnnotatedSet, folder: Path, *, split: str = "train") -> list[str]:
    """Write the text; see `tinyops.data.write`. Every object is a face."""
    lines = []
    for image, name in zip(data.images, common.file_names(data, _NAME, stems=False), strict=True):
        values = {key: common.whole_column(image, key) for key in _ATTRIBUTES}
        values["invalid"] = image.ignore.astype(np.int64)
        table = np.column_stack([common.whole_pixels(image.bbox), *values.values()])
        lines += [name, str(len(image))]
        lines += [" ".join(map(str, row)) for row in table.tolist()] or [" ".join("0" * 10)]
    common.write_text(folder / _SPLITS / f"wider_face_{split}_bbx_gt.txt", lines)
    notes = common.rounding(data, _NAME)
    if data.classes != ("face",):
        notes.append(f"{len(data.classes)} classes become face: {_NAME} has no other")
    return notes + common.losses(data, _NAME, whole_attributes=_ATTRIBUTES, class_ids=True)
