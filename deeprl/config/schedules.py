"""Schedules: files that say from which step on the agents of a run have which settings.

[[from]]
step = 0                # those of the start, in the place of what the run is given otherwise
actor_lr = 3e-4

[[from]]
step = 20_000           # after the evaluation of this step, if there is one
actor_lr = 1e-4
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from deeprl.config.toml import read_toml
from deeprl.errors import DeeprlError

Entries = Sequence[Mapping[str, Any]]  # of a schedule: `step`, and settings by name


def read_schedule(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """The entries of a schedule in a TOML file; "" has none. Raises DeeprlError that names the file."""
    if not os.fspath(path):
        return ()
    try:
        _, content = read_toml(path)
    except DeeprlError as error:
        raise DeeprlError(f"schedule: {error}") from error
    entries = content.get("from")
    if content.keys() != {"from"} or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise DeeprlError(f"schedule: {os.fspath(path)}: expected tables [[from]], each with a step and settings")
    return tuple(entries)


def schedule_text(entries: Entries, remarks: Sequence[str] = ()) -> str:
    """A schedule as the text of a file, with remarks as its first lines: `read_schedule` gives the same numbers."""
    lines = [f"# {remark}" for remark in remarks]
    for entry in entries:
        lines += ["", "[[from]]", *(f"{name} = {value!r}" for name, value in entry.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def changes_between(entries: Entries, before: int, now: int) -> dict[str, float]:
    """The settings that a schedule changes after the step `before`, up to the step `now`; the last change counts."""
    found: dict[str, float] = {}
    for entry in entries:
        if before < entry["step"] <= now:
            found |= {name: value for name, value in entry.items() if name != "step"}
    return found


def require_steps(entries: Entries) -> None:
    """Raise DeeprlError unless each entry has a step, later than that of the entry before, and a setting."""
    last = -1
    for entry in entries:
        step = entry.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise DeeprlError(f"schedule: each [[from]] needs a step, a whole number from 0 on, not {step!r}")
        if step <= last:
            raise DeeprlError(f"schedule: step {step} stands behind step {last}; steps must increase")
        if len(entry) == 1:
            raise DeeprlError(f"schedule: step {step} has no settings")
        last = step


def _named(entries: Entries) -> list[str]:
    return [f"{len(entries)} steps" if entries else ""]


Schedule = Annotated[
    tuple[dict[str, Any], ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_schedule(words[0]),
        is_instance=lambda x: isinstance(x, tuple),
        str_from_instance=_named,
    ),
]
