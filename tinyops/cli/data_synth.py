"""Draw TinySea: sea, beach and field scenes with people of 2 to 30 px, in COCO form.

Give either a preset or a number of images.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tinyops.data.synth_write import PRESETS, write_preset, write_tinysea

_PROGRAM = "tinyops data synth"
Preset = Literal["tinysea-s"]


@dataclass
class Synth:
    """The settings of a set to draw."""

    out: Path
    """Folder to write into; it gets one folder of images and one json per split."""
    preset: Preset | None = None
    """tinysea-s: 600 training and 150 validation tiles of 256x256."""
    images: int | None = None
    """Number of images, written as the split "train"."""
    size: tuple[int, int] = (640, 512)
    """Width and height of the images in pixels; presets have their own."""
    classes: Literal[1, 3] = 1
    """1: person. 3: sea_person, earth_person and drone."""
    seed: int = 0
    """Image k is a function of the seed and k alone."""
    workers: int = 1
    """Threads that draw images."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data synth <arguments>`; returns the exit code."""
    settings = tyro.cli(Synth, prog=_PROGRAM, description=__doc__, args=list(arguments))
    try:
        return run(settings)
    except (ValueError, OSError) as error:  # the caller's mistakes: one line, no traceback
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2


def run(synth: Synth) -> int:
    """The `data synth` command.

    Raises:
        ValueError: neither or both of `preset` and `images` were given.
    """
    if (synth.preset is None) == (synth.images is None):
        raise ValueError("give either --preset or --images, not both and not neither")
    seed, classes, workers = synth.seed, synth.classes, synth.workers
    if synth.preset is not None:
        preset = PRESETS[synth.preset]
        written = write_preset(synth.out, preset, seed=seed, classes=classes, workers=workers)
    else:
        assert synth.images is not None
        written = [
            write_tinysea(
                synth.out,
                images=synth.images,
                size=synth.size,
                seed=seed,
                classes=classes,
                workers=workers,
            )
        ]
    for path in written:
        print(path)
    return 0
