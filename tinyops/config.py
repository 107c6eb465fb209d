"""Dataclasses as YAML files and back; every mistake in a file is an error that names its place."""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from tinyops._files import replacing

T = TypeVar("T")
_ERROR = object()


def load_yaml(cls: type[T], path: Path | str, *, missing: Any = _ERROR) -> T:
    """Read a dataclass.

    Args:
        cls: the dataclass. Its fields may be bool, int, float, str, Path, None, Any, Literal,
            dataclasses, and tuple, list, dict and unions of these.
        path: of the file, a mapping; fields with a default may be left out.
        missing: stands for fields without a value and a default; without it they are errors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the field, what was expected and what came.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML: {error}") from None
    try:
        return from_plain(cls, {} if values is None else values, missing=missing)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def dump_yaml(obj: Any, path: Path | str) -> None:
    """Write a dataclass so that `load_yaml` gives an equal one."""
    text = yaml.dump(to_plain(obj), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def parse_yaml(text: str) -> Any:
    """A value of YAML, with 1e-3 as a number and a key given twice as an error."""
    return yaml.load(text, Loader=_Loader)


def to_plain(obj: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as strings."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_plain(getattr(obj, f.name)) for f in dataclasses.fields(obj) if f.init}
    if isinstance(obj, dict):
        return {key: to_plain(value) for key, value in obj.items()}
    if isinstance(obj, (tuple, list)):
        return [to_plain(value) for value in obj]
    return str(obj) if isinstance(obj, Path) else obj


def from_plain(expected: Any, value: Any, where: str = "", *, missing: Any = _ERROR) -> Any:
    """A value of type `expected` from what YAML or JSON gives; the inverse of `to_plain`.

    Args:
        expected: a type; see `load_yaml`.
        value: of dicts, lists, strings, numbers, bools and None.
        where: dotted path of the value, for messages.
        missing: see `load_yaml`.

    Raises:
        ValueError: naming the dotted path, what was expected and what came.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if dataclasses.is_dataclass(expected):
        return _dataclass(expected, value, where, missing)
    if origin in (Union, types.UnionType):
        for member in sorted(arguments, key=lambda member: member is float):  # 1 stays an int
            try:
                return from_plain(member, value, where, missing=missing)
            except ValueError as error:
                if dataclasses.is_dataclass(member) and isinstance(value, dict):
                    raise error  # says more than that no member fits
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif origin in (tuple, list) and isinstance(value, list):
        return _sequence(expected, value, where)
    elif origin is dict and isinstance(value, dict):
        return {
            from_plain(arguments[0], key, f"a key of {where}"): from_plain(
                arguments[1], item, f"{where}.{key}"
            )
            for key, item in value.items()
        }
    elif (expected in (None, type(None)) and value is None) or type(value) is expected:
        return value
    elif expected is float and type(value) is int:
        return float(value)
    elif expected is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"{where or 'value'} must be {_name(expected)}, got {_shown(value)}")


def _dataclass(cls: Any, value: Any, where: str, missing: Any) -> Any:
    prefix = f"{where}." if where else ""
    if not isinstance(value, dict):
        raise ValueError(
            f"{where or 'the file'} must be a mapping of the fields of {cls.__name__}, "
            f"got {_shown(value)}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            raise ValueError(f"{prefix}{key} is unknown, expected one of {', '.join(fields)}")
    kinds = typing.get_type_hints(cls)
    given = {
        name: from_plain(kinds[name], item, prefix + name, missing=missing)
        for name, item in value.items()
    }
    for name, field in fields.items():
        unset = field.default is field.default_factory is dataclasses.MISSING
        if unset and name not in given:
            if missing is _ERROR:
                raise ValueError(f"{prefix}{name} is missing, expected {_name(kinds[name])}")
            given[name] = missing
    try:
        return cls(**given)
    except ValueError as error:  # of __post_init__
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _sequence(expected: Any, value: list[Any], where: str) -> Any:
    origin, members = typing.get_origin(expected), typing.get_args(expected)
    if origin is list or members[-1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ValueError(f"{where or 'value'} must be {_name(expected)}, got {_shown(value)}")
    items = zip(members, value, strict=True)
    return origin(from_plain(kind, item, f"{where}[{k}]") for k, (kind, item) in enumerate(items))


def _name(expected: Any) -> str:
    if typing.get_origin(expected) in (Union, types.UnionType):
        return " or ".join(_name(member) for member in typing.get_args(expected))
    if typing.get_origin(expected) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(expected)))
    if expected in (None, type(None)):
        return "null"
    return expected.__name__ if type(expected) is type else str(expected)


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (place, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", place.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


for _class in (_Loader, _Dumper):  # YAML 1.1 takes 1e-3 for a string, YAML 1.2 for a number
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
