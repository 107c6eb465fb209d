"""ImageNet in 32 x 32 pixels (Chrabaszcz et al.): its batches as pickles, or as npz files."""

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinyops.data.plain_pickle import one_line, read_pickle
from tinyops.data.small_images import SmallImages, labels_of, pixels_of

CLASSES = 1000
_FILES = {
    "train": tuple(f"train_data_batch_{k}" for k in range(1, 11)),
    "val": ("val_data",),
}
_LOCAL_HEADER = 30  # bytes of a zip archive before the name of a member; two lengths end them


def read_imagenet32(path: Path | str, split: Literal["train", "val"] = "train") -> SmallImages:
    """The images of ImageNet32; its labels 1..1000 become 0..999, and their names are "1".."1000".

    These numbers are an order of the authors' own, that of their map_clsloc.txt.

    Every batch stays in the memory that it was read into, and in npz files that are not compressed
    it stays on the disk. (The training images take 3.9 GB.)

    Args:
        path: folder of train_data_batch_1 to 10 and val_data, each with or without ".npz"; they may
            lie one folder deeper.
        split: which of them.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming file and field, what was expected and what came.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder of ImageNet32, found none")
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    parts, labels = [], []
    for name in _FILES[split]:
        places = (f / (name + end) for f in folders for end in ("", ".npz"))
        file = next((p for p in places if p.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{path}: expected {name} or {name}.npz in it, found neither")
        if file.suffix == ".npz":
            values = {field: _member(file, field) for field in ("data", "labels")}
        else:
            with file.open("rb") as opened:
                values = read_pickle(opened, str(file))
        parts.append(pixels_of(values.get("data"), f"{file}: data"))
        numbers = values.get("labels")
        labels.append(labels_of(numbers, len(parts[-1]), CLASSES, f"{file}: labels", first=1))
    return SmallImages(tuple(parts), np.concatenate(labels), tuple(map(str, range(1, CLASSES + 1))))


def _member(path: Path, field: str) -> NDArray[Any]:
    """An array of an npz file, on the disk if it is not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{field}.npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"expected version 1.0 of the array, got {version}")
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
                before = file.tell()
            size = before + math.prod(shape) * dtype.itemsize
            if dtype.hasobject or size != member.file_size:
                raise ValueError(
                    f"expected {size} bytes for {list(shape)} {dtype}, got {member.file_size}"
                )
            if member.compress_type != zipfile.ZIP_STORED:
                with archive.open(member) as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        start = _start(path, member) + before
        return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")
    except KeyError:
        raise ValueError(f"{path}: {field} must be an array, got none") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path}: {field} must be an array of an npz file: {one_line(error)}"
        ) from None


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin; only the file itself says how long its header is."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    return member.header_offset + _LOCAL_HEADER + sum(struct.unpack("<26xHH", header))
