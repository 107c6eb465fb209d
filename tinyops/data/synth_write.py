"""Write TinySea to disk in COCO form."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tinyops._files import umask
from tinyops.data.synth import CLASS_NAMES, Annotation, make_scene


@dataclass(frozen=True)
class Preset:
    """A named set: the splits and their numbers of images, counted on through one seed."""

    splits: tuple[tuple[str, int], ...]
    size: tuple[int, int]  # width, height


PRESETS = {"tinysea-s": Preset((("train", 600), ("val", 150)), (256, 256))}


def write_preset(
    out_dir: str | os.PathLike[str],
    preset: Preset,
    *,
    seed: int = 0,
    classes: int = 1,
    workers: int = 1,
) -> list[Path]:
    """Write every split of a preset; returns the json files. See `write_tinysea`."""
    taken = [path for name, _ in preset.splits for path in _targets(out_dir, name)]
    _refuse_existing(taken)
    written, first = [], 0
    for split, images in preset.splits:
        written.append(
            write_tinysea(
                out_dir,
                images=images,
                size=preset.size,
                seed=seed,
                split=split,
                first=first,
                classes=classes,
                workers=workers,
            )
        )
        first += images
    return written


def write_tinysea(
    out_dir: str | os.PathLike[str],
    *,
    images: int,
    size: tuple[int, int] = (640, 512),
    seed: int = 0,
    split: str = "train",
    first: int = 0,
    classes: int = 1,
    density: float = 12.0,
    workers: int = 1,
) -> Path:
    """Write pictures `first` .. `first + images - 1` of the set `seed`.

    `<out_dir>/<split>/` gets the PNG files (lossless: JPEG's traces are part of the camera) and
    `<out_dir>/<split>.json` the COCO annotations with TinyPerson's fields. The folder appears when
    all pictures are there, the json after it; an interrupted run leaves neither.

    Args:
        out_dir: made if missing.
        images: 1 or more.
        size: width and height in pixels.
        seed: names the set.
        split: name of the folder and the json.
        first: index of the first picture.
        classes: 1 or 3, see `make_scene`.
        density: mean number of objects in 256x256 px.
        workers: threads that draw; the files do not depend on it.

    Returns:
        The path of the json.

    Raises:
        FileExistsError: the folder or the json exists.
        ValueError: an argument is out of range.
    """
    if images < 1 or workers < 1:
        raise ValueError(f"images and workers must be positive, got {images} and {workers}")
    folder, table = _targets(out_dir, split)
    _refuse_existing([folder, table])
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{split}-", dir=folder.parent))
    try:
        partial.chmod(0o777 & ~umask())

        def draw(index: int) -> list[Annotation]:
            image, annotations = make_scene(seed, index, size, classes=classes, density=density)
            # Sensor noise does not compress: more effort than level 1 costs time for 3 % of size.
            Image.fromarray(image).save(partial / _name(index), compress_level=1)
            return annotations

        indices = range(first, first + images)
        with ThreadPoolExecutor(workers) as pool:
            drawn = pool.map(draw, indices) if workers > 1 else map(draw, indices)
            content = _coco(indices, drawn, size, classes)
        _write_json(content, partial / table.name)
        os.replace(partial, folder)
        os.replace(folder / table.name, table)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return table


def _coco(
    indices: range, drawn: Iterable[list[Annotation]], size: tuple[int, int], classes: int
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[Annotation] = []
    for index, found in zip(indices, drawn, strict=True):
        image_id = len(images) + 1
        file = {"id": image_id, "file_name": _name(index), "width": size[0], "height": size[1]}
        images.append(file)
        for entry in found:  # ids from 1: evaluators take id 0 for "no match"
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASS_NAMES[classes], 1)]
    return {
        "type": "instance",
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _targets(out_dir: str | os.PathLike[str], split: str) -> tuple[Path, Path]:
    if not split or split.startswith(".") or Path(split).name != split:
        raise ValueError(f"split must be a plain name, got {split!r}")
    return Path(out_dir) / split, Path(out_dir) / f"{split}.json"


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another folder or remove it")


def _write_json(content: dict[str, Any], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
