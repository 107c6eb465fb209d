"""Tsinghua-Tencent 100K: accuracy, recall and F1 of traffic signs by size.

The rules are those of `eval_annos` of the data set's own code. A detection and an object of one
class match where their IoU is above the threshold. The pairs are taken by falling IoU, one to one;
the score plays no part, but for `minscore`, below which a detection is left out. Then an object
whose longer side is outside the size leaves with its detection, and so does an unmatched detection
whose longer side is outside. What is left is right, wrong or missed, over all classes together:
accuracy = right / (right + wrong), recall = right / (right + missed), F1 their harmonic mean.

Quirks that `compatible=True` reproduces:

- Only images that the detections name are measured, so that one they leave out costs nothing
  (if they name none at all, all are).
- Accuracy and recall are 1 where nothing could be wrong.

`compatible=False`: images that the detections leave out are missed, as far as they are in a folder
(train, test, other) in which the detections name an image. A recall is -1 where there is no object,
and so is an accuracy where there is neither object nor detection; it is 0 where there are objects
but no detections.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.curves import interpolate
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT, MISSED, Details
from tinyops.evaluation.matcher import RECALL
from tinyops.evaluation.tables import in_range, load, named, typed

SIZES: Mapping[str, tuple[float, float]] = {  # of the longer side in pixels, the upper one excluded
    "small": (0, 32),
    "medium": (32, 96),
    "large": (96, 400),
    "overall": (0, 400),
}
IOU_THRESHOLDS = (0.5, 0.75)
MIN_SCORES = (0, 40, 50, 70)  # of 100
# The classes of at least 100 signs, which the published tables measure.
_TYPE45 = """
    i2 i4 i5 il100 il60 il80 io ip p10 p11 p12 p19 p23 p26 p27 p3 p5 p6 pg ph4 ph4.5 ph5 pl100
    pl120 pl20 pl30 pl40 pl5 pl50 pl60 pl70 pl80 pm20 pm30 pm55 pn pne po pr40 w13 w32 w55 w57
    w59 wo
"""
TYPE45 = frozenset(_TYPE45.split())
TYPES: Mapping[str, Collection[str] | None] = {"type45": TYPE45, "all": None}


class _Box(msgspec.Struct):
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class _Object(msgspec.Struct):
    bbox: _Box
    category: str
    score: float = 1e9  # an object without a score stays at any `minscore`


class _Image(msgspec.Struct):
    objects: list[_Object]
    path: str = ""


@dataclass(frozen=True)
class _Objects:
    """Of all images, one after the other."""

    images: NDArray[np.int64]  # [K]
    boxes: NDArray[np.float64]  # [K, 4]
    labels: NDArray[np.int64]  # [K]
    scores: NDArray[np.float64]  # [K]
    sides: NDArray[np.float64]  # [K] the longer one of each

    def sized(self, size: str) -> NDArray[np.bool_]:
        low, high = SIZES[size]
        mask: NDArray[np.bool_] = (self.sides >= low) & (self.sides < high)
        return mask


@dataclass(frozen=True)
class _Outcome:
    """Masks over the detections, and one over the objects."""

    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    missed: NDArray[np.bool_]


def evaluate(
    ground_truth: Any,
    detections: Any,
    *,
    compatible: bool = True,
    threads: int | None = None,
    min_score: float = 40,
) -> dict[str, Any]:
    """Accuracy, recall, F1 and their counts.

    Args:
        ground_truth: path or content of annotations.json: `imgs`: {id: {path, objects: [{bbox:
            {xmin, ymin, xmax, ymax} in pixels, category}]}}.
        detections: likewise, with a `score` in 0..100 for each object; the path may be left out.
        compatible: with the quirks of the original, see above.
        threads: one is used.
        min_score: of the headline; 0, 40, 50 and 70 are measured in any case.

    Returns:
        "iou0.50_minscore40_small_type45" and so on for each IoU, least score, size and choice of
        classes (type45: the 45 of the published tables; all): accuracy, recall, F1, right, wrong,
        miss. With "_matchsameFalse": accuracy and recall if a detection may take an object of
        another class, both of which are then wrong.
        "per_class_iou0.50_minscore40": accuracy and recall of each class with an object.

    Raises:
        OSError: a file cannot be read.
        ValueError: naming the file or argument, field and index of what is wrong.
    """
    scene = _Scene(ground_truth, detections, compatible)
    result: dict[str, Any] = {}
    for iou, score in itertools.product(IOU_THRESHOLDS, sorted({*MIN_SCORES, min_score})):
        targets = scene.targets(iou, score)
        for size, types in itertools.product(SIZES, TYPES):
            outcome = scene.outcome(targets, score, size, scene.chosen(TYPES[types]))
            result[_key(iou, score, size, types)] = _measures(outcome, compatible)
    iou, classes = IOU_THRESHOLDS[0], scene.chosen(TYPE45)
    outcome = scene.outcome(scene.targets(iou, min_score, classes), min_score, "overall", classes)
    key = _key(iou, min_score, "overall", "type45") + "_matchsameFalse"
    result[key] = _rates(_measures(outcome, compatible))
    targets, by_class = scene.targets(iou, min_score), {}
    for label in np.unique(scene.truth.labels).tolist():
        outcome = scene.outcome(targets, min_score, "overall", scene.numbers == label)
        by_class[scene.classes[label]] = _rates(_measures(outcome, compatible))
    result[f"per_class_iou{iou:.2f}_minscore{min_score:g}"] = by_class
    return result


def table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each size, in percent, of the 45 classes, at IoU 0.5 and the headline's score."""
    (by_class,) = (key for key in result if key.startswith("per_class_"))
    start = by_class.removeprefix("per_class_")
    rows = []
    for size in SIZES:
        measures = result[f"{start}_{size}_type45"]
        rates = {key: 100 * measures[key] for key in ("accuracy", "recall", "F1")}
        rows.append(
            {"size": size, "classes": "45", **{k: v if v >= 0 else None for k, v in rates.items()}}
        )
    return rows


def details(
    ground_truth: Any,
    detections: Any,
    *,
    compatible: bool = True,
    threads: int | None = None,
    min_score: float = 40,
) -> Details:
    """Curves over 101 least scores, and what became of each detection and object at `min_score`.

    Arguments and errors are those of `evaluate`. The sizes are limits of the longer side; all
    classes are there.
    """
    scene = _Scene(ground_truth, detections, compatible)
    truth, found, iou = scene.truth, scene.found, IOU_THRESHOLDS[0]
    precision = _curves(scene)
    targets = scene.targets(iou, min_score)
    outcome = scene.outcome(targets, min_score, "overall", np.ones(len(scene.classes), bool))
    kinds = np.where(outcome.right, FOUND, np.where(outcome.wrong, FALSE, LEFT_OUT))
    _, objects, indices = (x[::-1] for x in scene.pairs)  # the greatest IoU last, so that it stays
    fit = (truth.labels[objects] == found.labels[indices]) & outcome.wrong[indices]
    kinds[indices[fit]], targets[indices[fit]] = DUPLICATE, objects[fit]
    object_kinds = np.where(truth.sized("overall"), FOUND, LEFT_OUT)
    object_kinds[outcome.missed] = MISSED
    order = np.lexsort((-found.scores, found.labels))
    return Details(
        protocol="tt100k",
        setting=f"IoU above {iou}, score at least {min_score:g} of 100, all sizes and classes",
        threshold=iou,
        band="overall",
        max_detections=int(np.bincount(found.images).max(initial=0)),
        bands=SIZES,
        classes=scene.classes,
        image_ids=np.arange(len(scene.names)),
        image_names=scene.paths,
        recall=RECALL,
        precision=precision,
        ap=np.where(precision[..., 0] < 0, -1, precision.mean(2)),
        images=found.images[order],
        labels=found.labels[order],
        boxes=found.boxes[order],
        scores=found.scores[order],
        kinds=kinds[order].astype(np.uint8),
        targets=targets[order],
        object_images=truth.images,
        object_labels=truth.labels,
        object_boxes=truth.boxes,
        object_kinds=object_kinds.astype(np.uint8),
    )


def _curves(scene: "_Scene") -> NDArray[np.float64]:
    """[sizes, classes, 101] precision over recall; -1 where there is no object."""
    count = len(scene.classes)
    scores = scene.found.scores if len(scene.found.scores) else np.zeros(1)
    levels = np.quantile(scores, np.linspace(1, 0, 101), method="lower")
    sums = np.zeros((len(SIZES), 3, count, len(levels)))  # right, wrong, missed
    for k, score in enumerate(levels.tolist()):
        targets = scene.targets(IOU_THRESHOLDS[0], score)
        for row, size in zip(sums, SIZES, strict=True):
            outcome = scene.outcome(targets, score, size, np.ones(count, bool))
            row[0, :, k] = np.bincount(scene.found.labels[outcome.right], minlength=count)
            row[1, :, k] = np.bincount(scene.found.labels[outcome.wrong], minlength=count)
            row[2, :, k] = np.bincount(scene.truth.labels[outcome.missed], minlength=count)
    precision = np.full((len(SIZES), count, len(RECALL)), -1.0)
    for cell in np.argwhere((sums[:, 0] + sums[:, 2])[..., 0] > 0):
        right, wrong, missed = sums[cell[0], :, cell[1]]
        with np.errstate(invalid="ignore"):
            rates = right / (right + missed), right / (right + wrong)
        precision[tuple(cell)] = interpolate(*rates)
    return precision


def _key(iou: float, min_score: float, size: str, types: str) -> str:
    return f"iou{iou:.2f}_minscore{min_score:g}_{size}_{types}"


def _rates(measures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: measures[key] for key in ("accuracy", "recall")}


def _measures(outcome: _Outcome, compatible: bool) -> dict[str, Any]:
    masks = (outcome.right, outcome.wrong, outcome.missed)
    right, wrong, missed = (int(mask.sum()) for mask in masks)
    nothing = 1.0 if compatible else -1.0
    recall = right / (right + missed) if right + missed else nothing
    if right + wrong:
        accuracy = right / (right + wrong)
    else:
        accuracy = 0.0 if missed and not compatible else nothing
    both = accuracy + recall
    f1 = -1.0 if min(accuracy, recall) < 0 else 2 * accuracy * recall / both if both else 0.0
    counts = {"right": right, "wrong": wrong, "miss": missed}
    return {"accuracy": accuracy, "recall": recall, "F1": f1, **counts}


class _Scene:
    """The objects and detections of the images that are measured, and which pairs overlap."""

    def __init__(self, ground_truth: Any, detections: Any, compatible: bool) -> None:
        truth = _images(ground_truth, "ground_truth")
        found = _images(detections, "detections")
        with named(detections, "detections"):
            if unknown := [name for name in found if name not in truth]:
                raise ValueError(f"imgs[{unknown[0]!r}] is not in the ground truth")
        if compatible:
            measured = set(found)
        else:
            folders = {_folder(truth[name]) for name in found}
            measured = {name for name, image in truth.items() if _folder(image) in folders}
        self.names = [name for name in truth if name in measured or not found]
        self.paths = [truth[name].path for name in self.names]
        labels: dict[str, int] = {}
        with named(ground_truth, "ground_truth"):
            self.truth = _flat(self.names, truth, labels)
        with named(detections, "detections"):
            self.found = _flat(self.names, found, labels)
        self.classes = list(labels)
        self.numbers = np.arange(len(labels))
        self.pairs = _overlaps(len(self.names), self.truth, self.found)

    def chosen(self, names: Collection[str] | None) -> NDArray[np.bool_]:
        """[C] which classes these are; None: all."""
        return np.array([names is None or name in names for name in self.classes], bool)

    def targets(
        self, iou: float, min_score: float, mixed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Of each detection the object that it takes, or -1.

        Args:
            iou: which they exceed, 0.5 or more.
            min_score: below which a detection takes none.
            mixed: [C] classes in which a detection may take an object of another class; None:
                only equal classes match.
        """
        overlaps, objects, indices = self.pairs
        classes = self.truth.labels[objects], self.found.labels[indices]
        fit = classes[0] == classes[1] if mixed is None else mixed[classes[0]] & mixed[classes[1]]
        fit &= (overlaps > iou) & (self.found.scores[indices] >= min_score)
        targets = [-1] * len(self.found.images)
        free = [True] * len(self.truth.images)
        for g, d in zip(objects[fit].tolist(), indices[fit].tolist(), strict=True):
            if free[g] and targets[d] < 0:
                targets[d], free[g] = g, False
        return np.array(targets, int)

    def outcome(
        self,
        targets: NDArray[np.int64],
        min_score: float,
        size: str,
        classes: NDArray[np.bool_],
    ) -> _Outcome:
        """Of objects and detections of a size and some of the classes [C]."""
        wanted = self.truth.sized(size) & classes[self.truth.labels]
        counted = self.found.sized(size) & classes[self.found.labels]
        taking = np.append(wanted, False)[targets]
        same = np.append(self.truth.labels, -1)[targets] == self.found.labels
        missed = wanted.copy()
        missed[targets[taking & same]] = False
        free = counted & (targets < 0) & (self.found.scores >= min_score)
        return _Outcome(taking & same, free | (taking & ~same), missed)


def _folder(image: _Image) -> str:
    return image.path.partition("/")[0]


def _images(source: Any, argument: str) -> dict[str, _Image]:
    images = {}
    with named(source, argument):
        content = load(source, Any)
        entries = content.get("imgs") if isinstance(content, Mapping) else None
        if not isinstance(entries, Mapping):
            raise ValueError("expected an object with imgs, which is one by image id")
        for key, entry in entries.items():
            with named(f"imgs[{key!r}]", ""):
                images[str(key)] = typed(entry, _Image)
    return images


def _flat(names: Sequence[str], images: Mapping[str, _Image], labels: dict[str, int]) -> _Objects:
    """The objects of the images of these names; new classes are added to `labels`."""
    owners, kinds, rows = [], [], []
    for number, name in enumerate(names):
        for k, entry in enumerate(images[name].objects if name in images else ()):
            box = entry.bbox
            corners = (box.xmin, box.ymin, box.xmax, box.ymax)
            place = f"imgs[{name!r}]: objects[{k}]"
            if not in_range(np.array(corners)).all() or box.xmax < box.xmin or box.ymax < box.ymin:
                raise ValueError(
                    f"{place}.bbox must be finite and below 1e100, with xmin <= xmax and "
                    f"ymin <= ymax, got {corners}"
                )
            if not math.isfinite(entry.score):
                raise ValueError(f"{place}.score must be finite, got {entry.score}")
            owners.append(number)
            kinds.append(labels.setdefault(entry.category, len(labels)))
            rows.append((*corners, entry.score))
    numbers = np.array(rows, float).reshape(-1, 5)
    sides = (numbers[:, 2:4] - numbers[:, :2]).max(1)
    return _Objects(
        np.array(owners, int), numbers[:, :4], np.array(kinds, int), numbers[:, 4], sides
    )


def _overlaps(
    images: int, truth: _Objects, found: _Objects
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """IoU, object and detection of the pairs in one image above the least threshold.

    They come by falling IoU; of equal ones the lower object, then the lower detection first.
    """
    of_truth, of_found = (np.searchsorted(x.images, range(images + 1)) for x in (truth, found))
    empty = np.empty(0, int)
    parts: list[tuple[Any, ...]] = [(np.empty(0), empty, empty)]
    for k in range(images):
        g, d = slice(*of_truth[k : k + 2]), slice(*of_found[k : k + 2])
        iou = _iou(truth.boxes[g], found.boxes[d])
        rows, columns = np.nonzero(iou > IOU_THRESHOLDS[0])
        parts.append((iou[rows, columns], rows + g.start, columns + d.start))
    ious, objects, indices = (np.concatenate(x) for x in zip(*parts, strict=True))
    order = np.argsort(-ious, kind="stable")
    return ious[order], objects[order], indices[order]


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """[A, B]; 0 where both boxes have no area."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
