"""A plain value (TOML, JSON, a keyword argument) as the type of its setting."""

from __future__ import annotations

import operator
import os
import types
import typing
from typing import Any, Literal

from deeprl.config.fields import parse_seeds
from deeprl.config.schedules import read_schedule
from deeprl.errors import DeeprlError


def converted(key: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type: lists become tuples, integers floats; anything else must fit as it is.

    Numbers and arrays of NumPy (or torch) count as the plain values that they hold, and so does whatever Python takes
    for an index. Raises DeeprlError that begins with `key`.
    """
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        value = value.tolist()
    if key == "seeds" and hint is not int and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return parse_seeds([str(value)])
        except ValueError as error:
            raise DeeprlError(f"seeds: {error}") from error
    if key == "schedule" and isinstance(value, str | os.PathLike):
        value = read_schedule(value)
    for option in _options(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in arguments:
            return value
        if origin is tuple and isinstance(value, list | tuple | range):
            return tuple(converted(key, v, arguments[0]) for v in value)
        if option is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if option in (int, float) and _is_number(option, value):
            return float(value) if option is float else int(operator.index(value))
        plain = dict if origin is dict else option
        if isinstance(plain, type) and isinstance(value, plain) and plain is not int:
            return value
    wanted = " or ".join(_name(option) for option in _options(hint))
    raise DeeprlError(f"{key}: expected {wanted}, not {value!r}")


def _is_number(kind: type, value: Any) -> bool:
    """Whether a value is a number of a kind, int or float; an integer is a float, too, a bool is neither."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) if kind is float else hasattr(type(value), "__index__")


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _name(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return ", ".join(map(str, typing.get_args(option)))
    if typing.get_origin(option) is tuple:
        return f"a list of {'/'.join(map(_name, _options(typing.get_args(option)[0])))}"
    return {type(None): "nothing"}.get(option, getattr(option, "__name__", str(option)))
