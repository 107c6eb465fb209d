"""COCO json as numpy columns, checked: every entry is right, or one line says which is not."""

import json
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
_ABSENT = -math.inf
_PIECE = 1 << 23  # bytes of a file of detections that are objects of Python at a time


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str = ""


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str = ""


class _Object(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int | None = None
    area: float = _ABSENT
    size: float = _ABSENT
    iscrowd: bool | int = False
    ignore: bool | int = False
    uncertain: bool | int = False


class _Detection(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


class _GroundTruthFile(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


class _DetectionFile(msgspec.Struct):
    annotations: list[_Detection]


class _Part(NamedTuple):
    """Entries of the list `name` from its entry number `start` on."""

    name: str
    start: int
    entries: Sequence[Any]


@dataclass(frozen=True)
class GroundTruth:
    """Objects of I images and C classes, in the order given.

    Attributes:
        image_ids: [I] int64, ascending.
        image_names: I file names, "" where there is none.
        class_ids: [C] int64, ascending.
        classes: C names.
        images: [N] int64, each an index into `image_ids`.
        labels: [N] int64, each an index into `class_ids`.
        boxes: [N, 4] x y w h in pixels.
        areas: [N] in square pixels: the field `area`, or w * h where there is none.
        sizes: [N] in pixels: the field `size` of TinyPerson, or sqrt(area).
        crowd: [N] bool, the field `iscrowd`.
        ignore: [N] bool, the field.
        uncertain: [N] bool, the field of TinyPerson.
        ids: [N] int64, the field `id`, or 1, 2, ... if an object has none.
    """

    image_ids: NDArray[np.int64]
    image_names: list[str]
    class_ids: NDArray[np.int64]
    classes: list[str]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    sizes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    uncertain: NDArray[np.bool_]
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Detections:
    """K detections, in the order given; fields as in `GroundTruth`."""

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def areas(self) -> NDArray[np.float64]:
        return self.boxes[:, 2] * self.boxes[:, 3]


def read_ground_truth(source: Source) -> GroundTruth:
    """Read `images`, `annotations` and `categories` of COCO, a file or its content.

    Of an annotation, `image_id`, `category_id` and `bbox` must be there.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be: file or argument, field and index.
    """
    with _named(source, "ground_truth"):
        content = _decode(source, _GroundTruthFile) if _is_path(source) else source
        if not isinstance(content, _GroundTruthFile):
            content = _GroundTruthFile(
                _structs(_Image, _list(content, "images")),
                _structs(_Object, _list(content, "annotations")),
                _structs(_Category, _list(content, "categories")),
            )
        image_ids, order = _sorted_ids(_Part("images", 0, content.images))
        class_ids, class_order = _sorted_ids(_Part("categories", 0, content.categories))
        part = _Part("annotations", 0, content.annotations)
        boxes = _boxes(part)
        areas = _size(part, "area", boxes[:, 2] * boxes[:, 3])
        if any(x.id is None for x in part.entries):
            ids = np.arange(1, len(boxes) + 1)
        else:
            _sorted_ids(part)
            ids = _column(part, "id", np.int64)
        return GroundTruth(
            image_ids,
            [content.images[k].file_name for k in order],
            class_ids,
            [content.categories[k].name for k in class_order],
            _look_up(part, "image_id", image_ids),
            _look_up(part, "category_id", class_ids),
            boxes,
            areas,
            _size(part, "size", np.sqrt(areas)),
            _column(part, "iscrowd", np.bool_),
            _column(part, "ignore", np.bool_),
            _column(part, "uncertain", np.bool_),
            ids,
        )


def read_detections(source: Source, truth: GroundTruth) -> Detections:
    """Read COCO results, a list of entries with `image_id`, `category_id`, `bbox` and `score`, or
    an object that has them as `annotations`; a file or its content.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be, or not of images and categories of `truth`: file or
            argument, field and index.
    """
    with _named(source, "detections"):
        try:
            columns = [_columns(part, truth) for part in _parts(source)]
        except _NotInPieces:
            whole = _decode(source, list[_Detection] | _DetectionFile)
            columns = [_columns(part, truth) for part in _parts(whole)]
        return Detections(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _columns(part: _Part, truth: GroundTruth) -> tuple[NDArray[Any], ...]:
    """The fields of `Detections`."""
    scores = _column(part, "score", np.float64)
    _check(part, "score", scores, np.isfinite(scores), "finite")
    return (
        _look_up(part, "image_id", truth.image_ids),
        _look_up(part, "category_id", truth.class_ids),
        _boxes(part),
        scores,
    )


def _column(part: _Part, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    values = map(operator.attrgetter(name), part.entries)
    try:
        return np.fromiter(values, dtype, len(part.entries))
    except OverflowError:
        large = (abs(getattr(entry, name)) < 2**63 for entry in part.entries)
        k = list(large).index(False)
        raise ValueError(f"{part.name}[{part.start + k}].{name} must be in 64 bits") from None


def _check(part: _Part, name: str, values: NDArray[Any], good: NDArray[Any], wish: str) -> None:
    if not good.all():
        k = int(good.argmin())
        where = f"{part.name}[{part.start + k}].{name}"
        raise ValueError(f"{where} must be {wish}, got {values[k].tolist()}")


def _boxes(part: _Part) -> NDArray[np.float64]:
    values = chain.from_iterable(map(operator.attrgetter("bbox"), part.entries))
    boxes = np.fromiter(values, np.float64, 4 * len(part.entries)).reshape(-1, 4)
    _check(part, "bbox", boxes, np.isfinite(boxes).all(1), "finite")
    _check(part, "bbox", boxes, (boxes[:, 2:] >= 0).all(1), "x y w h without a negative size")
    return boxes


def _size(part: _Part, name: str, default: NDArray[np.float64]) -> NDArray[np.float64]:
    values = _column(part, name, np.float64)
    values = np.where(values == _ABSENT, default, values)
    _check(part, name, values, np.isfinite(values) & (values >= 0), "finite and not negative")
    return values


def _sorted_ids(part: _Part) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """The ids, ascending, and which entries they are of."""
    ids = _column(part, "id", np.int64)
    order = ids.argsort(kind="stable")
    first = np.ones(len(ids), bool)
    first[order[1:]] = ids[order[1:]] != ids[order[:-1]]
    _check(part, "id", ids, first, "another than those before")
    return ids[order], order


def _look_up(part: _Part, name: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    values = _column(part, name, np.int64)
    places = np.searchsorted(ids, values)
    known = places < len(ids)
    known[known] = ids[places[known]] == values[known]
    _check(part, name, values, known, f"one of the {len(ids)} ids of the ground truth")
    return places


class _NotInPieces(Exception):
    """A file must be read as a whole."""


def _parts(source: Any) -> Iterator[_Part]:
    """Detections, as many at a time as weigh little in memory; at least one part."""
    if _is_path(source):
        yield from _pieces(Path(source))
        return
    if isinstance(source, _DetectionFile):
        name, entries = "annotations", source.annotations
    elif isinstance(source, Mapping):
        name, entries = "annotations", _list(source, "annotations").entries
    elif isinstance(source, Sequence) and not isinstance(source, str | bytes):
        name, entries = "results", source
    else:
        raise ValueError(f"expected a list of results, got {source!r:.40}")
    for start in range(0, max(len(entries), 1), 1 << 16):
        part = _Part(name, start, entries[start : start + (1 << 16)])
        yield part._replace(entries=_structs(_Detection, part))


def _pieces(path: Path) -> Iterator[_Part]:
    """A file with a list, cut between entries: no more than a piece of it is objects of Python.

    A cut inside an entry leaves a bracket or a quotation mark open on both sides, which no JSON
    has, so that pieces which can be read are right.
    """
    decoder = msgspec.json.Decoder(list[_Detection])
    start, rest = 0, b""
    with path.open("rb") as file:
        begin = file.read(_PIECE).lstrip()
        if not begin.startswith(b"["):
            raise _NotInPieces
        rest, is_last = begin[1:], False
        while not is_last:
            block = file.read(_PIECE)
            is_last = not block
            text = rest.rstrip() if is_last else rest + block
            cut = text.rfind(b"]" if is_last else b"},") + (not is_last)
            if cut < 1 - is_last or (is_last and cut + 1 < len(text)):
                raise _NotInPieces
            piece, rest = b"[" + text[:cut] + b"]", text[cut + 1 :]
            if is_last and start and not piece[1:-1].strip():  # after a comma
                raise _NotInPieces
            try:
                entries = decoder.decode(piece)
            except msgspec.DecodeError:
                try:
                    raw = json.loads(piece)
                except (ValueError, RecursionError):
                    raise _NotInPieces from None
                entries = _structs(_Detection, _Part("results", start, raw))
            yield _Part("results", start, entries)
            start += len(entries)


def _decode(path: Any, kind: Any) -> Any:
    """A file as `kind`, or as it is where it is JSON but not that."""
    raw = Path(path).read_bytes()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON: {error}") from None


def _list(content: Any, name: str) -> _Part:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected an object with {name}, got {type(content).__name__}")
    entries = content.get(name)
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise ValueError(f"{name} must be a list, got {entries!r:.40}")
    return _Part(name, 0, entries)


def _structs(kind: Any, part: _Part) -> Any:
    """Entries as `kind`, at once or, if that fails, one by one."""
    try:
        return msgspec.convert(part.entries, list[kind])
    except (msgspec.ValidationError, OverflowError):
        return [
            _struct(kind, f"{part.name}[{part.start + k}]", x) for k, x in enumerate(part.entries)
        ]


def _struct(kind: Any, where: str, entry: Any) -> Any:
    """More than `msgspec` takes, such as numbers of numpy; says what is wrong."""
    if isinstance(entry, kind):
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be an object, got {entry!r:.40}")
    values = {}
    for field in msgspec.structs.fields(kind):
        value = entry.get(field.name)
        if value is None and not field.required:
            continue
        wish, convert = _FIELDS[field.name]
        try:
            values[field.name] = convert(value)
        except (TypeError, ValueError, OverflowError):
            at = f"{where}.{field.name}"
            raise ValueError(f"{at} must be {wish}, got {value!r:.60}") from None
    return kind(**values)


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value)


def _flag(value: Any) -> int:
    return operator.index(value.item() if isinstance(value, np.bool_) else value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _box(value: Any) -> tuple[float, ...]:
    if len(value) != 4:
        raise ValueError
    return tuple(_number(x) for x in value)


_ID, _FLAG, _NUMBER = (
    ("an integer", _integer),
    ("true or false", _flag),
    ("a finite number", _number),
)
_FIELDS: Mapping[str, tuple[str, Any]] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "bbox": ("four finite numbers", _box),
    "score": _NUMBER,
    "area": _NUMBER,
    "size": _NUMBER,
    "iscrowd": _FLAG,
    "ignore": _FLAG,
    "uncertain": _FLAG,
    "file_name": ("a text", _text),
    "name": ("a text", _text),
}


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


@contextmanager
def _named(source: Any, argument: str) -> Iterator[None]:
    """Errors begin with the file or the argument."""
    name = os.fspath(source) if _is_path(source) else argument
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{name}: there is not enough memory for it") from error
