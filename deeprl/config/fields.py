"""Types of settings: how each is written on the command line and shown in `--help`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from deeprl.errors import DeeprlError


def parse_seeds(words: Iterable[str]) -> tuple[int, ...]:
    """Seeds from words such as "0-3", "7" or "0,2,5-9"."""
    seeds: list[int] = []
    for word in ",".join(words).split(","):
        if not (match := re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", word)):
            raise ValueError(f"seeds are numbers and ranges such as 0-3 or 0,2,5, not {word!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"a range of seeds goes up, unlike {word!r}")
        seeds += range(first, last + 1)
    return tuple(seeds)


def plain_json(name: str, value: Any) -> Any:
    """A copy of `value` that is what JSON gives back, with lists in place of tuples; name: what messages call it.

    Raises DeeprlError for what JSON would change or cannot hold: keys that are no text, NumPy's arrays and numbers, NaN
    and infinity, objects.
    """
    require_finite(name, value)
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise DeeprlError(f"{name}: has the key {key!r}; settings are kept as JSON, whose keys are text")
        return {key: plain_json(f"{name}.{key}", v) for key, v in value.items()}
    if type(value) in (list, tuple):
        return [plain_json(f"{name}[{i}]", v) for i, v in enumerate(value)]
    if type(value) in (bool, int, float, str, type(None)):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise DeeprlError(
        f"{name}: is of type {kind}; settings are kept as JSON: numbers, text, true, false, lists, objects"
    )


def require_finite(name: str, value: Any) -> None:
    """Raise DeeprlError for a setting that is NaN or infinite, or a tuple or list that holds such a number."""
    if isinstance(value, tuple | list):
        for each in value:
            require_finite(name, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DeeprlError(f"{name}: must be a finite number, not {value}")


def _numbers_or_auto(words: list[str]) -> float | tuple[float | str, ...] | str:
    values = tuple(w if w == "auto" else float(w) for w in words)
    return values[0] if len(values) == 1 else values


def _numbers(words: list[str]) -> float | tuple[float, ...]:
    values = tuple(float(w) for w in words)
    return values[0] if len(values) == 1 else values


def _words(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]


def _json_object(words: list[str]) -> dict[str, Any]:
    value = json.loads(words[0])
    if not isinstance(value, dict):
        raise TypeError(f'expected a JSON object such as {{"speed": 2}}, not {words[0]}')
    return value


Seeds = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="SEEDS",
        instance_from_str=parse_seeds,
        is_instance=lambda x: isinstance(x, tuple),
        str_from_instance=_words,
    ),
]
PerAgent = Annotated[
    float | tuple[float, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT [FLOAT ...]",
        instance_from_str=_numbers,
        is_instance=lambda x: isinstance(x, float | int | tuple),
        str_from_instance=_words,
    ),
]
PerAgentText = Annotated[
    str | tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="TEXT [TEXT ...]",
        instance_from_str=lambda words: words[0] if len(words) == 1 else tuple(words),
        is_instance=lambda x: isinstance(x, str | tuple),
        str_from_instance=_words,
    ),
]
PerAgentOrAuto = Annotated[
    float | tuple[float | Literal["auto"], ...] | Literal["auto"],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="auto|FLOAT [auto|FLOAT ...]",
        instance_from_str=_numbers_or_auto,
        is_instance=lambda x: x == "auto" or isinstance(x, float | int | tuple),
        str_from_instance=_words,
    ),
]
Json = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=lambda x: [json.dumps(x)],
    ),
]
