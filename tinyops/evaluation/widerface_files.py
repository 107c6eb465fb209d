"""WIDER FACE's files: ground truth in .mat, detections in a text per image, or both in json."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.tables import in_range, load, named

SETS = ("easy", "medium", "hard")

Key = tuple[str, str]  # event and image
Rows = NDArray[np.float64]
Truth = dict[Key, tuple[Rows, dict[str, NDArray[np.bool_]]]]  # [G, 4] faces; set -> [G]


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


def read_truth(source: Any) -> Truth:
    """Faces of every image; see `tinyops.evaluation.widerface.evaluate`."""
    truth: Truth = {}
    with named(source, "ground_truth"):
        for place, event, image in _entries(source):
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
    return truth


def read_detections(source: Any, truth: Truth) -> dict[Key, Rows]:
    """Detections of some or all images of the ground truth."""
    if _is_folder(source):
        return {key: _read_text(Path(source) / key[0] / f"{key[1]}.txt") for key in truth}
    found: dict[Key, Rows] = {}
    with named(source, "detections"):
        for i, event in enumerate(load(source, list[_FoundEvent])):
            for k, image in enumerate(event.images):
                key, place = (event.event, image.name), f"[{i}].images[{k}]"
                if key not in truth or key in found:
                    wrong = "is there twice" if key in found else "is not in the ground truth"
                    raise ValueError(f"{place}: image {'/'.join(key)} {wrong}")
                found[key] = _rows(image.dt, 5, f"{place}.dt")
    return found


def _entries(source: Any) -> Iterator[tuple[str, str, _Faces]]:
    """Place for messages, event and faces of each image."""
    if _is_folder(source):
        yield from _read_mat(Path(source))
        return
    for i, event in enumerate(load(source, list[_FaceEvent])):
        for k, image in enumerate(event.images):
            yield f"[{i}].images[{k}]", event.event, image


def _is_folder(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).is_dir()


def _rows(rows: Any, columns: int, where: str) -> Rows:
    numbers = np.array(rows, np.float64).reshape(-1, columns)
    bad = ~in_range(numbers).all(1) | (numbers[:, 2:4] < 0).any(1)
    if bad.any():
        k = int(bad.argmax())
        raise ValueError(
            f"{where}[{k}] must be finite and below 1e100, width and height not negative, "
            f"got {numbers[k].tolist()}"
        )
    return numbers


def _read_text(path: Path) -> Rows:
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
    """The benchmark's own files; errors name them within their folder."""
    val = folder / "wider_face_val.mat"
    lists = [_cells(val, name) for name in ("event_list", "file_list", "face_bbx_list")]
    lists += [_cells(folder / f"wider_{name}_val.mat", "gt_list") for name in SETS]
    if len({len(x) for x in lists}) > 1:
        raise ValueError(f"its files have {[len(x) for x in lists]} events")
    for event, *parts in zip(*lists, strict=True):
        title = str(np.ravel(event)[0])
        images = [np.ravel(part) for part in parts]
        if len({len(x) for x in images}) > 1:
            raise ValueError(f"{title} has {[len(x) for x in images]} images")
        for file, boxes, *indices in zip(*images, strict=True):
            try:
                name = str(np.ravel(file)[0])
                numbers = (np.ravel(x).astype(int) - 1 for x in indices)  # Matlab counts from 1
                faces = np.reshape(boxes, (-1, 4)).astype(float).tolist()
            except (ValueError, TypeError, IndexError) as error:
                raise ValueError(f"an image of {title} is not readable: {error}") from None
            sets = dict(zip(SETS, (x.tolist() for x in numbers), strict=True))
            yield f"{title}/{name}", title, _Faces(name, faces, **sets)


def _cells(path: Path, name: str) -> NDArray[np.object_]:
    """A list of Matlab's cells."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise ValueError(f"{path.name} needs the package scipy: pip install scipy") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        content = loadmat(path)
    except Exception as error:  # of a broken file it raises what it happens to stumble over
        raise ValueError(f"{path.name} is no .mat file that scipy reads: {error}") from None
    if name not in content or content[name].dtype != object:
        raise ValueError(f"{path.name}: expected a list of cells {name}, found none")
    return np.ravel(content[name])
