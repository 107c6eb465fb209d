"""Files that are whole or not there, and tensors with facts about them in one file."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MODEL = "tinyops-model-1"
TRAINING = "tinyops-training-1"  # the state of a training, in which there is a model

_FORMAT = "format"


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary file in the folder of `path`, which takes its place when the block ends well.

    It is on the disk before it is renamed, so that a crash leaves the old file or the new one.
    """
    path = Path(path)  # the name of which may be as long as names can be
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~umask())  # mkstemp makes files that nobody else can read
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes it when the block ends well.

    Raises:
        FileExistsError: there is something other than an empty folder.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists: choose another folder or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~umask())
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what `replacing` left there in processes that were killed."""
    for path in folder.glob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The bits that new files of this process do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_tensors(
    path: Path | str, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write a safetensors file.

    Args:
        path: of the file; it is replaced when the new one is complete.
        kind: what the file is; see `read_tensors`.
        tensors: of any device and layout; the values are kept bit by bit.
        facts: values of JSON.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if a fact is no value of JSON.
    """
    metadata = {_FORMAT: kind}
    for name, value in facts.items():
        try:
            metadata[name] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must consist of values of JSON: {error}") from None
    # A copy of each, for tensors that share memory, which the format does not allow.
    copies = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary, metadata)
        except SafetensorError as error:  # of a full disk
            raise OSError(f"{path}: {error}") from error


def kind_of(path: Path | str) -> str | None:
    """What kind of file this is; None: none of this package."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(_FORMAT)
    except SafetensorError:
        return None


def read_facts(path: Path | str, kinds: Collection[str]) -> tuple[str, dict[str, Any]]:
    """What kind of file this is, and its facts.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file, if it is not complete or of no kind in `kinds`.
    """
    with _open(path, kinds, "cpu") as file:
        return _facts(file.metadata())


def read_tensors(
    path: Path | str, kinds: Collection[str], device: torch.device | str = "cpu"
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The kind, the tensors and the facts of a file of `write_tensors`.

    Nothing in the file is executed. Raises what `read_facts` raises.
    """
    with _open(path, kinds, str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kind, facts = _facts(file.metadata())
    return kind, tensors, facts


def _facts(metadata: dict[str, str]) -> tuple[str, dict[str, Any]]:
    facts = {name: json.loads(value) for name, value in metadata.items() if name != _FORMAT}
    return metadata[_FORMAT], facts


@contextmanager
def _open(path: Path | str, kinds: Collection[str], device: str) -> Iterator[Any]:
    wanted = " or ".join(kinds)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a file of format {wanted}, found none")
    try:
        with safe_open(path, "pt", device=device) as file:
            kind = (file.metadata() or {}).get(_FORMAT)
            if kind not in kinds:
                raise ValueError(f"{path}: expected a file of format {wanted}, got {kind}")
            yield file
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: expected a complete safetensors file of format {wanted}: {error}"
        ) from None
