"""VisDrone-DET: a text per image.

    annotations/<name>.txt    a line per object, of whole numbers:
                              left,top,width,height,score,category,truncation,occlusion
    images/<name>.jpg

Facts from the toolkit and its README (VisDrone2018-DET-toolkit, version 1.0.4). Score 0 takes an
object out of the evaluation. Category 0 is an ignored region and 11 "others", neither of them
evaluated: both get label 0 and `ignore`, and the attribute `others` tells them apart. Truncation is
0 or 1 (up to half outside), occlusion 0 to 2 (up to half, more than half). Lines may end in a
comma. The images' sizes are in their files.
"""

from pathlib import Path

import numpy as np

from tinyops.data.formats import common
from tinyops.data.types import AnnotatedImage, AnnotatedSet

IMAGES = "images"
CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
_FIELDS = "left top width height score category truncation occlusion"
_EXTRA = ("score", "truncation", "occlusion")
_OTHERS = 11
_NAME = "VisDrone"


def read(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    drop_empty_boxes: bool = False,
) -> AnnotatedSet:
    """See `tinyops.data.read`; `path` is the folder with `annotations`, or that folder itself."""
    if split is not None:
        raise ValueError(
            f"{path}: split must be None, as {_NAME} has a folder per split; got {split}"
        )
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    images = images or folder.parent / IMAGES
    common.need_folder(_NAME, images)
    texts = sorted(folder.rglob("*.txt"))
    if not texts:
        raise ValueError(f"{folder}: expected a .txt for every image, found none")
    names = common.image_files(images)
    result = []
    for number, text in enumerate(texts, 1):
        stem = common.stem_of(text.relative_to(folder).as_posix())
        if stem not in names:
            raise FileNotFoundError(f"{text}: expected an image {images / stem}.jpg, found none")
        size = common.image_size(images / names[stem])
        result.append(_read_image(text, number, names[stem], size, drop_empty_boxes))
    return AnnotatedSet(tuple(result), CLASSES, tuple(range(1, len(CLASSES) + 1)), images)


def _read_image(
    text: Path, number: int, name: str, size: tuple[int, int], drop_empty_boxes: bool
) -> AnnotatedImage:
    rows, lines, extra = [], [], []
    for k, line in enumerate(common.read_lines(text), 1):
        if line:
            where = f"{text} line {k}"
            values = common.numbers(where, line.removesuffix(","), _FIELDS, ",")
            category = common.whole(where, "category", values[5], high=_OTHERS)
            label = category if category <= len(CLASSES) else 0
            rows.append((values[:4], label, label == 0 or values[4] == 0))
            more = zip(_EXTRA, (values[4], *values[6:]), strict=True)
            extra.append([category == _OTHERS, *(common.whole(where, *x, low=-1) for x in more)])
            lines.append(where)
    others, *rest = np.array(extra, np.int64).reshape(-1, 4).T
    attributes = {"others": others != 0, **dict(zip(_EXTRA, rest, strict=True))}
    return common.make_image(
        number, name, size, rows, attributes, lines.__getitem__, drop_empty_boxes
    )


def write(data: AnnotatedSet, folder: Path, *, split: str = "train") -> list[str]:
    """Write the texts; see `tinyops.data.write`. `split` is not used: a folder is a split.

    Classes keep their numbers if all have names of VisDrone, else they are numbered from 1.

    Raises:
        ValueError: there are more classes than VisDrone has.
    """
    if len(data.classes) > len(CLASSES):
        raise ValueError(f"{_NAME} has {len(CLASSES)} classes, the set {len(data.classes)}")
    notes = common.rounding(data, _NAME)
    categories = list(range(len(data.classes) + 1))
    if set(data.classes) <= set(CLASSES):
        categories = [0, *(CLASSES.index(name) + 1 for name in data.classes)]
    else:
        names = ", ".join(f"{name} is {k}" for k, name in enumerate(data.classes, 1))
        notes.append(f"the classes lose their names: {_NAME} has its own; {names}")
    for image, name in zip(data.images, common.file_names(data, _NAME), strict=True):
        score, truncation, occlusion = (common.whole_column(image, key) for key in _EXTRA)
        region = image.labels == 0
        category = np.array(categories)[image.labels]
        category[region & (common.whole_column(image, "others") != 0)] = _OTHERS
        score = np.where(region, score, ~image.ignore)
        table = np.column_stack(
            [common.whole_pixels(image.bbox), score, category, truncation, occlusion]
        )
        lines = [",".join(map(str, row)) for row in table.tolist()]
        common.write_text(folder / "annotations" / f"{common.stem_of(name)}.txt", lines)
    held = (*_EXTRA, "others")
    return notes + common.losses(data, _NAME, whole_attributes=held, class_ids=True)
