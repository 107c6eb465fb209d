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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import tinyops
from tinyops._files import remove_temporaries
from tinyops.cli.device import choose_device
from tinyops.config import dump_yaml, to_plain
from tinyops.inference.directory import (
    FAILURES,
    PICTURES,
    Directory,
    Outcome,
    files_of,
    fingerprint,
    map_path,
    picture_path,
    printable,
    remove_pictures,
    write_all,
    write_maps,
)
from tinyops.inference.engine import check, detect_sources
from tinyops.inference.formats import write_coco, write_csv
from tinyops.inference.maps import Maps, image_maps, map_kinds
from tinyops.inference.parts import Index, OutputError, Parts, writing
from tinyops.inference.pixels import checked_stretch
from tinyops.inference.result import Result
from tinyops.inference.source import find_images, open_source
from tinyops.inference.types import Detection, Flip, Source, View
from tinyops.inference.views import plan_tiles
from tinyops.models import load
from tinyops.plot.picture import save
from tinyops.train.processes import gather, process_group, rank, wait_for_all, world_size

Format = Literal["coco", "csv", "geojson"]
WRITERS = {
    "coco": ("detections.json", write_coco),
    "csv": ("detections.csv", write_csv),
    "geojson": ("detections.geojson", write_maps),
}
# What the result of an image does not depend on, so that it may change when a run goes on.
FREE = ("images", "model", "out", "format", "batch", "device", "fresh")


@dataclass
class Detect:
    """The settings of a detection."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Files, folders or patterns."""
    out: Path
    """Folder to write into."""
    model: str = "embedded"
    """A file of tinyops.models.save, the folder of a training, or embedded: the one inside."""

    tile: tuple[int, int] = (640, 512)
    """Width and height in pixels of the tiles that the model sees; 640x512 will do, too."""
    overlap: int = 100
    """Pixels that neighbouring tiles share; more than the largest object."""
    batch: int | None = None
    """Tiles that the model sees at once; None: 8, and 1 on a CPU, where that is fastest."""
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
    """Values that become black and white. Images of 8 bits stay as they are."""
    bands: tuple[int, ...] | None = None
    """Numbers from 1 of the red, green and blue band, or of a grey one, of TIFF and JPEG 2000."""

    format: tuple[Format, ...] = ("coco",)
    """coco: detections.json. csv: detections.csv. geojson: detections.geojson."""
    picture: bool = True
    """Write annotated pictures."""
    insets: int = 6
    """Enlarged details in a picture."""
    show_tiles: bool = False
    """Draw the tiles and the boxes that stitching removed."""
    heat: bool = False
    """Draw the attention of the model into the picture; SSPNet has it."""
    maps: bool = False
    """Write what the model sees beside the picture. SSPNet: its attention. SR-TOD: its
    reconstruction of the image, the difference, and the mask where that is above the threshold."""
    fresh: bool = False
    """Detect anew in all images, and forget the results that are there."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""
        check(self.how)
        checked_stretch(self.stretch)
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f"bands must be one or three numbers from 1, got {self.bands}")
        if not self.images:
            raise ValueError("images must be files, folders or patterns, got none")
        if not self.format:
            raise ValueError(f"format must be one or more of {', '.join(WRITERS)}, got none")
        if self.insets < 0:
            raise ValueError(f"insets must be at least 0, got {self.insets}")

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
        _say("interrupted; the same command, without --fresh, goes on")
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


def run(settings: Detect) -> int:
    """The `detect` command."""
    try:
        images = _images(settings)
        wanted = choose_device(settings.device)
        model = load(settings.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        kinds = map_kinds(model)
        if settings.heat and "attention" not in kinds:
            raise ValueError("heat must be off for a model without attention (SSPNet has it)")
        if settings.maps and not kinds:
            raise ValueError("maps must be off for a model without any (SSPNet and SR-TOD have)")
        facts = _facts(settings, model)
        parts = Parts(settings.out)
        goes_on = parts.folder.is_dir()
        changes = [] if settings.fresh else parts.changes(facts)
        if changes:
            raise ValueError(
                f"{settings.out} has results of other settings: {'; '.join(changes)}. "
                "Give another folder, or --fresh to replace them"
            )
    except (ValueError, OSError) as error:
        raise _InputError(error) from error
    with process_group(wanted, timeout=timedelta(days=7)) as device:
        wait_for_all()  # everybody has looked
        if rank() == 0:
            _begin(settings, parts, facts)
        wait_for_all()
        index = parts.index()
        wait_for_all()  # nobody has written
        outcome = _detect(settings, images, parts, index, model.float().to(device), device)
        outcomes = gather([outcome])
        total = Outcome()
        for each in outcomes:
            total.add(each)
        if rank() == 0:
            write_all(total, images, parts, _writers(settings, goes_on))
            print(_total(total, max(each.total for each in outcomes)))
    return 1 if total.failures else 0


def _images(settings: Detect) -> list[Path]:
    """The images, without the pictures of an earlier run."""
    pictures = Path(os.path.abspath(settings.out / PICTURES))
    images = [
        image
        for image in find_images(settings.images)
        if pictures not in Path(os.path.abspath(image)).parents
    ]
    if not images:
        raise ValueError(f"images must be others than those in {settings.out / PICTURES}")
    return images


def _facts(settings: Detect, model: nn.Module) -> dict[str, Any]:
    """What the results depend on."""
    plain = to_plain(settings)
    made = {"model": fingerprint(model), "tinyops": tinyops.__version__}
    return {k: v for k, v in plain.items() if k not in FREE} | made


def _writers(settings: Detect, goes_on: bool) -> dict[str, Any]:
    """Of the formats in question, and of those of an earlier run, whose files would be outdated."""
    return {
        name: write
        for kind, (name, write) in WRITERS.items()
        if kind in settings.format or (goes_on and files_of(settings.out / name))
    }


def _begin(settings: Detect, parts: Parts, facts: dict[str, Any]) -> None:
    try:
        parts.begin(facts, fresh=settings.fresh)
        with writing(settings.out):
            if settings.picture or settings.maps:
                (settings.out / PICTURES).mkdir(exist_ok=True)
                remove_temporaries(settings.out / PICTURES)
            if settings.fresh:
                remove_pictures(settings.out)
            dump_yaml(replace(settings, fresh=False), settings.out / "settings.yaml")
    except OutputError as error:
        raise _InputError(error) from error


def _detect(
    settings: Detect,
    images: Sequence[Path],
    parts: Parts,
    index: Index,
    model: nn.Module,
    device: torch.device,
) -> Outcome:
    """Detect, with a bar and a line for each image."""
    how = settings.how
    open_image = functools.partial(
        open_source, exif=settings.exif, stretch=settings.stretch, bands=settings.bands
    )
    left = max((len(images) - len(index.places)) / world_size(), 1)  # for this process
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tiles"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal or rank() > 0,
    )
    task = bar.add_task("", total=1)
    opened = tiles = 0

    def count_tiles(source: Source) -> int:
        return len(plan_tiles(source.width, source.height, how))

    def on_open(source: Source) -> None:
        nonlocal opened, tiles
        opened, tiles = opened + 1, tiles + count_tiles(source)
        # As if those that were not opened yet had as many tiles on average.
        total = tiles * max(left / opened, 1)
        bar.update(task, total=total, description=printable(Path(source.name).name))

    def draw(image: Path, result: Result) -> None:
        source = open_image(image)
        try:
            maps = Maps()
            if settings.maps or (settings.heat and settings.picture):
                maps = image_maps(model, source, how, device=device)
            if settings.maps:
                for kind, picture in maps.draw().items():
                    save(picture, map_path(settings.out, image, kind))
            if settings.picture:
                result.plot(
                    source,
                    picture_path(settings.out, image),
                    min_score=0,
                    stitching=settings.show_tiles,
                    insets=settings.insets,
                    heat=maps.attention if settings.heat else None,
                )
        finally:
            source.close()

    with bar:
        return Directory(
            functools.partial(
                detect_sources,
                model,
                how=how,
                device=device,
                categories=_categories(model),
                progress=functools.partial(bar.advance, task),
            ),
            open_image,
            count_tiles,
            group=4 * (settings.batch or 8),
            draw=draw if settings.picture or settings.maps else None,
            on_open=on_open,
            on_result=lambda result: print(_line(result), flush=True),
            on_failure=lambda failure: _say(failure.reason),
        ).run(images, parts, index, rank=rank(), processes=world_size())


def _categories(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "categories", None)
    return names or tuple(str(k + 1) for k in range(cast("int", model.num_classes)))


def _line(result: Result) -> str:
    times = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items())
    size = f"{result.width}x{result.height} px, {len(result.tiles):,} tiles"
    return f"{printable(result.name)}: {size}, {len(result['boxes']):,} objects; seconds: {times}"


def _total(total: Outcome, seconds: float) -> str:
    """The last line; `seconds` are those of the slowest process."""
    before = len(total.places) - total.images
    texts = [f"{total.images:,} images, {total.tiles:,} tiles, {total.objects:,} objects"]
    if total.tiles:
        texts[0] += f" in {seconds:.1f} s: {total.tiles / seconds:.1f} tiles/s"
        texts.append(f"{1 - total.network / total.total:.1%} of the time outside the network")
    if before:
        texts.append(f"{before:,} images were done before")
    if total.failures:
        texts.append(f"{len(total.failures):,} images failed, see {FAILURES}")
    return "; ".join(texts)


def _say(message: object) -> None:
    number = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
    print(f"tinyops detect{number}: {message}", file=sys.stderr)
