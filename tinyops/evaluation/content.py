"""Content of JSON, from a file or as it was loaded, and what is wrong with it in one line."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def load_json(source: Any, argument: str) -> tuple[Any, str]:
    """The content, and how messages call it.

    Args:
        source: a path to read, or content, which is given back as it is.
        argument: what the caller names it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON.
    """
    if not isinstance(source, str | os.PathLike):
        return source, argument
    path = Path(source)
    data = path.read_bytes()
    try:
        return msgspec.json.decode(data), str(path)
    except msgspec.DecodeError:
        try:
            return json.loads(data), str(path)  # knows NaN, so that its field can be named
        except ValueError as error:  # of JSON, or of the text's encoding
            raise ValueError(f"{path} is not JSON: {error}") from None


def convert(value: Any, kind: type[T], where: str) -> T:
    """`value` as `kind`, a type of msgspec's.

    Raises:
        ValueError: naming `where` with the field and index, what was expected and what came.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise ValueError(f"{where}{place.rstrip('`')}: {text}") from None
