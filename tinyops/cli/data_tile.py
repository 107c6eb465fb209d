"""Cut a data set into tiles, or take what was found in tiles back to the images.

The tiles are TinyPerson's: a json in which every tile has its `corner` in an image, whose objects
are clipped and kept where sqrt(clipped area) / sqrt(area) is 0.7 or more. With --pixels the tiles
become images of their own.

--merge DETECTIONS reads the json of tiles as --data and what `tinyops detect` found in their
images, and writes COCO results of the large images.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyops._files import new_folder, replacing
from tinyops.cli.data_source import Source, run_tool
from tinyops.cli.eval_inputs import read_inputs
from tinyops.data.formats import write
from tinyops.data.pixels import Suffix, without_ignored, write_erased, write_tiles
from tinyops.data.tile_set import Rule, cut_set, merge_tiles
from tinyops.data.types import AnnotatedSet

_PROGRAM = "tinyops data tile"


@dataclass(kw_only=True)
class Tile(Source):
    """The settings of the tiles."""

    out: Path
    """New folder for tiles.json and images; with --merge, the json of results."""
    tile: tuple[int, int] = (640, 512)
    """Width and height in pixels."""
    overlap: int = 30
    """Pixels that neighbours share: 30 in SSPNet's tiles, 50 in those that TinyBenchmark
    released."""
    min_visible: float = 0.7
    """Least sqrt(clipped area) / sqrt(area) of an object in a tile."""
    keep_empty: bool = True
    """Keep tiles without objects."""
    pixels: Literal["none", "tiles", "whole"] = "none"
    """tiles: an image for each tile. whole: the images that tiles are of, with --erase. They are in
    the folder images."""
    erase: Literal["no", "mean", "black"] = "no"
    """Fill regions to be ignored with their mean color (TinyPerson) or black (SODA-D), and leave
    out their boxes; for training."""
    suffix: Suffix = ".png"
    """Of images."""
    merge: Path | None = None
    """What was found in the tiles in --data, to be taken back to the images: detections.json or
    .csv of `tinyops detect`, or COCO results."""
    rule: Rule = "ge"
    """What goes in --merge: boxes that overlap a better one by the threshold or more (ge:
    TinyBenchmark on a CPU), by more than it (gt: SSPNet, TinyBenchmark on a GPU), or none."""
    threshold: float = 0.5
    """Of the overlap in --merge."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data tile <arguments>`; returns the exit code."""
    return run_tool(Tile, run, _PROGRAM, __doc__, arguments)


def run(settings: Tile) -> int:
    """The `data tile` command.

    Raises:
        ValueError: an option, the data set or the detections are not what they should be.
        OSError: a file cannot be read or written.
    """
    if settings.merge is not None:
        return _merge(settings, settings.merge)
    if settings.erase != "no" and settings.pixels == "none":
        raise ValueError("erase needs pixels to be tiles or whole, got none")
    if settings.erase == "no" and settings.pixels == "whole":
        raise ValueError("pixels must be none or tiles where nothing is erased, got whole")
    data = settings.read()
    with new_folder(settings.out) as folder:
        tiles = _cut(settings, data, folder)
        write(tiles, folder / "tiles.json", "coco")
    before, after = (sum(map(len, x.images)) for x in (data, tiles))
    print(
        f"{settings.out / 'tiles.json'}: {len(tiles.images)} tiles of {len(data.images)} images, "
        f"{after} boxes of {before}"
    )
    return 0


def _cut(settings: Tile, data: AnnotatedSet, folder: Path) -> AnnotatedSet:
    fill = None if settings.erase == "no" else settings.erase
    cut = functools.partial(
        cut_set,
        tile=settings.tile,
        overlap=settings.overlap,
        min_visible=settings.min_visible,
        keep_empty=settings.keep_empty,
    )
    if settings.pixels == "none":
        return cut(data)
    images, suffix = folder / "images", settings.suffix
    if settings.pixels == "tiles":
        tiles = cut(data if fill is None else without_ignored(data))
        return write_tiles(data, tiles, images, fill, suffix=suffix)
    assert fill is not None
    return cut(write_erased(data, images, fill, suffix=suffix))


def _merge(settings: Tile, path: Path) -> int:
    tiles = settings.read()
    _, results, _ = read_inputs("coco", settings.data, path, ignore_unknown=False)
    found = results.entries()
    try:
        merged = merge_tiles(tiles, found, rule=settings.rule, threshold=settings.threshold)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(settings.out) as temporary:
        temporary.write_text(json.dumps(merged))
    print(f"{settings.out}: {len(merged)} of {len(found)} boxes")
    return 0
