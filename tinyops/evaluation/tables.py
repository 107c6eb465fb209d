"""COCO json as numpy columns, checked: every entry is right, or one line says which is not."""

import json
import math
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

_Content: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]
# A file, its content, or what was read of it.
Source: TypeAlias = "str | os.PathLike[str] | _Content | GroundTruth | Results"
Mask: TypeAlias = NDArray[np.bool_]
_ABSENT = -math.inf
_PIECE = 1 << 20  # bytes of a file of detections that are objects of Python at a time
_AT_A_TIME = 1 << 16  # entries of content likewise


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
    crowd: Mask
    ignore: Mask
    uncertain: Mask
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


@dataclass(frozen=True)
class Results:
    """COCO results as columns, not yet looked up in a ground truth.

    Attributes:
        image_ids: [K] int64.
        category_ids: [K] int64.
        boxes: [K, 4] x y w h in pixels.
        scores: [K].
        source: the file or argument that they are of, for errors.
        name: of the list in there, likewise.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    source: str = "detections"
    name: str = "results"

    def select(self, keep: NDArray[Any]) -> "Results":
        """Those that a mask [K] or indices name."""
        columns = ("image_ids", "category_ids", "boxes", "scores")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})

    def entries(self) -> list[dict[str, Any]]:
        """What a json of results holds."""
        keys = ("image_id", "category_id", "bbox", "score")
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(keys, row, strict=True)) for row in rows]


def read_ground_truth(source: Source) -> GroundTruth:
    """Read `images`, `annotations` and `categories` of COCO, a file or its content.

    Of an annotation, `image_id`, `category_id` and `bbox` must be there.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be: file or argument, field and index.
    """
    if isinstance(source, GroundTruth):
        return source
    with named(source, "ground_truth"):
        content = load(source, _GroundTruthFile)
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
            _look_up(part, "image_id", _column(part, "image_id", np.int64), image_ids),
            _look_up(part, "category_id", _column(part, "category_id", np.int64), class_ids),
            boxes,
            areas,
            _size(part, "size", np.sqrt(areas)),
            _column(part, "iscrowd", np.bool_),
            _column(part, "ignore", np.bool_),
            _column(part, "uncertain", np.bool_),
            ids,
        )


def read_detections(source: Source, truth: GroundTruth) -> Detections:
    """`read_results`, and which images and classes of `truth` they are of.

    Raises:
        OSError: as `read_results`.
        ValueError: likewise, or an id that `truth` does not have: file or argument, field and
            index.
    """
    results = read_results(source)
    part = _Part(results.name, 0, ())
    with named(results.source, ""):
        return Detections(
            _look_up(part, "image_id", results.image_ids, truth.image_ids),
            _look_up(part, "category_id", results.category_ids, truth.class_ids),
            results.boxes,
            results.scores,
        )


def read_results(source: Source) -> Results:
    """Read COCO results, a list of entries with `image_id`, `category_id`, `bbox` and `score`, or
    an object that has them as `annotations`; a file or its content.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be: file or argument, field and index.
    """
    if isinstance(source, Results):
        return source
    with named(source, "detections"):
        try:
            names, columns = zip(*map(_columns, _parts(source)), strict=True)
        except _NotInPiecesError:
            whole = load(source, list[_Detection] | _DetectionFile, "results")
            is_list = isinstance(whole, list)
            part = (
                _Part("results", 0, whole)
                if is_list
                else _Part("annotations", 0, whole.annotations)
            )
            names, columns = zip(_columns(part), strict=True)
    image_ids, category_ids, boxes, scores = map(np.concatenate, zip(*columns, strict=True))
    where = str(source) if _is_path(source) else "detections"
    return Results(image_ids, category_ids, boxes, scores, where, names[0])


def _columns(part: _Part) -> tuple[str, tuple[NDArray[Any], ...]]:
    """The name of the list, and its fields in `Results`."""
    scores = _column(part, "score", np.float64)
    _check(part, "score", scores, np.isfinite(scores), "finite")
    image_ids, category_ids = (_column(part, x, np.int64) for x in ("image_id", "category_id"))
    return part.name, (image_ids, category_ids, _boxes(part), scores)


def _column(part: _Part, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    values = map(operator.attrgetter(name), part.entries)
    try:
        return np.fromiter(values, dtype, len(part.entries))
    except OverflowError:
        large = (abs(getattr(entry, name)) < 2**63 for entry in part.entries)
        k = list(large).index(False)
        raise ValueError(f"{part.name}[{part.start + k}].{name} must be in 64 bits") from None


def _check(part: _Part, name: str, values: NDArray[Any], good: Any, wish: str) -> None:
    if not good.all():
        k = int(good.argmin())
        where = f"{part.name}[{part.start + k}].{name}"
        raise ValueError(f"{where} must be {wish}, got {values[k].tolist()}")


def _boxes(part: _Part) -> NDArray[np.float64]:
    values = chain.from_iterable(map(operator.attrgetter("bbox"), part.entries))
    boxes = np.fromiter(values, np.float64, 4 * len(part.entries)).reshape(-1, 4)
    _check(part, "bbox", boxes, in_range(boxes).all(1), "finite and below 1e100")
    _check(part, "bbox", boxes, (boxes[:, 2:] >= 0).all(1), "x y w h without a negative size")
    return boxes


def in_range(values: NDArray[np.float64]) -> Mask:
    """Which coordinates of boxes are numbers whose products are finite."""
    good: Mask = np.abs(values) < 1e100
    return good


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


def _look_up(
    part: _Part, name: str, values: NDArray[np.int64], ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    places = np.searchsorted(ids, values)
    known = places < len(ids)
    known[known] = ids[places[known]] == values[known]
    _check(part, name, values, known, f"one of the {len(ids)} ids of the ground truth")
    return places


class _NotInPiecesError(Exception):
    """A file must be read as a whole."""


def _parts(source: Any) -> Iterator[_Part]:
    """Detections, as many at a time as weigh little in memory; at least one part."""
    if _is_path(source):
        yield from _pieces(Path(source))
        return
    name, entries = "results", source
    if isinstance(source, Mapping):
        name, entries = "annotations", source.get("annotations")
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise ValueError(f"{name} must be a list, got {entries!r:.40}")
    for start in range(0, max(len(entries), 1), _AT_A_TIME):
        some = entries[start : start + _AT_A_TIME]
        yield _Part(name, start, typed(some, list[_Detection], name, start))


def _pieces(path: Path) -> Iterator[_Part]:
    """The list in a file, cut between entries, so that little of it is objects of Python at a time.

    A cut inside an entry would leave a bracket or a quotation mark open on both sides, which no
    JSON has: pieces that can be read are right.
    """
    decoder = msgspec.json.Decoder(list[_Detection])
    start = 0
    with path.open("rb") as file:
        for body in _bodies(file):
            if start and not body.strip():  # after a comma
                raise _NotInPiecesError
            try:
                entries = decoder.decode(b"[" + body + b"]")
            except msgspec.ValidationError as error:
                raise _moved("results", start, error) from None
            except (msgspec.DecodeError, RecursionError):
                try:
                    raw = json.loads(b"[" + body + b"]")
                except (ValueError, RecursionError):
                    raise _NotInPiecesError from None
                entries = typed(raw, list[_Detection], "results", start)
            yield _Part("results", start, entries)
            start += len(entries)


def _bodies(file: BinaryIO) -> Iterator[bytes]:
    rest = file.read(_PIECE).lstrip()
    if not rest.startswith(b"["):
        raise _NotInPiecesError
    rest = rest[1:]
    while block := file.read(_PIECE):
        body, comma, rest = (rest + block).rpartition(b"},")
        if not comma:
            raise _NotInPiecesError
        yield body + b"}"
    rest = rest.rstrip()
    if not rest.endswith(b"]"):
        raise ValueError("is not JSON: its list has no end")
    yield rest[:-1]


def load(source: Any, kind: Any, name: str = "") -> Any:
    """A file, or content that was loaded, as `kind`, a type of msgspec's.

    Raises:
        ValueError: it is not; the message has the place. A list is called `name` there.
    """
    if not _is_path(source):
        return typed(source, kind, name)
    raw = Path(source).read_bytes()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _moved(name, 0, error) from None
    except (msgspec.DecodeError, RecursionError):
        try:
            content = json.loads(raw)  # it knows NaN, so that its field can be named
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON: {error}") from None
    return typed(content, kind, name)


def typed(content: Any, kind: Any, name: str = "", start: int = 0) -> Any:
    """Content that was loaded, which is no path, as `kind`; name and start as of a `_Part`.

    Raises:
        ValueError: as of `load`.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        first = error
    try:  # it may have numbers or arrays of numpy
        return msgspec.json.decode(msgspec.json.encode(content, enc_hook=_plain), type=kind)
    except msgspec.ValidationError as error:
        raise _moved(name, start, error) from None
    except (TypeError, ValueError, RecursionError):  # it has what no JSON has
        raise _moved(name, start, first) from None


def _plain(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError
    return value.tolist()


def _moved(name: str, start: int, error: Exception) -> ValueError:
    """msgspec's error with its place in front: field, and index in the whole list."""
    what, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    if number := re.match(r"\[(\d+)\]", place):
        place = f"{name}[{start + int(number[1])}]{place[number.end() :]}"
    return ValueError(f"{place}: {what}" if place else what)


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


@contextmanager
def named(source: Any, argument: str) -> Iterator[None]:
    """Errors begin with the file or the argument."""
    name = os.fspath(source) if _is_path(source) else argument
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{name}: there is not enough memory for it") from error
