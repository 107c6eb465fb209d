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
- Scores are stretched from min(1, the least) to max(0, the greatest), which are not their ends if
  all are above 1 or all below 0. If both are equal, as with one detection, none counts.
- Detections that are not sorted by score are not sorted here either: one of a low score counts if
  one of a high score follows.
- AP and recall of a set without faces are None (NaN there).

`compatible=False`: such detections are false alarms; scores are stretched from the least to the
greatest (equal ones become 1); they are sorted; AP of a set without faces is -1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.curves import area, interpolate
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT, MISSED, Details
from tinyops.evaluation.matcher import RECALL
from tinyops.evaluation.widerface_files import SETS, Key, Rows, read_detections, read_truth

IOU = 0.5
_THRESHOLDS = 1 - np.arange(1, 1001) / 1000


@dataclass(frozen=True)
class _Image:
    """One image: faces [G, 4] and detections [D, 5] (x y w h score), and how they match.

    Attributes:
        sets: name -> [G] bool, the faces that count.
        face: [D] index of the face that a detection belongs to, or -1.
    """

    key: Key
    faces: Rows
    sets: Mapping[str, NDArray[np.bool_]]
    found: Rows
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
        OSError: a file cannot be read.
        ValueError: naming the file or argument, field and index of what is wrong; or that scipy,
            which reads .mat, is not installed.
    """
    images = _images(ground_truth, detections, compatible)
    curves = {name: _curve(images, name, compatible) for name in SETS}
    return {name: _measure(curve, compatible) for name, curve in curves.items()}


def table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row, AP of the sets in percent; None where there is no face."""
    ap = {name: result[name]["AP"] for name in SETS}
    return [{k: None if v is None or v < 0 else 100 * v for k, v in ap.items()}]


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
        ap.append(area(*curve.rates) if curve.faces else -1.0)
    none, start = np.empty(0, np.int64), 0
    columns: list[tuple[Any, ...]] = [
        (none, none, np.empty((0, 5)), np.empty((0, 4)), none, none, none)
    ]
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
    ap = area(recall, precision) if curve.faces else none
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


def _images(ground_truth: Any, detections: Any, compatible: bool) -> list[_Image]:
    truth = read_truth(ground_truth)
    found = read_detections(detections, truth)
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


def _belonging(found: Rows, faces: Rows) -> NDArray[np.int64]:
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


def _corners(rows: Rows) -> Rows:
    """x1 y1 x2 y2 of x y width height."""
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
