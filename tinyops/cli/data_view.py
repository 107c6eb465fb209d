"""Show images of a data set with their boxes: one page for a browser.

Small objects are magnified; boxes can be chosen by class and size on the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyops.cli.data_source import Source, run_tool
from tinyops.data.pixels import read_pixels
from tinyops.data.types import AnnotatedImage, AnnotatedSet
from tinyops.plot.view_page import ViewImage, write_view_page

_PROGRAM = "tinyops data view"


@dataclass(kw_only=True)
class View(Source):
    """The settings."""

    out: Path
    """The page, such as view.html."""
    count: int = 12
    """Images that are shown."""
    only: tuple[str, ...] = ()
    """Classes; images without an object of one of them are left out."""
    largest: float | None = None
    """Images without an object of this sqrt(area) in pixels or less are left out."""
    seed: int = 0
    """Of the choice among the others."""
    insets: int = 6
    """At most so many magnified places of each image."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data view <arguments>`; returns the exit code."""
    return run_tool(View, run, _PROGRAM, __doc__, arguments)


def run(settings: View) -> int:
    """The `data view` command.

    Raises:
        ValueError: an option or the data set is not what it should be, or no image is left.
        OSError: a file cannot be read or written.
    """
    if settings.count < 1 or settings.insets < 0 or settings.seed < 0:
        raise ValueError(
            "count must be at least 1, insets and seed at least 0, "
            f"got {settings.count}, {settings.insets} and {settings.seed}"
        )
    data = settings.read()
    wanted = [image for image in data.images if _is_wanted(settings, data, image)]
    if not wanted:
        raise ValueError(f"{settings.data}: none of {len(data.images)} images is as wanted")
    order = np.random.default_rng(settings.seed).permutation(len(wanted))[: settings.count]
    images = [_view(data, wanted[k]) for k in sorted(order.tolist())]
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    write_view_page(
        settings.out,
        settings.data.name,
        images,
        data.classes,
        lead=f"{len(images)} of {len(data.images):,} images of {settings.data}.",
        insets=settings.insets,
    )
    print(f"{settings.out}: {len(images)} of {len(data.images)} images")
    return 0


def _is_wanted(settings: View, data: AnnotatedSet, image: AnnotatedImage) -> bool:
    unknown = [name for name in settings.only if name not in data.classes]
    if unknown:
        raise ValueError(f"only must be of {', '.join(data.classes)}, got {unknown[0]}")
    good = ~image.ignore
    if settings.only:
        good &= np.isin(image.labels, [1 + data.classes.index(name) for name in settings.only])
    if settings.largest is not None:
        good &= image.bbox[:, 2:].prod(1) <= settings.largest**2
    return bool(good.any()) or not (settings.only or settings.largest is not None)


def _view(data: AnnotatedSet, image: AnnotatedImage) -> ViewImage:
    corner = "" if image.corner is None else f", tile at {image.corner[0]} {image.corner[1]}"
    ignored = int(image.ignore.sum())
    return ViewImage(
        f"{image.file_name}{corner}: {image.width} x {image.height} px, "
        f"{len(image) - ignored} objects, {ignored} to be ignored",
        read_pixels(data, image),
        image.boxes.double().numpy(),
        image.labels - 1,
        image.ignore,
    )
