"""Pascal VOC: an xml per image.

    Annotations/<name>.xml          size, and per object name, bndbox, difficult, truncated, ...
    JPEGImages/<name>.jpg
    ImageSets/Main/<split>.txt      a name per line
    ImageSets/Main/<class>_<split>.txt

Facts from VOC's development kit. Pixels count from 1, and xmin ymin xmax ymax are the first and
the last pixel of the object: xmin = xmax = 1 is one pixel, here x = 0 and width = 1. Written edges
are whole numbers; read ones may have decimals. `difficult` objects do not count and get `ignore`;
`truncated`, `occluded` and `pose` are attributes. Class names sort as the alphabet does; names in
ImageSets and those of the objects make the list. Parts and actions of objects are not read.

An xml is parsed without a DTD, so that it can name no entities (expansion) and no other files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, TreeBuilder, indent
from xml.parsers import expat

import numpy as np

from tinyops.data.formats import common
from tinyops.data.types import AnnotatedImage, AnnotatedSet

IMAGES = "JPEGImages"
_FLAGS = ("difficult", "truncated", "occluded")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_LISTS = "ImageSets/Main"
_NAME = "VOC"


def read(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """See `tinyops.data.read`; `path` is the folder with `Annotations`."""
    folder, lists = path / "Annotations", {p.stem: p for p in (path / _LISTS).glob("*.txt")}
    if not folder.is_dir():
        raise ValueError(f"{path}: expected a folder with Annotations, found none")
    known = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]
    chosen = common.choose_split(path, split, known)
    if chosen is None:
        stems = sorted(
            common.stem_of(p.relative_to(folder).as_posix()) for p in folder.rglob("*.xml")
        )
    else:
        stems = [line for line in common.read_lines(lists[chosen]) if line]
    if images is None and (path / IMAGES).is_dir():
        images = path / IMAGES
    files = {} if images is None else common.image_files(images)
    roots = {stem: parse(folder / f"{stem}.xml") for stem in stems}
    names = {name.removesuffix(f"_{chosen}") for name in lists if name.endswith(f"_{chosen}")}
    for stem, root in roots.items():
        for k, entry in enumerate(root.iter("object"), 1):
            names.add(_text(f"{folder / stem}.xml object {k}", entry, "name"))
    classes = tuple(sorted(names - {common.IGNORE}))
    labels = {name: k for k, name in enumerate(classes, 1)}
    labels[common.IGNORE] = 0
    found = []
    for number, (stem, root) in enumerate(roots.items(), 1):
        where = f"{folder / stem}.xml"
        name = files.get(stem) or root.findtext("filename", "").strip() or f"{stem}.jpg"
        size = _size(where, root, None if images is None else images / name)
        found.append(_read_image(where, root, number, name, size, labels, drop_empty_boxes))
    return AnnotatedSet(tuple(found), classes, tuple(range(1, len(classes) + 1)), images)


def parse(path: Path) -> Element:
    """The root of an xml.

    Raises:
        ValueError: it is no xml, or it has a DTD.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError(f"{path} line {parser.CurrentLineNumber}: xml with a DTD is not read")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise ValueError(f"{path} is not xml: {error}") from None
    return builder.close()


def _text(where: str, entry: Element, field: str) -> str:
    found = entry.findtext(field, "").strip()
    if not found:
        raise ValueError(f"{where}: expected {field}, got nothing")
    return found


def _number(where: str, entry: Element, field: str) -> float:
    return common.numbers(where, _text(where, entry, field), field)[0]


def _size(where: str, root: Element, image: Path | None) -> tuple[int, int]:
    """Of the xml; some tools write none or zeros, and then of the image."""
    size = root.find("size")
    if size is not None:
        width, height = (
            common.whole(where, key, _number(where, size, key)) for key in ("width", "height")
        )
        if width and height:
            return width, height
    if image is None:
        raise ValueError(f"{where}: expected a size with width and height, got none; images has it")
    return common.image_size(image)


def _read_image(
    where: str,
    root: Element,
    number: int,
    name: str,
    size: tuple[int, int],
    labels: dict[str, int],
    drop_empty_boxes: bool,
) -> AnnotatedImage:
    rows, flags, poses = [], [], []
    for k, entry in enumerate(root.iter("object"), 1):
        place, box = f"{where} object {k}", entry.find("bndbox")
        if box is None:
            raise ValueError(f"{place}: expected bndbox, got nothing")
        x1, y1, x2, y2 = (_number(place, box, edge) for edge in _EDGES)
        values = [_number(place, entry, key) if entry.findtext(key) else 0 for key in _FLAGS]
        flags.append(
            [common.whole(place, key, v, low=-1) for key, v in zip(_FLAGS, values, strict=True)]
        )
        poses.append(entry.findtext("pose"))
        label = labels[_text(place, entry, "name")]
        ignore = label == 0 or flags[-1][0] > 0
        rows.append(([x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], label, ignore))
    table = np.array(flags, np.int64).reshape(-1, len(_FLAGS))
    attributes = dict(zip(_FLAGS, table.T, strict=True))
    if any(pose is not None for pose in poses):
        attributes["pose"] = common.column(poses)
    return common.make_image(
        number, name, size, rows, attributes, lambda k: f"{where} object {k + 1}", drop_empty_boxes
    )


def write(data: AnnotatedSet, folder: Path, *, split: str = "train") -> list[str]:
    """Write the xmls and the lists; see `tinyops.data.write`.

    Raises:
        ValueError: the name of a class cannot be that of a file, or two have the same.
    """
    common.need_distinct_classes(data, _NAME)
    stems: list[str] = []
    for image, name in zip(data.images, common.file_names(data, _NAME), strict=True):
        stems.append(common.stem_of(name))
        path = folder / "Annotations" / f"{stems[-1]}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = ElementTree(_element(image, name, data.classes))
        indent(tree)
        tree.write(path, encoding="utf-8")
    common.write_text(folder / _LISTS / f"{split}.txt", stems)
    for label, name in enumerate(data.classes, 1):
        if Path(name).name != name or not name.isprintable() or name == common.IGNORE:
            raise ValueError(f"{_NAME} has a file per class, which cannot have the name {name!r}")
        has = [1 if (image.labels == label).any() else -1 for image in data.images]
        lines = [f"{stem} {sign:2d}" for stem, sign in zip(stems, has, strict=True)]
        common.write_text(folder / _LISTS / f"{name}_{split}.txt", lines)
    notes = common.rounding(data, _NAME)
    if list(data.classes) != sorted(data.classes):
        notes.append(f"the classes lose their order: {_NAME} has that of the alphabet")
    held = ("pose",) if all(map(_has_poses, data.images)) else ()
    return notes + common.losses(data, _NAME, held, whole_attributes=_FLAGS)


def _has_poses(image: AnnotatedImage) -> bool:
    """Whether its poses are text, and not the numbers that other formats call so."""
    poses = image.attributes.get("pose", np.zeros(0, object))
    return poses.dtype == object and all(p is None or _is_text(p) for p in poses)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _element(image: AnnotatedImage, name: str, classes: Sequence[str]) -> Element:
    root = Element("annotation")
    SubElement(root, "filename").text = name
    size = SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        SubElement(size, key).text = str(value)
    flags = {key: common.whole_column(image, key) for key in _FLAGS} | {"difficult": image.ignore}
    poses = image.attributes["pose"] if "pose" in image.attributes and _has_poses(image) else None
    x, y, width, height = common.whole_pixels(image.bbox).T
    edges = dict(zip(_EDGES, (x + 1, y + 1, x + width, y + height), strict=True))
    for k, label in enumerate(image.labels.tolist()):
        entry = SubElement(root, "object")
        SubElement(entry, "name").text = classes[label - 1] if label else common.IGNORE
        if poses is not None and poses[k] is not None:
            SubElement(entry, "pose").text = str(poses[k])
        for key, values in flags.items():
            SubElement(entry, key).text = str(int(values[k]))
        box = SubElement(entry, "bndbox")
        for edge, values in edges.items():
            SubElement(box, edge).text = str(values[k])
    return root
