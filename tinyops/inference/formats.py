"""Results as COCO json, CSV and GeoJSON.

Coordinates are rounded to 0.001 px. Scores are the shortest decimals that are the same float32, so
that order and ties among them stay. Every writer takes its results one at a time and keeps none,
so that they may come from a generator; the file appears, or replaces the old one, when it is whole.
Equal results give equal bytes. Text is UTF-8; a file name that is no text (Linux allows that)
keeps its bytes in CSV and is escaped in json, and both are read back as the same name.

All writers raise ValueError, naming the image, if a box or a score is not finite, if a box has a
negative size, or if a label is below 1 or has no name although `categories` are given.
"""

import csv
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from tinyops._files import replacing
from tinyops.inference.types import Found, Georeference

COLUMNS = ("image", "label", "name", "score", "x1", "y1", "x2", "y2")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

Object = tuple[int, float, list[float]]  # label, score, x1 y1 x2 y2


def write_coco(
    results: Iterable[Found],
    path: str | os.PathLike[str],
    *,
    categories: Sequence[str] | None = None,
    image_ids: Mapping[str, int] | None = None,
) -> None:
    """Write one COCO json with `images`, `categories` and `annotations`, each of which has a score.

    pycocotools' `COCO(path)` and `tinyops eval` read it. An image without objects is in `images`.

    Args:
        results: any number.
        path: of the file.
        categories: names of the labels, which are the category ids; None: those of the results,
            and where none has names, the numbers.
        image_ids: name of a result -> id, see `match_images`; None: 1, 2, ... in their order.

    Raises:
        ValueError: as the module says; and if results differ in their categories, or `image_ids`
            lacks a name.
    """
    names = None if categories is None else tuple(categories)
    images: list[str] = []
    largest = 0

    def annotations() -> Iterator[dict[str, Any]]:
        nonlocal names, largest
        number = itertools.count(1)
        for result in results:
            if categories is None and result.categories is not None:
                if names not in (None, result.categories):
                    raise ValueError(
                        f"{result.name}: expected the categories of the results before it, "
                        f"{names}, got {result.categories}"
                    )
                names = result.categories
            image_id = len(images) + 1 if image_ids is None else _id(image_ids, result)
            size = {"width": result.width, "height": result.height}
            images.append(_encode({"id": image_id, "file_name": result.name, **size}))
            for label, score, corners in _objects(result, names):
                largest = max(largest, label)
                box = _bbox(corners)
                yield {
                    "id": next(number),
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": box,
                    "area": round(box[2] * box[3], 6),
                    "iscrowd": 0,
                    "score": score,
                }

    with text_file(path, "backslashreplace") as file:  # of a lone surrogate: the escape of JSON
        file.write('{"annotations":')  # first, so that they need not be kept
        _write_list(file, map(_encode, annotations()))
        file.write(',\n"images":')
        _write_list(file, images)
        file.write(',\n"categories":')
        names = names or tuple(str(label) for label in range(1, largest + 1))
        _write_list(file, (_encode({"id": k, "name": name}) for k, name in enumerate(names, 1)))
        file.write("}\n")


def write_coco_results(
    results: Iterable[Found],
    path: str | os.PathLike[str],
    image_ids: Mapping[str, int],
    category_ids: Sequence[int] | None = None,
) -> None:
    """Write a list of COCO results, as pycocotools' `loadRes` and servers of benchmarks want it.

    Args:
        results: any number; images without objects leave no trace.
        path: of the file.
        image_ids: name of a result -> id of the benchmark, see `match_images`.
        category_ids: of the labels 1, 2, ...; None: the labels.

    Raises:
        ValueError: as the module says; and if an id is missing.
    """

    def entries() -> Iterator[str]:
        for result in results:
            image_id = _id(image_ids, result)
            for label, score, corners in _objects(result, category_ids):
                category_id = label if category_ids is None else category_ids[label - 1]
                entry = {"image_id": image_id, "category_id": category_id}
                yield _encode({**entry, "bbox": _bbox(corners), "score": score})

    with text_file(path) as file:
        _write_list(file, entries())
        file.write("\n")


def write_csv(results: Iterable[Found], path: str | os.PathLike[str]) -> None:
    """Write a line per object (RFC 4180): image, label, name, score, x1, y1, x2, y2 in pixels.

    The name is empty where it is unknown. Images without objects leave no trace.
    """
    with text_file(path, "surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for result in results:
            for label, score, corners in _objects(result):
                writer.writerow([result.name, label, _name(result, label), score, *corners])


def write_geojson(
    results: Iterable[Found], path: str | os.PathLike[str], *, pixels: bool = False
) -> None:
    """Write a FeatureCollection (RFC 7946): a polygon per object.

    Georeferenced results are written in the coordinates of their map, rounded to 0.001 px or finer.
    The member `crs` names the system, as GDAL and QGIS read it: RFC 7946 has only longitude and
    latitude of WGS 84, but a projection to them would be no rectangle any more. Other results are
    written in pixels, y down, without `crs`. Rings are closed and counter-clockwise in axes of
    x right and y up. Properties of a feature: image, label, name (null: unknown), score, box
    (x1 y1 x2 y2 in pixels) and coordinates ("map" or "pixels, y down").

    Args:
        results: any number.
        path: of the file.
        pixels: write pixels in any case.

    Raises:
        ValueError: as the module says; and if the results are not all in one system.
    """
    results = iter(results)
    first = next(results, None)
    crs = None if first is None or pixels else _crs(first)

    def features(results: Iterable[Found]) -> Iterator[str]:
        for result in results:
            if not pixels and _crs(result) != crs:
                raise ValueError(
                    f"{result.name}: expected the coordinates of the results before it, "
                    f"{crs or 'pixels'}, got {_crs(result) or 'pixels'}"
                )
            place = None if pixels else result.georeference
            for label, score, corners in _objects(result):
                properties = {
                    "image": result.name,
                    "label": label,
                    "name": _name(result, label),
                    "score": score,
                    "box": corners,
                    "coordinates": "pixels, y down" if place is None else "map",
                }
                geometry = {"type": "Polygon", "coordinates": [_ring(corners, place)]}
                yield _encode({"type": "Feature", "geometry": geometry, "properties": properties})

    with text_file(path, "backslashreplace") as file:
        file.write('{"type":"FeatureCollection",')
        if crs:
            member = {"type": "name", "properties": {"name": _crs_name(crs)}}
            file.write(f'"crs":{_encode(member)},')
        file.write('\n"features":')
        _write_list(file, features(itertools.chain([] if first is None else [first], results)))
        file.write("}\n")


def write_results(results: Iterable[Found], path: str | os.PathLike[str]) -> None:
    """`write_coco`, `write_csv` or `write_geojson` for .json, .csv or .geojson.

    Raises:
        ValueError: as these do, and for any other suffix.
    """
    writers = {".json": write_coco, ".csv": write_csv, ".geojson": write_geojson}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise ValueError(f"path must end in {', '.join(writers)}, got {str(path)!r}")
    writers[suffix](results, path)


def match_images(names: Iterable[str], images: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The images of a data set that these names mean.

    A name means the `file_name` that it equals or ends in (after a slash; the longest wins), and
    otherwise the only `file_name` with its last part: data/beach/1.jpg means beach/1.jpg first.

    Args:
        names: of results, each once.
        images: COCO's, with id and file_name.

    Returns:
        name -> id, without those that mean no image.

    Raises:
        ValueError: a name means several images, or several names mean the same.
    """
    whole: dict[str, list[int]] = {}
    by_base: dict[str, list[int]] = {}
    for image in images:
        whole.setdefault(image["file_name"], []).append(image["id"])
        by_base.setdefault(image["file_name"].rpartition("/")[2], []).append(image["id"])
    found: dict[str, int] = {}
    owners: dict[int, str] = {}
    for name in names:
        tails = [name, *(name[match.end() :] for match in re.finditer("/+", name))]
        exact = next((whole[tail] for tail in tails if tail in whole), None)
        same = exact or by_base.get(tails[-1], [])
        if len(same) > 1:
            raise ValueError(f"{name} may be any of {len(same)} images of this file name")
        for image_id in same:
            if image_id in owners:
                raise ValueError(f"{owners[image_id]} and {name} mean the same image")
            owners[image_id] = name
            found[name] = image_id
    return found


@contextmanager
def text_file(path: str | os.PathLike[str], errors: str = "strict") -> Iterator[TextIO]:
    """A file of UTF-8 that appears when it is whole; `errors`: what becomes of lone surrogates."""
    with (
        replacing(Path(path)) as temporary,
        temporary.open("w", encoding="utf-8", errors=errors, newline="") as file,
    ):
        yield file


def _write_list(file: TextIO, items: Iterable[str]) -> None:
    file.write("[")
    for k, item in enumerate(items):
        file.write(",\n" if k else "\n")
        file.write(item)
    file.write("]")


def _objects(result: Found, known: Sequence[Any] | None = None) -> Iterator[Object]:
    """The objects, checked and rounded; `known` has an entry for every label, None: any number."""
    boxes, scores, labels = (result[name].detach().cpu() for name in ("boxes", "scores", "labels"))
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise ValueError(f"{result.name}: boxes and scores must be finite")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"{result.name}: boxes must be x1 y1 x2 y2 with x1 <= x2 and y1 <= y2")
    known = result.categories if known is None else known
    high = math.inf if known is None else len(known)
    wrong = labels[(labels < 1) | (labels > high)]
    if len(wrong):
        raise ValueError(f"{result.name}: labels must be in 1..{high}, got {wrong[0].item()}")
    corners = ((boxes.double() * 1000).round() / 1000 + 0.0).tolist()  # 0.0: no -0.0
    decimals = map(float, scores.float().numpy().astype(str))
    yield from zip(labels.tolist(), decimals, corners, strict=True)


def _bbox(corners: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = corners
    return [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]


def _id(image_ids: Mapping[str, int], result: Found) -> int:
    if result.name not in image_ids:
        raise ValueError(f"{result.name}: expected an id in image_ids, found none")
    return image_ids[result.name]


def _name(result: Found, label: int) -> str | None:
    return None if result.categories is None else result.categories[label - 1]


def _crs(result: Found) -> str | None:
    return None if result.georeference is None else result.georeference.crs


def _crs_name(crs: str) -> str:
    if crs == "EPSG:4326":  # whose axes are latitude and longitude, in this order
        return "urn:ogc:def:crs:OGC:1.3:CRS84"
    return re.sub(r"^EPSG:(\d+)$", r"urn:ogc:def:crs:EPSG::\1", crs)


def _ring(corners: Sequence[float], place: Georeference | None) -> list[list[float]]:
    x1, y1, x2, y2 = corners
    ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
    if place is None:
        return ring
    a, b, _, d, e, _ = place.affine
    if a * e < b * d:  # the map mirrors, as it does where its y points up
        ring.reverse()
    pixel = min(math.hypot(a, d), math.hypot(b, e))
    decimals = max(0, math.ceil(3 - math.log10(pixel)))
    points = place.to_map(torch.tensor(ring, dtype=torch.float64)).tolist()
    return [[round(value, decimals) for value in point] for point in points]
