"""Results of many images in a folder, written as they come, so that a later run goes on."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyops._files import read_facts, read_tensors, remove_temporaries, replacing, write_tensors
from tinyops.inference.result import Result
from tinyops.inference.types import Georeference

_FORMAT = "tinyops-results-1"
_KEYS = ("boxes", "scores", "labels")

Place = tuple[str, int]  # a part and the number of a result in it


class OutputError(OSError):
    """The output folder cannot be written, whatever the image."""


@dataclass
class Index:
    """What the parts say: keys of images -> where their results are, and keys that failed."""

    places: dict[str, Place] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


class Parts:
    """Results in a hidden folder of the output folder, a file for each group of images.

    They stay there when all is done, so that a later call with more images detects in these alone.

    Args:
        out: the output folder.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / ".parts"
        self._settings = self.folder / "settings.json"

    def changes(self, settings: Mapping[str, Any]) -> list[str]:
        """How these settings, values of JSON, differ from those of the results that are there."""
        if not self._settings.is_file():
            return []
        old = json.loads(self._settings.read_text(encoding="utf-8"))
        new = json.loads(json.dumps(settings))
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return [f"{key} was {old.get(key)} and is {new.get(key)}" for key in changed]

    def begin(self, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Make the folders.

        Args:
            settings: what results depend on, values of JSON.
            fresh: remove the results that are there.

        Raises:
            OutputError: if that is not possible.
        """
        with writing(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, self.out):
                remove_temporaries(folder)
            if fresh:
                for path in self.folder.glob("*.safetensors"):
                    path.unlink()
            with replacing(self._settings) as temporary:
                temporary.write_text(json.dumps(settings), encoding="utf-8")

    def index(self) -> Index:
        """What is there; parts that are not whole are not."""
        index = Index()
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                _, facts = read_facts(path, [_FORMAT])
            except ValueError:
                continue
            index.failed |= set(facts["failed"])
            index.places |= {x["key"]: (path.name, k) for k, x in enumerate(facts["results"])}
        return index

    def put(self, results: Mapping[str, Result], failed: Sequence[str]) -> dict[str, Place]:
        """Write a part: results by the keys of their images, and keys of images without one.

        Returns:
            key -> where its result is.
        """
        keys = "\n".join([*results, "", *failed])
        name = hashlib.sha256(keys.encode()).hexdigest()[:32] + ".safetensors"
        entries: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for k, (key, result) in enumerate(results.items()):
            place = result.georeference
            entry = {"key": key, "width": result.width, "height": result.height}
            entry["categories"] = result.categories
            entries.append({**entry, "georeference": None if place is None else asdict(place)})
            tensors |= {f"{k}.{part}": result[part] for part in _KEYS}
        with writing(self.out):
            write_tensors(
                self.folder / name, _FORMAT, tensors, {"results": entries, "failed": list(failed)}
            )
        return {key: (name, k) for k, key in enumerate(results)}

    def results(self, places: Mapping[str, Place]) -> Iterator[Result]:
        """Results by the names of their images, without tiles and times."""
        current = ""
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        for name, (part, k) in places.items():
            if part != current:
                _, tensors, facts = read_tensors(self.folder / part, [_FORMAT])
                current = part
            entry = dict(facts["results"][k])
            place, categories = entry["georeference"], entry["categories"]
            if place is not None:
                place = Georeference(tuple(place["affine"]), place["crs"])
            yield Result(
                {key: tensors[f"{k}.{key}"] for key in _KEYS},
                name=name,
                width=entry["width"],
                height=entry["height"],
                categories=None if categories is None else tuple(categories),
                georeference=place,
            )


def image_key(image: Path) -> str:
    """What an image is known by: its path, its size in bytes and the time of its last change.

    Raises:
        OSError: if there is no such file.
    """
    facts = image.stat()
    return f"{digest(image)}-{facts.st_size}-{facts.st_mtime_ns}"


def digest(image: Path) -> str:
    """A short name for a path."""
    return hashlib.sha256(os.fsencode(os.path.abspath(image))).hexdigest()[:16]


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Errors of the file system become an OutputError of one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
