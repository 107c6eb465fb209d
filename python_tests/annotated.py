"""Data sets made by hand and from plain COCO tables, for the tests of what takes them."""

import json
from pathlib import Path

import numpy as np

from tinyops.data.types import AnnotatedImage, AnnotatedSet

GOLDEN = Path(__file__).parent / "data" / "golden"


def golden(case, name):
    return json.loads((GOLDEN / case / f"{name}.json").read_text())


def annotated_image(number, size, bbox, labels=None, ignore=None, **options):
    bbox = np.array(bbox, np.float64).reshape(-1, 4)
    count = len(bbox)
    return AnnotatedImage(
        number,
        options.pop("file_name", f"{number}.png"),
        *size,
        bbox,
        np.array(np.ones(count) if labels is None else labels, np.int64),
        np.array(np.zeros(count) if ignore is None else ignore, bool),
        **options,
    )


def annotated_set(*images, classes=("person",), **options):
    return AnnotatedSet(images, classes, tuple(range(1, len(classes) + 1)), **options)


def of_coco(content, flags=("ignore", "uncertain", "logo", "in_dense_image", "iscrowd")):
    """A table with the categories 1, 2, ...; `ignore` of every flag but those of no effect."""
    images = []
    for entry in content["images"]:
        rows = [row for row in content["annotations"] if row["image_id"] == entry["id"]]
        names = [name for name in (*flags, "area", "size") if rows and name in rows[0]]
        corner = entry.get("corner")
        images.append(
            annotated_image(
                entry["id"],
                (entry["width"], entry["height"]),
                [row["bbox"] for row in rows],
                [row["category_id"] for row in rows],
                [row.get("ignore") or row.get("uncertain") or row["iscrowd"] for row in rows],
                file_name=entry["file_name"],
                attributes={name: np.array([row[name] for row in rows]) for name in names},
                corner=None if corner is None else tuple(corner),
            )
        )
    extra = {key: content[key] for key in ("old_images", "type") if key in content}
    names = [entry["name"] for entry in content["categories"]]
    return annotated_set(*images, classes=tuple(names), extra=extra)
