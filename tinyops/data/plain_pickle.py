"""Pickles of numbers, texts and numpy's arrays, read without running anything that they name."""

import pickle
import re
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"[<>|=]?[biuf][1248]")
_LONGEST = 200  # letters of a message, which may quote the file


class _Type:
    """Stands for numpy's dtype, of plain numbers alone: arrays of objects hold pointers."""

    def __init__(self, text: Any, *_: Any) -> None:
        text = _text(text)
        if not _NUMBER.fullmatch(text):
            raise pickle.UnpicklingError(f"arrays must consist of numbers, got the dtype {text!r}")
        self.dtype = np.dtype(text)

    def build(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))


class _Array:
    """Stands for numpy's array, which is made empty and then gets its state."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] = np.zeros(0)

    def build(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        self.values = _values(data, kind, shape, "F" if is_fortran else "C")


def _from_buffer(data: Any, kind: _Type, shape: Any, order: Any) -> _Array:
    found = _Array()
    found.values = _values(data, kind, shape, order)
    return found


def _values(data: Any, kind: _Type, shape: Any, order: Any) -> NDArray[Any]:
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
    if not isinstance(value, (bytes, str)):
        raise pickle.UnpicklingError(f"expected a text, got {type(value).__name__}")
    return value.decode("latin1") if isinstance(value, bytes) else value


# Everything that a file may name, and what is done instead. numpy._core is numpy 2's numpy.core.
_KNOWN: dict[str, Callable[..., Any] | str] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": "ndarray",  # an argument of the next, which is not called itself
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
}
# Every instruction that a file may have: no sets, no objects of classes, no extensions.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT
    SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    REDUCE
"""
_OWN = pickle._Unpickler.dispatch  # code of an instruction -> what is done
_ALLOWED = {code: _OWN[code] for name in _INSTRUCTIONS.split() for code in getattr(pickle, name)}


class _Unpickler(pickle._Unpickler):
    """The one written in Python: that in C takes as much memory as a file's memo says it needs.

    Tuples become lists, which cannot be keys: to hash nested tuples may take forever.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if path not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {path!r}, which is not run")
        return _KNOWN[path]

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it has an instruction that these do not need")

    def _last(self, count: int) -> None:
        self.stack[-count:] = [self.stack[-count:]]

    def _build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].build(state)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **dict.fromkeys(range(256), _refuse),
        **_ALLOWED,
    }
    dispatch[pickle.BYTEARRAY8[0]] = _OWN[pickle.BINBYTES8[0]]  # makes no copy
    dispatch[pickle.EMPTY_TUPLE[0]] = _OWN[pickle.EMPTY_LIST[0]]
    dispatch[pickle.TUPLE[0]] = _OWN[pickle.LIST[0]]
    dispatch[pickle.TUPLE1[0]] = lambda self: self._last(1)
    dispatch[pickle.TUPLE2[0]] = lambda self: self._last(2)
    dispatch[pickle.TUPLE3[0]] = lambda self: self._last(3)
    dispatch[pickle.BUILD[0]] = _build


def read_pickle(file: IO[bytes], name: str) -> dict[str, Any]:
    """A pickled dict with keys of text or bytes; its arrays share the memory of what was read.

    Args:
        file: its content.
        name: of the file, for messages.

    Returns:
        Keys as text; values as they are, texts of Python 2 as bytes, tuples as lists.

    Raises:
        ValueError: naming the file, if it is damaged, is no dict, or names anything besides plain
            values and numpy's arrays of numbers. Nothing in it is executed.
    """
    try:
        found = _Unpickler(file, encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"expected a dict, got {type(found).__name__}")
        return {_text(k): v.values if isinstance(v, _Array) else v for k, v in found.items()}
    except Exception as error:  # of any class, where the file is no pickle
        raise ValueError(
            f"{name}: expected a pickle of numbers, texts and arrays of numpy: {one_line(error)}"
        ) from None


def one_line(error: Exception) -> str:
    """What an error says, which may quote a file, in few letters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")[:_LONGEST]
