"""Convert a data set from one format to another.

What the target has no place for is said, a line for each kind of thing. The target is there when it
is complete, or not at all; nothing is overwritten.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tinyops.data.formats import Format, read, write

_PROGRAM = "tinyops data convert"


@dataclass
class Convert:
    """The settings of a conversion."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """File or folder of the data set."""
    to: Path
    """The new json of COCO, or the new folder of any other format."""
    to_format: Format
    """What to write."""
    from_format: Format | None = None
    """What to read; None: what lies there tells."""
    images: Path | None = None
    """Folder that names of images refer to; None: where the format has it."""
    split: str | None = None
    """What to read of a data set that has several splits."""
    to_split: str = "train"
    """What a format that names its splits calls this one."""
    drop_empty_boxes: bool = False
    """Leave out boxes without area, which are errors otherwise."""
    copy_images: bool = False
    """Copy the images to where the format has them; with COCO, in a folder beside the json."""
    link_images: bool = False
    """The same with symbolic links."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data convert <arguments>`; returns the exit code."""
    settings = tyro.cli(Convert, prog=_PROGRAM, description=__doc__, args=list(arguments))
    try:
        return run(settings)
    except (ValueError, OSError) as error:  # the caller's mistakes: one line, no traceback
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2


def run(settings: Convert) -> int:
    """The `data convert` command.

    Raises:
        ValueError: a set is not what it should be, or cannot be written in the format.
        OSError: a file cannot be read or written.
    """
    if settings.copy_images and settings.link_images:
        raise ValueError("give either --copy-images or --link-images, not both")
    how: Literal["none", "copy", "link"] = "copy" if settings.copy_images else "none"
    data = read(
        settings.source,
        settings.from_format,
        settings.images,
        settings.split,
        drop_empty_boxes=settings.drop_empty_boxes,
    )
    notes = write(
        data,
        settings.to,
        settings.to_format,
        split=settings.to_split,
        images="link" if settings.link_images else how,
    )
    for note in notes:
        print(note)
    boxes = sum(map(len, data.images))
    print(f"{settings.to}: {len(data.images)} images, {boxes} boxes read")
    return 0
