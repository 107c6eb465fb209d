"""Find tiny objects in images of any size, tile by tile.

Images are files, folders or patterns such as "photos/*.jpg". The output folder gets one file per
format for all images, annotated pictures, failures.csv with the images that could not be read, and
settings.yaml. The same command again goes on with a run that was interrupted, or detects only in
images that are new or have changed. `torchrun --nproc-per-node N -m tinyops detect ...` shares the
images out over N processes.

Exit codes: 0 all is well, 1 some images failed, 2 the command is wrong, 130 interrupted.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from tinyops._files import replacing
from tinyops.cli.device import choose_device
from tinyops.config import dump_yaml
from tinyops.data.tiles import tile_starts
from tinyops.inference.directory import (
    FAILURES,
    PICTURES,
    Failure,
    Outcome,
    OutputError,
    Parts,
    detect_each,
    fingerprint,
    picture_path,
    write_all,
    writing,
)
from tinyops.inference.engine import count_tiles, detect_sources
from tinyops.inference.formats import write_coco, write_csv, write_geojson
from tinyops.inference.source import find_images, open_source
from tinyops.inference.types import Detection, Flip, Result, Source, View
from tinyops.models import load
from tinyops.train.processes import gather, process_group, rank, wait_for_all
from tinyops.nn.distributed import world_size

Format = Literal["coco", "csv", "geojson"]
WRITERS = {
    "coco": ("detections.json", write_coco),
    "csv": ("detections.csv", write_csv),
    "geojson": ("detections.geojson", write_geojson),
}
# What the result of an image does not depend on, so that it may change when a run goes on.
FREE = ("images", "model", "out", "format", "batch", "device", "fresh")


@dataclass
class Detect:
    """The settings of a detection."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or patterns."""
    out: Path
    """Folder to write into."""
    model: str = "embedded"
    """A file of tinyops.models.save, the folder of a training, or embedded: the one inside."""

    tile: tuple[int, int] = (640, 512)
    """Width and height in pixels of the tiles that the model sees; 640x512 will do, too."""
    overlap: int = 100
    """Pixels that neighbouring tiles share; more than the largest object."""
    batch: int = 8
    """Tiles that the model sees at once."""
    scales: tuple[float, ...] = (1.0,)
    """Images are also looked at enlarged by these factors."""
    flips: tuple[Flip, ...] = ("none",)
    """Images are also looked at mirrored in these ways."""
    min_score: float = 0.25
    """Of the objects that are kept; 0: all that the model gives, as an evaluation needs."""
    merge: Literal["none", "union"] = "none"
    """What becomes of an object in two tiles. none: its best box. union: one around both."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    device: str = "auto"
    """auto: a GPU if there is one; or cpu, cuda, cuda:1."""
    exif: bool = True
    """Turn photos as their camera was held."""
    stretch: tuple[float, float] | None = None
    """Values that become black and white, of images with more than 8 bits."""

    format: tuple[Format, ...] = ("coco",)
    """coco: detections.json. csv: detections.csv. geojson: detections.geojson."""
    picture: bool = True
    """Write annotated pictures."""
    insets: int = 6
    """Enlarged details in a picture."""
    show_tiles: bool = False
    """Draw the tiles and the boxes that stitching removed."""
    heat: bool = False
    """Draw the attention of the model."""
    fresh: bool = False
    """Detect anew in all images, and forget the results that are there."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""
        if not self.images:
            raise ValueError("images must be files, folders or patterns, got none")
        for side in self.tile:
            tile_starts(side, side, self.overlap)
        for name, lowest in (("batch", 1), ("insets", 0), ("min_score", 0)):
            if not getattr(self, name) >= lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in ("scales", "flips", "format"):
            if len(set(getattr(self, name))) != max(len(getattr(self, name)), 1):
                raise ValueError(f"{name} must differ and be at least one, got {getattr(self, name)}")
        if not all(0.01 <= scale <= 100 for scale in self.scales):
            raise ValueError(f"scales must be in 0.01..100, got {self.scales}")

    @property
    def how(self) -> Detection:
        """The same for `detect_sources`."""
        return Detection(
            tile=self.tile,
            overlap=self.overlap,
            batch=self.batch,
            views=tuple(View(scale, flip) for scale in self.scales for flip in self.flips),
            min_score=self.min_score,
            merge=self.merge,
            amp=self.amp,
        )


class _InputError(Exception):
    """A mistake in what the caller gave."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops detect <arguments>`; returns the exit code."""
    try:
        return run(parse(arguments))
    except _InputError as error:  # the caller's mistakes: one line, no traceback
        _say(error)
        return 2
    except (OutputError, torch.OutOfMemoryError) as error:
        _say(f"{error}".splitlines()[0])
        return 1
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on")
        return 130


def parse(arguments: Sequence[str]) -> Detect:
    """The settings of a command line."""
    words: list[str] = []
    for word in arguments:
        size = re.fullmatch(r"(--tile=)?(\d+)[xX](\d+)", word)
        if size and (size[1] or words[-1:] == ["--tile"]):
            words += ["--tile"] if size[1] else []
            words += size.groups()[1:]
        else:
            words.append(word)
    settings = tyro.cli(Detect, prog="tinyops detect", description=__doc__, args=words)
    try:
        settings.check()
    except ValueError as error:
        raise _InputError(error) from error
    return settings
