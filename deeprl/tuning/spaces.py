"""Search spaces: the settings that a search chooses, each with its range, from a TOML file or of the library's own.

[learning_rate]                                     # any name
settings = ["actor_lr", "critic_lr", "alpha_lr"]    # those that take the number; by default the one of that name
low = 1e-5
high = 2e-3
scale = "log"                                       # linear (default); log; complement: 1 - value in log

[epsilon_steps]
low = 0.005
high = 0.5
times_steps = true                                  # shares of the steps of a run

[hidden]
choices = [[64, 64], [256, 256]]                    # any values of the setting
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deeprl.config import RunConfig, setting
from deeprl.config.toml import read_toml
from deeprl.errors import DeeprlError, nearest

Scale = Literal["linear", "log", "complement"]
Point = Mapping[str, float | str]  # what was drawn, by parameter: a `Range`'s inner number, a choice as JSON text
_SCALES = ("linear", "log", "complement")
_OF_RANGE, _OF_CHOICE = {"settings", "low", "high", "scale", "times_steps"}, {"settings", "choices"}


@dataclass(frozen=True)
class Range:
    """Numbers in [low, high], for all of `settings` the same.

    scale: `linear`; `log`: uniform in the logarithm; `complement`: 1 - value is uniform in the logarithm, for discounts
    near 1. times_steps: the numbers are shares of a run's steps. whole: of settings that are whole numbers.

    Its inner number is what a sampler draws: 1 - value for `complement`, else the value (or share).
    """

    settings: tuple[str, ...]
    low: float
    high: float
    scale: Scale = "linear"
    times_steps: bool = False
    whole: bool = False

    @property
    def inner(self) -> tuple[float, float]:
        """The bounds of the inner number."""
        return (1.0 - self.high, 1.0 - self.low) if self.scale == "complement" else (self.low, self.high)

    def value(self, inner: float | str, steps: int) -> float | int:
        """What the settings get for an inner number."""
        number = float(inner)
        number = 1.0 - number if self.scale == "complement" else number
        number = min(max(number, self.low), self.high)  # rounding must not leave the range
        number = number * steps if self.times_steps else number
        return round(number) if self.whole else number

    def drawn(self, value: Any, steps: int) -> float | None:
        """The opposite of `value`; None for what lies outside."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        number = value / steps if self.times_steps else float(value)
        if not self.low <= number <= self.high:
            return None
        low, high = self.inner
        return min(max(1.0 - number if self.scale == "complement" else number, low), high)


@dataclass(frozen=True)
class Choice:
    """One of some values, plain JSON; what a sampler draws is the JSON text of one."""

    settings: tuple[str, ...]
    choices: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        return [json.dumps(value) for value in self.choices]

    def value(self, inner: float | str, steps: int) -> Any:
        """What the settings get."""
        return json.loads(str(inner))

    def drawn(self, value: Any, steps: int) -> str | None:
        """The opposite of `value`; None for what is not among them."""
        text = json.dumps(value)
        return text if text in self.texts else None


Parameter = Range | Choice


class Space(NamedTuple):
    """parameters: by name. source: where they were published, or the file that they come from."""

    parameters: Mapping[str, Parameter]
    source: str

    def settings(self, point: Point, steps: int) -> dict[str, Any]:
        """The settings that a point stands for, by their names."""
        return {
            name: parameter.value(point[key], steps)
            for key, parameter in self.parameters.items()
            for name in parameter.settings
        }

    def point(self, config: RunConfig) -> dict[str, float | str] | None:
        """Where a run with these settings lies; None if it lies outside, or settings of one parameter differ."""
        found: dict[str, float | str] = {}
        for key, parameter in self.parameters.items():
            values = [json.loads(json.dumps(getattr(config, name))) for name in parameter.settings]
            inner = parameter.drawn(values[0], config.steps)
            if inner is None or any(value != values[0] for value in values):
                return None
            found[key] = inner
        return found

    def plain(self) -> dict[str, Any]:
        """As it stands in a TOML file."""
        return {key: _plain(parameter) for key, parameter in self.parameters.items()}


def _plain(parameter: Parameter) -> dict[str, Any]:
    if isinstance(parameter, Choice):
        return {"settings": list(parameter.settings), "choices": list(parameter.choices)}
    bounds = {"settings": list(parameter.settings), "low": parameter.low, "high": parameter.high}
    return bounds | {"scale": parameter.scale} | ({"times_steps": True} if parameter.times_steps else {})


def read_space(path: str | Path, config: type[RunConfig]) -> Space:
    """A space from a TOML file. Raises DeeprlError that names the file and the parameter."""
    _, content = read_toml(path)
    try:
        return space_of(content, config, str(path))
    except DeeprlError as error:
        raise DeeprlError(f"{path}: {error}") from error


def space_of(content: Mapping[str, Any], config: type[RunConfig], source: str) -> Space:
    """A space from tables as in a TOML file. Raises DeeprlError that begins with the name of a parameter."""
    if not content:
        raise DeeprlError("a space needs at least one parameter")
    found = {name: _parameter(name, table, config) for name, table in content.items()}
    taken: dict[str, str] = {}
    for name, parameter in found.items():
        for each in parameter.settings:
            if each in taken:
                raise DeeprlError(f"{name}: {each} is chosen by {taken[each]} already")
            taken[each] = name
    return Space(found, source)


def _parameter(name: str, table: Any, config: type[RunConfig]) -> Parameter:
    if not isinstance(table, dict):
        raise DeeprlError(f"{name}: expected a table [{name}] with low and high, or choices")
    known = _OF_CHOICE if "choices" in table else _OF_RANGE
    for key in table:
        if key not in known:
            raise DeeprlError(f"{name}: unknown key {key}{nearest(key, known)}")
    settings = tuple(table.get("settings", [name]))
    for each in settings:
        if each in ("seeds", "out", "label", "steps"):
            raise DeeprlError(f"{name}: {each} cannot be searched")
        _require_setting(name, each, config)
    if "choices" in table:
        return _choice(name, table, settings)
    return _range(name, table, settings, config)


def _require_setting(name: str, each: str, config: type[RunConfig]) -> None:
    known = config.__dataclass_fields__
    if each not in known:
        raise DeeprlError(f"{name}: unknown setting {each}{nearest(each, known)}")


def _choice(name: str, table: Mapping[str, Any], settings: tuple[str, ...]) -> Choice:
    values = table["choices"]
    if not isinstance(values, list) or not values:
        raise DeeprlError(f"{name}: choices: a list of values is needed, not {values!r}")
    found = Choice(settings, tuple(values))
    if len(set(found.texts)) < len(values):
        raise DeeprlError(f"{name}: choices: one of them stands there twice")
    return found


def _range(name: str, table: Mapping[str, Any], settings: tuple[str, ...], config: type[RunConfig]) -> Range:
    numbers = [table.get(key) for key in ("low", "high")]
    if any(isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers):
        raise DeeprlError(f"{name}: low and high: two numbers are needed, not {numbers[0]!r} and {numbers[1]!r}")
    scale = table.get("scale", "linear")
    if scale not in _SCALES:
        raise DeeprlError(f"{name}: scale: expected {', '.join(_SCALES)}, not {scale!r}")
    whole = not isinstance(_default(config, settings[0]), float)
    found = Range(settings, float(numbers[0]), float(numbers[1]), scale, bool(table.get("times_steps")), whole)  # type: ignore[arg-type]
    if not found.low < found.high:
        raise DeeprlError(f"{name}: low {found.low:g} is not below high {found.high:g}")
    if scale != "linear" and found.inner[0] <= 0:
        what = "low must be above 0" if scale == "log" else "high must be below 1"
        raise DeeprlError(f"{name}: {what} on a scale of logarithms")
    return found


def _default(config: type[RunConfig], name: str) -> Any:
    default = config.__dataclass_fields__[name].default
    return float("nan") if isinstance(default, str) else default  # `auto`, in the place of a number


def require_inside(space: Space, config: RunConfig) -> None:
    """Raise DeeprlError, naming parameter and setting, for a space with values that a setting may not have.

    config: of a run to which each is added: bounds of single settings, and how they go together.
    """
    kind = type(config)
    for key, parameter in space.parameters.items():
        inner = parameter.texts if isinstance(parameter, Choice) else parameter.inner
        for each in inner:
            value = parameter.value(each, config.steps)
            try:
                dataclasses.replace(config, **{name: setting(kind, name, value) for name in parameter.settings})
            except DeeprlError as error:
                raise DeeprlError(f"{key}: {value!r} cannot be tried: {error}") from error
