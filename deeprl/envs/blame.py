"""Whose fault it is that an environment cannot be made or drawn: package, version, MuJoCo."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from types import TracebackType

import gymnasium as gym

from deeprl.errors import one_line

_OF_PREFIX = {"ALE": "ale_py", "dmc": "dm_control"}  # the packages behind those that deeprl makes itself


def involves_mujoco(error: BaseException) -> bool:
    """Whether MuJoCo, its bindings or what builds on them took part in an error or in those that it came from."""
    return any("mujoco" in name or name.partition(".")[0] == "dm_control" for name in _modules(error))


def packages_of(env: str, error: BaseException) -> str:
    """` (gymnasium-robotics 1.4.2, mujoco 3.3.7)`: the package of an environment, and MuJoCo if it took part.

    env: as `make_env` takes it. "" for an environment that is in no installed package.
    """
    packages = [_package(env), "mujoco" if involves_mujoco(error) else ""]
    told = [f"{name} {_version(name)}" for name in dict.fromkeys(packages) if name and _version(name)]
    return f" ({', '.join(told)})" if told else ""


def reason(error: BaseException) -> str:
    """What an error says, in one line; with its type where it says little, and with its place where it says nothing."""
    said = one_line(error)
    if not said:
        module, line = place(error)
        return f"{type(error).__name__} in {module}, line {line}" if module else type(error).__name__
    return f"{type(error).__name__}: {said}" if isinstance(error, LookupError | AssertionError) else said


def _package(env: str) -> str:
    """The distribution that an environment is of, "" if that is not known."""
    module = _OF_PREFIX.get(env.partition("/")[0], "")
    spec = gym.registry.get(env.rpartition(":")[2])
    entry = getattr(spec, "entry_point", None)
    if not module and entry is not None:
        module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    module = (module or env.rpartition(":")[0]).partition(".")[0]
    return next(iter(metadata.packages_distributions().get(module, ())), "") if module else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _modules(error: BaseException) -> Iterator[str]:
    """Names of the modules that an error passed through, and of that of its type; the same of what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield type(seen).__module__
        trace: TracebackType | None = seen.__traceback__
        while trace is not None:
            yield str(trace.tb_frame.f_globals.get("__name__", ""))
            trace = trace.tb_next
        seen = seen.__cause__ or seen.__context__


def place(error: BaseException) -> tuple[str, int]:
    """Module and line that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_lineno) if trace is not None else ("", 0)
