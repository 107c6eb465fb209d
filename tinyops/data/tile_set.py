"""Tiles of a whole data set, made once: TinyPerson's way, by the rule of TinyBenchmark's splitter.

`cut_set` gives the annotations of every tile, `merge_tiles` takes what was found in the tiles back
to the images. Both do the originals' arithmetic, rounding included.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tinyops.data.tiles import clip_to_window, tile_windows
from tinyops.data.types import AnnotatedImage, AnnotatedSet
from tinyops.ops import nms

Rule = Literal["ge", "gt", "none"]


def cut_set(
    data: AnnotatedSet,
    tile: tuple[int, int] = (640, 512),
    overlap: int | tuple[int, int] = 30,
    *,
    min_visible: float = 0.7,
    keep_empty: bool = True,
) -> AnnotatedSet:
    """The tiles of every image as a data set of its own.

    Tile k has the id k, row after row and image after image. An object is clipped to each tile and
    kept where sqrt(clipped area) / sqrt(area) reaches `min_visible`. Its x, y, width and height are
    rounded to float32, as the released tiles have them. What else is known of the objects comes
    along, but `id` counts anew from 0, and `area`, `size` and `segmentation` are the clipped box's.

    Args:
        data: of whole images.
        tile: width and height of a tile in pixels; tiles of smaller images are smaller.
        overlap: pixels that neighbours share, see `tinyops.data.tiles.tile_windows`. SSPNet's
            tiles have 30; those that TinyBenchmark released have 50.
        min_visible: in 0..1.
        keep_empty: keep tiles in which nothing is left.

    Returns:
        Tiles with their `corner`, and in `extra["old_images"]` the images.

    Raises:
        ValueError: `tile`, `overlap` or `min_visible` is out of range, or `data` has tiles already.
    """
    if not 0 < min_visible <= 1:
        raise ValueError(f"min_visible must be in (0, 1], got {min_visible}")
    tiles: list[AnnotatedImage] = []
    count = 0
    for image in data.images:
        if image.corner is not None:
            raise ValueError(f"data must be of whole images, got a tile of {image.file_name}")
        corners = torch.from_numpy(
            np.hstack([image.bbox[:, :2], image.bbox[:, :2] + image.bbox[:, 2:]])
        )
        for window in tile_windows(image.width, image.height, tile, overlap):
            clipped, visible = clip_to_window(corners, window)
            keep = (visible >= min_visible).numpy()
            if keep.any() or keep_empty:
                x1, y1, x2, y2 = window
                shown = _clipped(image.select(keep), clipped.numpy()[keep], count)
                tiles.append(
                    replace(shown, id=len(tiles), width=x2 - x1, height=y2 - y1, corner=window)
                )
                count += len(shown)
    old = [
        {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
        for image in data.images
    ]
    return replace(data, images=tuple(tiles), extra={**data.extra, "old_images": old})


def _clipped(image: AnnotatedImage, corners: NDArray[np.float64], first: int) -> AnnotatedImage:
    """The image with its objects in boxes x1 y1 x2 y2, and their numbers from `first` on."""
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    boxes = boxes.astype(np.float32).astype(np.float64)
    x1, y1, width, height = boxes.T
    x2, y2, area = x1 + width, y1 + height, width * height
    attributes = {
        **image.attributes,
        "id": np.arange(first, first + len(boxes)),
        "area": area,
        "size": np.sqrt(area),
        "segmentation": np.stack([x1, y1, x1, y2, x2, y2, x2, y1], 1)[:, None],
    }
    return replace(image, bbox=boxes, attributes=attributes)


class _Place(NamedTuple):
    """Of a tile: the id of its image, and x and y of its corner."""

    image_id: int
    x: int
    y: int


def merge_tiles(
    tiles: AnnotatedSet,
    detections: Iterable[Mapping[str, Any]],
    *,
    rule: Rule = "ge",
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """What was found in tiles, as results of the images.

    Boxes are moved by the corners of their tiles; then non-maximum suppression over all tiles of an
    image, whatever the categories, with sides of x2 - x1 + 1 and in float32: TinyBenchmark's
    merging. For 4 px that is not the suppression of `torchvision.ops.nms`. The three rules differ:

    - "ge": a box goes if a better one overlaps it by the threshold or more; what stays is in the
      order of the tiles (TinyBenchmark on a CPU).
    - "gt": only more than the threshold counts; best first (SSPNet, and TinyBenchmark on a GPU).
    - "none": boxes are moved and all kept, in float64.

    Args:
        tiles: what `cut_set` gave, or a TinyPerson json with corners and `old_images`.
        detections: COCO results: image_id (of a tile), category_id, bbox x y width height, score.
        rule: see above.
        threshold: of the overlap.

    Returns:
        COCO results of the images, in their order.

    Raises:
        ValueError: `tiles` are none; the first detection that has an unknown image or a value that
            is no finite number or a negative side; or an option out of range.
    """
    if rule not in ("ge", "gt", "none"):
        raise ValueError(f'rule must be "ge", "gt" or "none", got {rule!r}')
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    places, order = _places(tiles)
    rows: dict[int, list[dict[str, Any]]] = {tile_id: [] for tile_id in places}
    for k, found in enumerate(detections):
        place, box, score = _checked(f"detections[{k}]", found, places)
        low = (box[0] + place.x, box[1] + place.y)
        high = (box[0] + box[2] + place.x, box[1] + box[3] + place.y)
        rows[found["image_id"]].append(
            {**found, "image_id": place.image_id, "bbox": (*low, *high), "score": score}
        )
    images: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in order}
    for tile_id, found_in_tile in rows.items():
        images[places[tile_id].image_id] += found_in_tile
    return [row for found in images.values() for row in _suppressed(found, rule, threshold)]


def _suppressed(
    rows: Sequence[dict[str, Any]], rule: Rule, threshold: float
) -> list[dict[str, Any]]:
    """The rows of one image that stay; their boxes are corners before and sides after."""
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    kept: Sequence[int] = range(len(rows))
    if rule != "none":
        boxes = boxes.astype(np.float32)
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
        limit = float(np.float32(threshold))  # the originals compare in float32
        if rule == "ge":  # x >= limit is x > the number before it; `nms` compares in float64
            limit = max(float(np.nextafter(limit, -1)), 0.0)
        kept = nms(torch.from_numpy(boxes), scores, limit, offset=1).tolist()
        kept = sorted(kept) if rule == "ge" else kept
    sides = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist()
    return [{**rows[k], "bbox": sides[k]} for k in kept]


def _places(tiles: AnnotatedSet) -> tuple[dict[int, _Place], list[int]]:
    """Where every tile lies, and the ids of the images."""
    old = tiles.extra.get("old_images")
    if not old:
        raise ValueError("tiles must have old_images, the images that they are of, got none")
    ids = {entry["file_name"]: entry["id"] for entry in old}
    if len(ids) < len(old):
        raise ValueError("old_images must have a file_name each, got one of them twice")
    places = {}
    for tile in tiles.images:
        name = tile.extra.get("tile_of", tile.file_name)  # of tiles that are files of their own
        corner = tile.extra.get("tile_corner", tile.corner)
        if corner is None or name not in ids:
            raise ValueError(
                f"tile {tile.id} must have a corner and the file_name of one of old_images, "
                f"got {corner} and {name!r}"
            )
        places[tile.id] = _Place(ids[name], corner[0], corner[1])
    return places, list(ids.values())


def _checked(
    where: str, found: Mapping[str, Any], places: Mapping[int, _Place]
) -> tuple[_Place, list[float], float]:
    image_id: Any = found.get("image_id")
    if not isinstance(image_id, int) or image_id not in places:
        raise ValueError(f"{where}: image_id must be that of a tile, got {image_id!r}")
    try:
        box = [value + 0.0 for value in found["bbox"]]  # no text, which float would read
        score = found["score"] + 0.0
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{where} must have a bbox and a score of numbers: {error!r}") from None
    if len(box) != 4 or not np.isfinite([*box, score]).all() or min(box[2:]) < 0:
        raise ValueError(
            f"{where} must have a bbox of 4 finite numbers, no negative sides, and a finite score, "
            f"got {box} and {score}"
        )
    return places[image_id], box, score
