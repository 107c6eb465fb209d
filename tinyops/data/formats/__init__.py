"""Readers and writers of data sets: one file per format, one type for all."""

import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import msgspec

from tinyops._files import new_folder
from tinyops.data.formats import coco, tt100k, visdrone, voc, widerface, yolo
from tinyops.data.formats.common import file_names
from tinyops.data.types import AnnotatedSet

AnyPath = str | os.PathLike[str]
Format = Literal["coco", "tt100k", "visdrone", "voc", "widerface", "yolo"]
MODULES: dict[str, Any] = {
    "coco": coco,
    "tt100k": tt100k,
    "visdrone": visdrone,
    "voc": voc,
    "widerface": widerface,
    "yolo": yolo,
}
# What of them `recognise` looks for.
FORMATS = {
    "coco": "a .json with images and annotations (or a folder with one json)",
    "tt100k": "a .json with imgs, or its folder",
    "visdrone": "a folder with annotations/*.txt",
    "voc": "a folder with Annotations/*.xml",
    "widerface": "wider_face_*_bbx_gt.txt, a .mat, or a folder with wider_face_split",
    "yolo": "data.yaml, classes.txt, or a folder with one of them",
}


def read(
    path: AnyPath,
    format: str | None = None,
    images: AnyPath | None = None,
    split: str | None = None,
    *,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """Read and check a data set.

    Args:
        path: a file or a folder; the docstring of each module in `tinyops.data.formats` says which.
        format: a name in `FORMATS`; None: what lies at the path tells.
        images: folder that names of images are relative to. None: where the format has it. COCO
            says nothing of it: then the set has no folder, and no image is looked for.
        split: such as "train", where the path has several; None: the only one.
        drop_empty_boxes: leave out boxes without area instead of refusing them.

    Raises:
        FileNotFoundError: a file or an image does not exist.
        OSError: an image whose size is needed cannot be read.
        ValueError: the first entry that is not what it should be: file, place, field and why.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a data set, found nothing")
    if format is None:
        format, path = recognise(path)
    data: AnnotatedSet = _module(format).read(
        path,
        images=None if images is None else Path(images),
        split=split,
        drop_empty_boxes=drop_empty_boxes,
    )
    if data.folder is not None:
        missing = [path for path in map(data.path, data.images) if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} image files are missing, the first is {missing[0]}"
            )
    return data


def write(
    data: AnnotatedSet,
    path: AnyPath,
    format: str,
    *,
    split: str = "train",
    images: Literal["none", "copy", "link"] = "none",
) -> list[str]:
    """Write a data set; it is there when it is complete, or not at all.

    Args:
        data: boxes are written as exactly as the format has numbers, see its module.
        path: of the new folder, or of the new .json of COCO.
        format: a name in `FORMATS`.
        split: what a format that names its splits calls this one.
        images: "copy" or "link" puts the images where the format has them: in a folder of the name
            of COCO's json, else inside the new folder. "link" makes symbolic links.

    Returns:
        A line for each kind of thing that the format has no place for, with how often it is there.

    Raises:
        FileExistsError: something is at the path.
        ValueError: the set is not one that the format can hold, and why; there are no images to
            copy or link.
    """
    path, module = Path(path), _module(format)
    if not re.fullmatch(r"[\w-]+", split):
        raise ValueError(f"split must be a plain name such as train, got {split!r}")
    names = {} if images == "none" else {data.path(image): image.file_name for image in data.images}
    if format == "coco":
        if path.suffix != ".json":
            raise ValueError(f"COCO is a .json, got the name {path}")
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        if names:
            file_names(data, "COCO", stems=False, tiles=True)
        with new_folder(path.with_suffix("")) if names else nullcontext(path) as folder:
            _place(names, folder, images)
            notes: list[str] = module.write(data, path)
        return notes
    with new_folder(path) as folder:
        notes = module.write(data, folder, split=split)
        _place(names, folder / module.IMAGES.format(split=split), images)
    return notes


def recognise(path: Path) -> tuple[str, Path]:
    """The format of what lies at a path, and the file or folder that its reader takes.

    Raises:
        ValueError: there is nothing of a known format; says what was looked for.
    """
    if path.is_file():
        if path.suffix == ".json":
            return ("tt100k" if _has_imgs(path) else "coco"), path
        if path.suffix in (".yaml", ".yml") or path.name == "classes.txt":
            return "yolo", path
        if path.suffix == ".mat" or path.name.endswith("_bbx_gt.txt"):
            return "widerface", path
    elif path.is_dir():
        if any((path / name).is_file() for name in yolo.TABLES):
            return "yolo", path
        if (path / "wider_face_split").is_dir():
            return "widerface", path
        for folder in path.iterdir():  # by its own name, where the file system ignores case
            if folder.name == "Annotations" and any(folder.rglob("*.xml")):
                return "voc", path
            if folder.name == "annotations" and any(folder.rglob("*.txt")):
                return "visdrone", path
        tables = list(path.glob("*.json"))
        if len(tables) == 1:
            return recognise(tables[0])
    looked = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    raise ValueError(f"{path}: cannot tell the format. Looked for {looked}")


def _has_imgs(path: Path) -> bool:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the reader says what is wrong
    return "imgs" in content and "images" not in content


def _module(format: str) -> Any:
    if format not in MODULES:
        raise ValueError(f"format must be one of {', '.join(MODULES)}, got {format!r}")
    return MODULES[format]


def _place(names: dict[Path, str], folder: Path, how: str) -> None:
    for source, name in names.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            target.symlink_to(source.resolve(strict=True))
        else:
            shutil.copyfile(source, target)
