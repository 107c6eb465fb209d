"""What the commands have in common that look at a data set."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro

from tinyops.data.formats import Format, read
from tinyops.data.types import AnnotatedSet

Settings = TypeVar("Settings")


@dataclass
class Source:
    """A data set."""

    data: Path
    """File or folder of the data set, in any format that `tinyops data convert` reads."""
    format: Format | None = None
    """What to read; None: what lies there tells."""
    images: Path | None = None
    """Folder that names of images refer to; None: where the format has it."""
    split: str | None = None
    """What to read of a data set that has several splits."""
    drop_empty_boxes: bool = False
    """Leave out boxes without area, which are errors otherwise."""

    def read(self) -> AnnotatedSet:
        """The data set; see `tinyops.data.read` for what it raises."""
        return read(
            self.data,
            self.format,
            self.images,
            self.split,
            drop_empty_boxes=self.drop_empty_boxes,
        )


def run_tool(
    settings: type[Settings],
    run: Callable[[Settings], int],
    program: str,
    description: str | None,
    arguments: Sequence[str],
) -> int:
    """Parse the arguments of a command and run it; returns the exit code."""
    parsed = tyro.cli(settings, prog=program, description=description, args=list(arguments))
    try:
        return run(parsed)
    except (ValueError, OSError) as error:  # the caller's mistakes: one line, no traceback
        print(f"{program}: {error}", file=sys.stderr)
        return 2
