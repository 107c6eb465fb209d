"""CIFAR-100 as its author publishes it: the edition for Python, and the binary one."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np

from tinyops.data.plain_pickle import one_line, read_pickle
from tinyops.data.small_images import BYTES, SmallImages, labels_of, pixels_of

CLASSES = 100
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"  # of cifar-100-python.tar.gz
_FILES = {"train": "train", "val": "test"}
_FOLDERS = ("", "cifar-100-python", "cifar-100-binary")
_NAMES = {"": "meta", ".bin": "fine_label_names.txt"}  # of the classes, by edition


def read_cifar100(
    path: Path | str, split: Literal["train", "val"] = "train", *, verify: bool = False
) -> SmallImages:
    """The images of CIFAR-100 with their 100 fine labels.

    Args:
        path: cifar-100-python.tar.gz, cifar-100-binary.tar.gz, or what is in them: that folder, or
            the folder around it. Of an archive nothing is written to the disk.
        split: "val" are the 10,000 images that the set is tested with.
        verify: refuse an archive that is not, byte by byte, the published edition for Python.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming file and field, what was expected and what came.
    """
    path, stem = Path(path), _FILES[split]
    if verify:
        _verify(path)
    wanted = {stem, f"{stem}.bin", *_NAMES.values()}
    found = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, wanted)
    edition = next((end for end in _NAMES if stem + end in found), None)
    if edition is None:
        raise FileNotFoundError(f"{path}: expected {stem} or {stem}.bin in it, found neither")
    classes = _classes(found, _NAMES[edition], path)
    name, content = f"{path}: {stem}{edition}", found[stem + edition]
    if edition == ".bin":
        if content.size == 0 or content.size % (2 + BYTES):
            raise ValueError(
                f"{name} must consist of images of {2 + BYTES} bytes, got {content.size} bytes"
            )
        rows = content.reshape(-1, 2 + BYTES)  # coarse label, fine label, pixels
        data, labels = rows[:, 2:], rows[:, 1]
    else:
        data, labels = content.get("data"), content.get("fine_labels")
    pixels = pixels_of(data, f"{name}: data")
    numbers = labels_of(labels, len(pixels), CLASSES, f"{name}: fine_labels", first=0)
    return SmallImages((pixels,), numbers, classes)


def _from_folder(path: Path, wanted: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in wanted:
        file = next((f for x in _FOLDERS if (f := path / x / name).is_file()), None)
        if file is None:
            continue
        if file.suffix == ".bin" and file.stat().st_size:
            found[name] = np.memmap(file, np.uint8, "r")
        else:
            with file.open("rb") as opened:
                found[name] = _content(opened, name, path)
    return found


def _from_archive(path: Path, wanted: set[str]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a folder or an archive of CIFAR-100, found none")
    found: dict[str, Any] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = _content(file, name, path)
            assert archive.fileobj is not None
            while archive.fileobj.read(2**20):  # to the checksum at the end
                pass
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete tar archive: {one_line(error)}") from None
    return found


def _content(file: IO[bytes], name: str, path: Path) -> Any:
    if name.endswith(".txt"):
        return {"fine_label_names": file.read().split()}
    if name.endswith(".bin"):
        return np.frombuffer(file.read(), np.uint8)
    return read_pickle(file, f"{path}: {name}")


def _classes(found: Mapping[str, Any], name: str, path: Path) -> tuple[str, ...]:
    if name not in found:
        raise FileNotFoundError(f"{path}: expected {name} in it, which names the classes")
    names = found[name].get("fine_label_names")
    texts = isinstance(names, list) and all(isinstance(x, (str, bytes)) for x in names)
    if not texts or len(names) != CLASSES:
        size = f" of {len(names)}" if isinstance(names, list) else ""
        raise ValueError(
            f"{path}: {name}: fine_label_names must be a list of {CLASSES} names, "
            f"got {type(names).__name__}{size}"
        )
    return tuple(x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in names)


def _verify(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: only an archive can be verified, and this is none")
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != MD5:
        raise ValueError(f"{path}: expected the archive with md5 {MD5}, got {digest.hexdigest()}")
