"""Files of `tinyops detect` in the form that a protocol of evaluation reads.

Images are matched by file name and categories by name; where a file has no names, by their ids.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinyops.cli.detection_file import DetectionFile, read_detections
from tinyops.data.formats import read
from tinyops.data.formats.coco import to_coco
from tinyops.evaluation.tables import load, named, read_ground_truth, read_results, typed
from tinyops.evaluation.visdrone import CLASSES
from tinyops.evaluation.visdrone_rows import folder_of_texts
from tinyops.evaluation.widerface_files import read_truth
from tinyops.inference.formats import match_images


class UnknownImagesError(ValueError):
    """Detections are in images that the ground truth does not have."""


class _Found(NamedTuple):
    category: Any
    bbox: Sequence[float]
    score: float


_Build = Callable[[Mapping[Any, Sequence[_Found]]], Any]  # image -> what was found in it


@dataclass(frozen=True)
class _Form:
    """What detections are matched with, and how they are then written.

    Attributes:
        images: key -> file name.
        categories: name -> what it becomes.
        numbers: category id of a file without names -> what it becomes.
        build: makes what `evaluate` takes; None: `Results` do.
        any_category: any other name stays as it is.
        suffixes: whether file names have suffixes that mean something.
    """

    images: Mapping[Any, str]
    categories: Mapping[str, Any]
    numbers: Mapping[int, Any]
    build: _Build | None = None
    any_category: bool = False
    suffixes: bool = True


def read_inputs(
    protocol: str, truth: Path, detections: Path, ignore_unknown: bool
) -> tuple[Any, Any, int]:
    """What `evaluate` takes for both, and how many images of the detections were left out.

    Args:
        protocol: by name.
        truth: path of the ground truth.
        detections: path of a file of `tinyops detect`, or of what the protocol itself reads, which
            is given back as it is.
        ignore_unknown: leave out images that the ground truth does not have.

    Raises:
        OSError: a file cannot be read.
        UnknownImagesError: the ground truth lacks images, which are not to be left out.
        ValueError: a file is not what it should be, or they do not fit together.
    """
    own = _is_own(protocol, detections)
    if own and protocol in _FORMS:
        if ignore_unknown:
            raise ValueError(
                f"--ignore-unknown-images is not for {protocol}'s own form: {detections}"
            )
        return truth, detections, 0
    if own and not ignore_unknown:
        return read_ground_truth(_coco_content(truth)), read_results(detections), 0
    content, form = _FORMS.get(protocol, _coco)(truth)
    file = read_detections(detections)
    images, unknown = _images(file, form)
    if unknown and not ignore_unknown:
        raise UnknownImagesError(
            f"{detections}: {len(unknown)} images are not in {truth}, the first is {unknown[0]}"
        )
    results = file.results.select(np.isin(file.results.image_ids, list(images)))
    with named(detections, ""):
        categories = {
            number: _category(file, form, number, truth)
            for number in np.unique(results.category_ids).tolist()
        }
    if form.build is None:
        image_ids = _renamed(results.image_ids, images)
        category_ids = _renamed(results.category_ids, categories)
        renamed = replace(results, image_ids=image_ids, category_ids=category_ids)
        return content, renamed, len(unknown)
    found: dict[Any, list[_Found]] = {key: [] for key in images.values()}
    for row in results.entries():
        category = categories[row["category_id"]]
        found[images[row["image_id"]]].append(_Found(category, row["bbox"], row["score"]))
    return content, form.build(found), len(unknown)


def _renamed(ids: NDArray[np.int64], names: Mapping[int, int]) -> NDArray[np.int64]:
    numbers, which = np.unique(ids, return_inverse=True)
    return np.array([names[number] for number in numbers.tolist()], np.int64)[which]


def _is_own(protocol: str, path: Path) -> bool:
    """Whether this is not a file of `tinyops detect`, which is .csv or an object of COCO."""
    if path.is_dir() or path.suffix.lower() == ".csv":
        return path.is_dir()
    with path.open("rb") as file:
        if file.read(1000).lstrip()[:1] != b"{":
            return True
    with named(path, ""):
        return protocol == "tt100k" and "imgs" in load(path, dict)


def _images(file: DetectionFile, form: _Form) -> tuple[dict[int, Any], list[str]]:
    """Id in the file -> key of the ground truth; and what it does not have."""
    if not file.images:
        used = np.unique(file.results.image_ids).tolist()
        unknown = [f"image_id {key}" for key in used if key not in form.images]
        return {key: key for key in used if key in form.images}, unknown
    names = {
        key: name if form.suffixes else str(PurePosixPath(name).with_suffix(""))
        for key, name in file.images.items()
    }
    keys = match_images(
        names.values(), ({"id": key, "file_name": name} for key, name in form.images.items())
    )
    unknown = [file.images[key] for key, name in names.items() if name not in keys]
    return {key: keys[name] for key, name in names.items() if name in keys}, unknown


def _category(file: DetectionFile, form: _Form, number: int, truth: Path) -> Any:
    known: Mapping[Any, Any] = form.categories
    name: Any = file.categories.get(number)
    if name is None:
        known, name = form.numbers, number
    elif form.any_category:
        return name
    if name not in known:
        raise ValueError(f"category {name!r} is not in {truth}")
    return known[name]


def _coco_content(truth: Path) -> Any:
    """What `evaluate` takes for a data set of any format: the path of COCO, or its content."""
    if truth.suffix.lower() == ".json" or not truth.exists():
        return truth
    return to_coco(read(truth))


def _coco(truth: Path) -> tuple[Any, _Form]:
    table = read_ground_truth(_coco_content(truth))
    categories = dict(zip(table.classes, table.class_ids.tolist(), strict=True))
    if len(categories) < len(table.classes):
        raise ValueError(f"{truth}: two categories have the same name")
    images = dict(zip(table.image_ids.tolist(), table.image_names, strict=True))
    return table, _Form(images, categories, {k: k for k in categories.values()})


class _SignImage(msgspec.Struct):
    path: str = ""


class _Signs(msgspec.Struct):
    imgs: dict[str, _SignImage]


def _tt100k(truth: Path) -> tuple[Any, _Form]:
    with named(truth, ""):
        content = load(truth, Any)
        images = {key: x.path or f"{key}.jpg" for key, x in typed(content, _Signs).imgs.items()}

    def build(found: Mapping[Any, Sequence[_Found]]) -> Any:
        return {
            "imgs": {key: {"objects": [_sign(row) for row in rows]} for key, rows in found.items()}
        }

    return content, _Form(images, {}, {}, build, any_category=True)


def _sign(row: _Found) -> dict[str, Any]:
    x, y, width, height = row.bbox
    box = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
    return {"category": row.category, "score": 100 * row.score, "bbox": box}


def _widerface(truth: Path) -> tuple[Any, _Form]:
    faces = read_truth(truth)

    def build(found: Mapping[Any, Sequence[_Found]]) -> Any:
        return [
            {
                "event": event,
                "images": [{"name": name, "dt": [(*x.bbox, x.score) for x in _best_first(rows)]}],
            }
            for (event, name), rows in found.items()
        ]

    images = {key: "/".join(key).removesuffix(".jpg") for key in faces}
    return truth, _Form(images, {"face": 1}, {1: 1}, build, suffixes=False)


class _Named(msgspec.Struct):
    name: str


def _visdrone(truth: Path) -> tuple[Any, _Form]:
    if truth.is_dir():
        names = sorted(path.stem for path in folder_of_texts(truth).glob("*.txt"))
    else:
        with named(truth, ""):
            names = [image.name for image in load(truth, list[_Named])]

    def build(found: Mapping[Any, Sequence[_Found]]) -> Any:
        return [
            {
                "name": name,
                "dt": [(*x.bbox, x.score, x.category, -1, -1) for x in _best_first(rows)],
            }
            for name, rows in found.items()
        ]

    categories = {name: k for k, name in enumerate((*CLASSES, "others"), 1)}
    numbers = {k: k for k in range(len(categories) + 1)}  # 0 are ignored regions
    return truth, _Form({name: name for name in names}, categories, numbers, build, suffixes=False)


def _best_first(rows: Sequence[_Found]) -> list[_Found]:
    return sorted(rows, key=lambda row: -row.score)


_FORMS = {"tt100k": _tt100k, "widerface": _widerface, "visdrone": _visdrone}
