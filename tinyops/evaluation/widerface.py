"""WIDER FACE: AP of the easy, medium and hard faces.

The rules are those of the benchmark's own evaluation. Scores are stretched to 0..1 over the whole
set. Each detection, in the order of its file, belongs to the face of greatest IoU (with boxes that
are one pixel wider and higher than their numbers), if that is at least 0.5: if the face is not of
the set, the detection counts neither way; otherwise the first one has found the face, and any other
is a false alarm, as are those without a face. The curve has 1000 thresholds of the score, 0.999 to
0; at each of them an image counts up to its last detection that reaches it. AP is the area under
the precision that no higher recall exceeds.

Quirks that `compatible=True` reproduces:

- Detections in images without faces are no false alarms.
- Scores are stretched from min(1, the least) to max(0, the greatest), which is not 0..1 for scores
  outside of it; if all of them are 1 or all are 0, no detection counts.
- Detections that are not sorted by score are not sorted here either: one of a low score counts if
  one of a high score follows.
- AP and recall of a set without faces are None (NaN there).

`compatible=False`: such detections are false alarms; scores are stretched from the least to the
greatest (equal ones become 1); they are sorted; AP of a set without faces is -1.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.content import convert, load_json
from tinyops.evaluation.curves import RECALL, interpolate
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT, MISSED, Details

SETS = ("easy", "medium", "hard")
IOU = 0.5
_THRESHOLDS = 1 - np.arange(1, 1001) / 1000


class _Faces(msgspec.Struct):
    name: str
    gt: list[tuple[float, float, float, float]]
    easy: list[int]
    medium: list[int]
    hard: list[int]


class _FaceEvent(msgspec.Struct):
    event: str
    images: list[_Faces]


class _Found(msgspec.Struct):
    name: str
    dt: list[tuple[float, float, float, float, float]]


class _FoundEvent(msgspec.Struct):
    event: str
    images: list[_Found]


_Key = tuple[str, str]  # event and image
_Rows = NDArray[np.float64]


@dataclass(frozen=True)
class _Image:
    """One image: faces [G, 4] and detections [D, 5] (x y w h score), and how they match.

    Attributes:
        sets: name -> [G] bool, the faces that count.
        face: [D] index of the face that a detection belongs to, or -1.
    """

    key: _Key
    faces: _Rows
    sets: Mapping[str, NDArray[np.bool_]]
    found: _Rows
    face: NDArray[np.int64]

    @property
    def file_name(self) -> str:
        return f"{self.key[0]}/{self.key[1].removesuffix('.jpg')}.jpg"

    def counts(self, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """[D] which detections are counted in a set, and which of them find a face of it."""
        wanted = np.append(self.sets[name], False)[self.face]
        first = np.zeros(len(self.face), bool)
        first[np.unique(self.face, return_index=True)[1]] = True
        return wanted | (self.face < 0), wanted & first


def evaluate(
    ground_truth: Any, detections: Any, *, compatible: bool = True, threads: int | None = None
) -> dict[str, Any]:
    """AP of each set.

    Args:
        ground_truth: a list, or the path of a json with it, of {event, images: [{name, gt, easy,
            medium, hard}]}: boxes x y width height in pixels, and which of them (from 0) are of a
            set; or the folder of wider_face_val.mat and wider_{easy,medium,hard}_val.mat.
        detections: likewise {event, images: [{name, dt}]} of rows x y width height score, an image
            without an entry having none; or a folder of <event>/<image>.txt, one for every image:
            a line of its name, one of the number of rows, and the rows.
        compatible: with the quirks of the original, see above.
        threads: one is used.

    Returns:
        "easy", "medium" and "hard": AP, count_face (how many are of the set) and curve, every 25th
        of its 1000 rows: number of the threshold, detections counted, faces found, precision,
        recall; precision is None where no detection counts.

    Raises:
        ImportError: scipy, which reads .mat, is not installed.
        OSError: a file cannot be read.
        ValueError: naming the file or argument, field and index of what is wrong.
    """
    images = _images(ground_truth, detections, compatible)
    curves = {name: _curve(images, name, compatible) for name in SETS}
    return {name: _measure(curve, compatible) for name, curve in curves.items()}


def details(
    ground_truth: Any, detections: Any, *, compatible: bool = True, threads: int | None = None
) -> Details:
    """Curves of the three sets, and what became of each detection and face in the hard one.

    Arguments and errors are those of `evaluate`. A set stands for a size band, with the sizes of
    its smallest and its largest face. Scores are the stretched ones; none is too low to count.
    """
    images = _images(ground_truth, detections, compatible)
    bands, precision, ap = {}, [], []
    for name in SETS:
        areas = [image.faces[image.sets[name], 2:].prod(1) for image in images]
        sizes = np.sqrt(np.concatenate([np.empty(0), *areas]))
        bands[name] = (float(sizes.min()), float(sizes.max())) if len(sizes) else (0.0, 0.0)
        curve = _curve(images, name, compatible)
        precision.append(interpolate(*curve.rates) if curve.faces else np.full(len(RECALL), -1.0))
        ap.append(_area(*curve.rates) if curve.faces else -1.0)
    none, start = np.empty(0, np.int64), 0
    columns = [(none, none, np.empty((0, 5)), np.empty((0, 4)), none, none, none)]
    for number, image in enumerate(images):
        wanted = image.sets["hard"]
        counted, first = image.counts("hard")
        left_out = ~counted | (compatible and not len(image.faces))
        kinds = np.where(left_out, LEFT_OUT, np.where(image.face < 0, FALSE, DUPLICATE))
        kinds[first] = FOUND
        object_kinds = np.where(wanted, MISSED, LEFT_OUT)
        object_kinds[image.face[first]] = FOUND
        owners = (np.full(len(x), number) for x in (image.found, image.faces))
        targets = np.where(image.face < 0, -1, image.face + start)
        columns.append((*owners, image.found, image.faces, kinds, object_kinds, targets))
        start += len(image.faces)
    owner, object_owner, found, faces, kinds, object_kinds, targets = (
        np.concatenate(x) for x in zip(*columns, strict=True)
    )
    order = np.argsort(-found[:, 4], kind="stable")
    return Details(
        protocol="widerface",
        setting=f"IoU at least {IOU}, hard faces, every detection",
        threshold=IOU,
        band="hard",
        max_detections=max((len(image.found) for image in images), default=0),
        bands=bands,
        classes=["face"],
        image_ids=np.arange(len(images)),
        image_names=[image.file_name for image in images],
        recall=RECALL,
        precision=np.stack(precision)[:, None],
        ap=np.array(ap)[:, None],
        images=owner[order],
        labels=np.zeros(len(found), np.int64),
        boxes=_corners(found)[order],
        scores=found[order, 4],
        kinds=kinds[order].astype(np.uint8),
        targets=targets[order],
        object_images=object_owner,
        object_labels=np.zeros(len(faces), np.int64),
        object_boxes=_corners(faces),
        object_kinds=object_kinds.astype(np.uint8),
    )


@dataclass(frozen=True)
class _Curve:
    """Of a set: how many faces it has; at each threshold detections counted and faces found."""

    faces: int
    counts: NDArray[np.int64]  # [1000, 2]

    @property
    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision, [1000] each, NaN where there is none."""
        counted, found = self.counts.astype(float).T
        with np.errstate(invalid="ignore"):
            return found / np.float64(self.faces), found / counted


def _measure(curve: _Curve, compatible: bool) -> dict[str, Any]:
    recall, precision = curve.rates
    rows = [
        [k + 1, *curve.counts[k].tolist(), *(_number(x[k]) for x in (precision, recall))]
        for k in range(24, 1000, 25)
    ]
    none = None if compatible else -1.0
    ap = _area(recall, precision) if curve.faces else none
    return {"AP": ap, "count_face": curve.faces, "curve": rows}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _curve(images: Sequence[_Image], name: str, compatible: bool) -> _Curve:
    total = np.zeros((len(_THRESHOLDS), 2), np.int64)
    for image in images:
        if not len(image.found) or (compatible and not len(image.faces)):
            continue
        sums = np.zeros((len(image.found) + 1, 2), np.int64)
        sums[1:] = np.cumsum(np.stack(image.counts(name), 1), 0)
        best_after = np.maximum.accumulate(image.found[::-1, 4])  # rising
        total += sums[len(best_after) - np.searchsorted(best_after, _THRESHOLDS, "left")]
    return _Curve(sum(int(image.sets[name].sum()) for image in images), total)


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Under the precision that no higher recall exceeds."""
    best = np.maximum.accumulate(np.nan_to_num(precision)[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best).sum())


def _images(ground_truth: Any, detections: Any, compatible: bool) -> list[_Image]:
    truth, truth_name = _truth(ground_truth)
    found = _detections(detections, truth, truth_name)
    scores = np.concatenate([np.empty(0), *(rows[:, 4] for rows in found.values())])
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    if compatible:
        low, high = min(1, low), max(0, high)
    images = []
    for key, (faces, sets) in truth.items():
        rows = found.get(key, np.empty((0, 5)))
        if high > low:
            rows[:, 4] = (rows[:, 4] - low) / (high - low)
        else:
            rows[:, 4] = -1 if compatible else 1  # the original divides 0 by 0
        if not compatible:
            rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        images.append(_Image(key, faces, sets, rows, _belonging(rows, faces)))
    return images


def _belonging(found: _Rows, faces: _Rows) -> NDArray[np.int64]:
    """[D] index of the first face of greatest IoU, or -1 if that is below the threshold."""
    if not len(faces):
        return np.full(len(found), -1)
    a, b = _corners(found)[:, None], _corners(faces)
    low, high = np.maximum(a[..., :2], b[:, :2]), np.minimum(a[..., 2:], b[:, 2:])
    common = (high - low + 1).clip(0).prod(2)  # [D, G]
    iou = common / (
        (a[..., 2:] - a[..., :2] + 1).prod(-1) + (b[:, 2:] - b[:, :2] + 1).prod(-1) - common
    )
    best = iou.argmax(1)
    return np.where(iou[np.arange(len(found)), best] >= IOU, best, -1)


def _corners(rows: _Rows) -> _Rows:
    """x1 y1 x2 y2 of x y width height."""
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)


_Truth = dict[_Key, tuple[_Rows, dict[str, NDArray[np.bool_]]]]


def _truth(source: Any) -> tuple[_Truth, str]:
    if _is_folder(source):
        entries, where = _read_mat(Path(source)), str(source)
    else:
        content, where = load_json(source, "ground_truth")
        events = convert(content, list[_FaceEvent], where)
        entries = (
            (f"{where}[{i}].images[{k}]", event.event, image)
            for i, event in enumerate(events)
            for k, image in enumerate(event.images)
        )
    truth: _Truth = {}
    for place, event, image in entries:
        if (event, image.name) in truth:
            raise ValueError(f"{place}: image {event}/{image.name} is there twice")
        faces = _rows(image.gt, 4, f"{place}.gt")
        sets = {name: np.zeros(len(faces), bool) for name in SETS}
        for name, mask in sets.items():
            for number in getattr(image, name):
                if not 0 <= number < len(faces) or mask[number]:
                    raise ValueError(
                        f"{place}.{name}: expected different indices of {len(faces)} faces, "
                        f"got {number}"
                    )
                mask[number] = True
        truth[event, image.name] = faces, sets
    return truth, where


def _detections(source: Any, truth: _Truth, truth_name: str) -> dict[_Key, _Rows]:
    if _is_folder(source):
        return {
            key: _read_text(Path(source).joinpath(*key).with_name(f"{key[1]}.txt")) for key in truth
        }
    content, where = load_json(source, "detections")
    found: dict[_Key, _Rows] = {}
    for i, event in enumerate(convert(content, list[_FoundEvent], where)):
        for k, image in enumerate(event.images):
            key, place = (event.event, image.name), f"{where}[{i}].images[{k}]"
            if key not in truth:
                raise ValueError(f"{place}: image {'/'.join(key)} is not in {truth_name}")
            if key in found:
                raise ValueError(f"{place}: image {'/'.join(key)} is there twice")
            found[key] = _rows(image.dt, 5, f"{place}.dt")
    return found


def _is_folder(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).is_dir()


def _rows(rows: Any, columns: int, where: str) -> _Rows:
    numbers = np.array(rows, np.float64).reshape(-1, columns)
    bad = ~np.isfinite(numbers).all(1) | (numbers[:, 2:4] < 0).any(1)
    if bad.any():
        k = int(bad.argmax())
        raise ValueError(
            f"{where}[{k}] must be finite, width and height not negative, got {numbers[k].tolist()}"
        )
    return numbers


def _read_text(path: Path) -> _Rows:
    """Rows x y width height score of one image."""
    lines = path.read_text("utf-8", "surrogateescape").splitlines()
    count = lines[1].strip() if len(lines) > 1 else ""
    found = [(k, line.split()) for k, line in enumerate(lines[2:], 3) if line.strip()]
    if not count.isdecimal() or int(count) != len(found):
        raise ValueError(
            f"{path}: line 2 must be the number of the lines after it, {len(found)}, got {count!r}"
        )
    rows = []
    for k, row in found:
        try:
            x, y, width, height, score = map(float, row)
        except ValueError:
            raise ValueError(f"{path}: line {k} must be x y w h score, got {row!r:.80}") from None
        rows.append((x, y, width, height, score))
    return _rows(rows, 5, f"{path}: rows")


def _read_mat(folder: Path) -> Iterator[tuple[str, str, _Faces]]:
    """Place for messages, event and faces of each image of the benchmark's files."""
    val = folder / "wider_face_val.mat"
    lists = [_cells(val, name) for name in ("event_list", "file_list", "face_bbx_list")]
    lists += [_cells(folder / f"wider_{name}_val.mat", "gt_list") for name in SETS]
    if len({len(x) for x in lists}) > 1:
        raise ValueError(f"{folder}: its files have {[len(x) for x in lists]} events")
    for event, *parts in zip(*lists, strict=True):
        title = str(np.ravel(event)[0])
        images = [np.ravel(part) for part in parts]
        if len({len(x) for x in images}) > 1:
            raise ValueError(f"{folder}: {title} has {[len(x) for x in images]} images")
        for file, boxes, *indices in zip(*images, strict=True):
            try:
                name = str(np.ravel(file)[0])
                numbers = (np.ravel(x).astype(int) - 1 for x in indices)  # Matlab counts from 1
                faces = np.reshape(boxes, (-1, 4)).astype(float).tolist()
            except (ValueError, TypeError, IndexError) as error:
                raise ValueError(
                    f"{folder}: an image of {title} is not readable: {error}"
                ) from None
            sets = dict(zip(SETS, (x.tolist() for x in numbers), strict=True))
            yield f"{folder}: {title}/{name}", title, _Faces(name, faces, **sets)


def _cells(path: Path, name: str) -> NDArray[np.object_]:
    """A list of Matlab's cells."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise ImportError(f'reading {path} needs scipy: pip install "tinyops[wider]"') from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        content = loadmat(path)
    except Exception as error:  # of a broken file it raises what it happens to stumble over
        raise ValueError(f"{path} is no .mat file that scipy reads: {error}") from None
    if name not in content or content[name].dtype != object:
        raise ValueError(f"{path}: expected a list of cells {name}, found none")
    return np.ravel(content[name])
