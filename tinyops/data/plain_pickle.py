"""Pickles of numbers, texts and numpy's arrays, read without running anything that they name."""

import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"[<>|=]?[biuf][1248]")


class _Type:
    """Stands for numpy's dtype, of plain numbers alone: arrays of objects hold pointers."""

    def __init__(self, text: Any, *_: Any) -> None:
        text = _text(text)
        if not _NUMBER.fullmatch(text):
            raise pickle.UnpicklingError(f"arrays must consist of numbers, got the dtype {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))


class _Array:
    """Stands for numpy's array, which is made empty and then gets its state."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        self.values = _from_buffer(data, kind, shape, "F" if is_fortran else "C")


def _from_buffer(data: Any, kind: _Type, shape: Any, order: Any) -> NDArray[Any]:
    """The array in these bytes, not a copy of them."""
    found = np.frombuffer(data, kind.dtype)
    return found.reshape(shape, order="F" if _text(order) == "F" else "C")


def _scalar(kind: _Type, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype)[0].item()


def _encode(text: str, encoding: Any) -> bytes:
    """How bytes are written by Python 3 for Python 2."""
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"texts must be of latin1, got {encoding!r}")
    return text.encode("latin1")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


# Everything that a file may name, and what is done instead. numpy._core is numpy 2's numpy.core.
_KNOWN: dict[str, Callable[..., Any] | str] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": "ndarray",  # an argument of the next, which is not called itself
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if path not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {path}, which is not run")
        return _KNOWN[path]


def read_pickle(file: IO[bytes], name: str) -> dict[str, Any]:
    """A pickled dict with keys of text or bytes; its arrays share the memory of what was read.

    Args:
        file: its content.
        name: of the file, for messages.

    Returns:
        Keys as text; values as they are, texts of Python 2 as bytes.

    Raises:
        ValueError: naming the file, if it is damaged, is no dict, or names anything besides plain
            values and numpy's arrays of numbers. Nothing in it is executed.
    """
    try:
        found = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # of any class, where the file is no pickle
        raise ValueError(
            f"{name}: expected a pickle of numbers, texts and arrays of numpy: "
            f"{type(error).__name__}: {error}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a pickled dict, got {type(found).__name__}")
    return {_text(k): v.values if isinstance(v, _Array) else v for k, v in found.items()}
