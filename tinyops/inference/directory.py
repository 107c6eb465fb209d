"""Detection in many images: each batch is a function of the images, not of what was done before."""

import csv
import errno
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from tinyops.inference.formats import text_file, write_geojson
from tinyops.inference.maps import KINDS
from tinyops.inference.parts import (
    Index,
    OutputError,
    Parts,
    Place,
    digest,
    image_key,
    writing,
)
from tinyops.inference.result import Result
from tinyops.inference.types import Source

PICTURES, FAILURES = "pictures", "failures.csv"

_CHANGED = "files changed during the run; the same command tries again"
_MOST_OPEN = 256  # files; a process may often have 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """An image without a result, and the reason in one line that names it."""

    image: str
    reason: str


@dataclass
class Outcome:
    """What became of images.

    Attributes:
        places: image -> where its result is.
        failures: the other images.
        images: how many were detected in now; the rest of `places` was there before.
        tiles: that the model looked at in them.
        objects: that were found in them.
        network: seconds in the model.
        total: seconds altogether.
    """

    places: dict[str, Place] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    images: int = 0
    tiles: int = 0
    objects: int = 0
    network: float = 0.0
    total: float = 0.0

    def add(self, other: "Outcome") -> None:
        """Add what became of other images."""
        self.places |= other.places
        self.failures += other.failures
        for name in ("images", "tiles", "objects", "network", "total"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def picture_path(out: Path, image: Path) -> Path:
    """The file of an annotated picture; images of one name in two folders have two."""
    return out / PICTURES / f"{image.stem[:40]}-{digest(image)[:8]}.jpg"


def map_path(out: Path, image: Path, kind: str) -> Path:
    """The file of a map, beside the annotated picture."""
    return picture_path(out, image).with_suffix(f".{kind}.png")


def remove_pictures(out: Path) -> None:
    """Remove the annotated pictures and the maps, and nothing else."""
    for pattern in ("*-????????.jpg", *(f"*-????????.{kind}.png" for kind in KINDS)):
        for path in (out / PICTURES).glob(pattern):
            path.unlink()


def fingerprint(model: nn.Module) -> str:
    """A hash of the way a model was made, the names of its labels, and its tensors."""
    facts = [getattr(model, name, None) for name in ("recipe", "categories")]
    total = hashlib.sha256(repr(facts).encode())
    for name, x in model.state_dict().items():
        total.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        total.update(x.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


@dataclass
class _Member:
    """An image of a group."""

    image: Path
    key: str
    source: Source


class _Results:
    """The results of images, read anew from the parts each time they are asked for."""

    def __init__(self, parts: Parts, places: Mapping[str, Place]) -> None:
        self._parts, self._places = parts, places

    def __iter__(self) -> Iterator[Result]:
        return self._parts.results(self._places)


@dataclass
class Directory:
    """Detection in the images that have no result.

    Images are taken in groups of at least so many tiles, or of 256 images, which share batches;
    those that have as many tiles alone are a group. A part is written when a group is done. Groups
    depend neither on what was done before nor on the number of processes: the network's last bits
    depend on what else is in a batch, and so the batches, and the results bit by bit, are those of
    a run without a break.

    Args:
        detect: `detect(sources, on_error=...)` gives results in the order of the sources, as
            `tinyops.inference.engine.detect_sources` does, and closes them.
        open_image: makes the source of a file; OSError or ValueError: a failure.
        count_tiles: number of tiles of a source.
        group: number of tiles.
        draw: writes the picture of an image; errors are failures, too.
        on_open: is called with every source before detection in it.
        on_result: is called with every result when it is on the disk; its `seconds` have "write".
        on_failure: is called with every failure.
    """

    detect: Callable[..., Iterator[Result]]
    open_image: Callable[[Path], Source]
    count_tiles: Callable[[Source], int]
    group: int = 32
    draw: Callable[[Path, Result], None] | None = None
    on_open: Callable[[Source], None] = lambda source: None
    on_result: Callable[[Result], None] = lambda result: None
    on_failure: Callable[[Failure], None] = lambda failure: None

    def run(
        self,
        images: Sequence[Path],
        parts: Parts,
        index: Index,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> Outcome:
        """Detect, and write parts.

        An image that cannot be read or drawn is a failure, and the rest goes on. A later call
        tries it again, by itself.

        Args:
            images: files, none of them twice.
            parts: after `begin`.
            index: of the parts, the same in all processes.
            rank: number of this process.
            processes: that share the groups.

        Raises:
            OutputError: if the output folder cannot be written.
        """
        start = perf_counter()
        outcome = Outcome()

        def fail(image: Path, error: Exception) -> None:
            failure = Failure(str(image), _reason(image, error))
            outcome.failures.append(failure)
            self.on_failure(failure)

        def report(image: Path, error: Exception) -> None:  # all processes see it
            if rank == 0:
                fail(image, error)

        for number, group in enumerate(self._groups(images, index, outcome, report)):
            if number % processes == rank:
                self._detect(group, parts, outcome, fail)
            else:
                for member in group:
                    member.source.close()
        outcome.total = perf_counter() - start
        return outcome

    def _groups(
        self,
        images: Sequence[Path],
        index: Index,
        outcome: Outcome,
        fail: Callable[[Path, Exception], None],
    ) -> Iterator[list[_Member]]:
        """Images that have no result; those that failed before come last, each by itself."""
        new: list[tuple[Path, str]] = []
        again: list[list[tuple[Path, str]]] = []
        for image in images:
            try:
                key = image_key(image)
            except OSError as error:
                fail(image, error)
                continue
            if key in index.places:
                outcome.places[str(image)] = index.places[key]
            elif key in index.failed:
                again.append([(image, key)])
            else:
                new.append((image, key))
        for sequence in (new, *again):
            group: list[_Member] = []
            tiles = 0
            for image, key in sequence:
                try:
                    source = self.open_image(image)
                except (OSError, ValueError) as error:
                    fail(image, error)
                    continue
                count = self.count_tiles(source)
                if count >= self.group:
                    yield [_Member(image, key, source)]
                    continue
                group.append(_Member(image, key, source))
                tiles += count
                if tiles >= self.group or len(group) == _MOST_OPEN:
                    yield group
                    group, tiles = [], 0
            if group:
                yield group

    def _detect(
        self,
        group: Sequence[_Member],
        parts: Parts,
        outcome: Outcome,
        fail: Callable[[Path, Exception], None],
    ) -> None:
        waiting = {member.source.name: member for member in group}
        done: dict[str, Result] = {}
        for member in group:
            self.on_open(member.source)

        def unreadable(source: Source, error: Exception) -> None:
            fail(waiting[source.name].image, error)

        for result in self.detect([m.source for m in group], on_error=unreadable):
            member = waiting[result.name]
            before = perf_counter()
            try:
                if self.draw is not None:
                    self.draw(member.image, result)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise OutputError(f"{parts.out}: cannot be written: {error.strerror}") from None
                fail(member.image, error)
                continue
            result.seconds["write"] = perf_counter() - before
            done[member.key] = result
        places = parts.put(done, [member.key for member in group if member.key not in done])
        outcome.places |= {str(m.image): places[m.key] for m in group if m.key in places}
        for result in done.values():
            outcome.images += 1
            outcome.tiles += len(result.tiles)
            outcome.objects += len(result["boxes"])
            outcome.network += result.seconds.get("network", 0.0)
            self.on_result(result)


def _reason(image: Path, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 2]"
        text = error.strerror
    if str(image) not in text:
        text = f"{image}: {text}"
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """One line of text: names of files may have line breaks, and bytes that are no text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def write_maps(results: Iterable[Result], path: Path) -> None:
    """`write_geojson`, which wants one system of coordinates: several get a file each.

    These are named detections-EPSG_32633.geojson, say, or detections-pixels.geojson. Files of an
    earlier call that would be outdated are removed.

    Args:
        results: are gone through more than once, so that never all of them are held.
        path: of the file.
    """
    systems = list(dict.fromkeys(_system(result) for result in results)) or ["pixels"]
    files = {path: systems[0]}
    if len(systems) > 1:
        files = {path.with_stem(f"{path.stem}-{_word(system)}"): system for system in systems}
    for file, system in files.items():
        write_geojson((result for result in results if _system(result) == system), file)
    for old in files_of(path) - set(files):
        old.unlink()


def files_of(path: Path) -> set[Path]:
    """The files that `write_maps` writes for this path, as far as they are there."""
    mine = re.compile(rf"{re.escape(path.stem)}(-(pixels|[A-Z]+_\d+|[0-9a-f]{{16}}))?")
    return {file for file in path.parent.glob(f"*{path.suffix}") if mine.fullmatch(file.stem)}


def _system(result: Result) -> str:
    return "pixels" if result.georeference is None else result.georeference.crs


def _word(system: str) -> str:
    """For names of files: an authority and a code, or a hash of WKT."""
    if system == "pixels" or re.fullmatch(r"[A-Z]+:\d+", system):
        return system.replace(":", "_")
    return hashlib.sha256(system.encode()).hexdigest()[:16]


def write_all(
    outcome: Outcome,
    images: Sequence[Path],
    parts: Parts,
    writers: Mapping[str, Callable[[Iterable[Result], Path], None]],
) -> None:
    """Write the results of all images into one file per format, and the failures into another.

    Args:
        outcome: of the images, in any order. Those of which it knows nothing become failures: where
            files come and go, processes do not agree on the groups.
        images: gives the order.
        parts: with the results.
        writers: file name -> function that writes results to a path.

    Raises:
        OutputError: if the output folder cannot be written.
    """
    order = {str(image): k for k, image in enumerate(images)}
    places = {name: outcome.places[name] for name in order if name in outcome.places}
    known = {*places, *(failure.image for failure in outcome.failures)}
    outcome.failures += [Failure(name, f"{name}: {_CHANGED}") for name in order.keys() - known]
    failures = sorted(outcome.failures, key=lambda failure: order[failure.image])
    with writing(parts.out):
        for name, write in writers.items():
            write(_Results(parts, places), parts.out / name)
        if not failures:
            (parts.out / FAILURES).unlink(missing_ok=True)
            return
        with text_file(parts.out / FAILURES, "surrogateescape") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["image", "reason"])
            rows.writerows([failure.image, failure.reason] for failure in failures)
