"""Agents of several runs, taken out where these stand, as one run that goes on with them.

An agent draws its numbers by its own seed and learns from its own rows, so that it makes no difference to it whose
neighbour it is: gathered, it goes on as it would have gone on where it was. The runs must have come equally far under
the same settings, but for those that agents have of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deeprl.config import RunConfig, config_hash, identity, identity_of, per_agent_fields
from deeprl.envs.vector import Episode
from deeprl.errors import DeeprlError
from deeprl.replay.blocks import History
from deeprl.run import checkpoint
from deeprl.run.directory import EXECUTION, members_of
from deeprl.run.logger import CsvLog
from deeprl.run.records import read_about, write_json

LOGS = ("metrics.csv", "evaluations.csv")


class Seat(NamedTuple):
    """An agent, by the directory of its run and its number there."""

    directory: Path
    member: int


class _Source(NamedTuple):
    """A run's newest checkpoint. agents: how many there are."""

    directory: Path
    about: Mapping[str, Any]
    step: int
    content: Mapping[str, Any]

    @property
    def agents(self) -> int:
        return len(self.about["members"])


class _Pick(NamedTuple):
    """An agent to take: which of the sources, its number there, and how many agents that has."""

    source: int
    member: int
    agents: int


def gather(origins: Sequence[Seat], config: RunConfig) -> None:
    """Write a run to `config.out` that stands where the runs of `origins` stand, with these agents, in this order.

    config: as many seeds, and own settings, as there are origins, theirs. What is in the directory is replaced.

    Raises DeeprlError for runs without a checkpoint to go on from, that have not come equally far, or learn from frames
    of images that environments on the host give, whose replay has no parts that belong to one agent.
    """
    folders = list(dict.fromkeys(origin.directory for origin in origins))
    sources = [_source(folder) for folder in folders]
    if len(steps := {source.step for source in sources}) > 1:
        raise DeeprlError(f"{folders[0]}: the runs to gather agents from have come to different steps: {sorted(steps)}")
    for source in sources:
        _require_alike(source, config)
    places = [folders.index(origin.directory) for origin in origins]
    picks = [_Pick(i, origin.member, sources[i].agents) for i, origin in zip(places, origins, strict=True)]
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    marks = {}
    for name in LOGS:
        log = CsvLog(out / name)
        log.path.unlink(missing_ok=True)
        log.write(_rows([CsvLog(source.directory / name) for source in sources], picks))
        marks[name] = log.mark()
    parts = {
        name: _taken(name, [s.content[name] for s in sources], picks) for name in sources[0].content if name != "run"
    }
    own = _own([source.content["run"] for source in sources], picks) | {"logs": marks}
    checkpoint.save(out / "checkpoints", sources[0].step, {"run": own, **parts})
    begun = {"gathered": {"step": sources[0].step, "wall_s": own["wall_s"]}}
    hashed = config_hash(sources[0].about["algorithm"], config)
    about = {
        **sources[0].about,
        "config": dataclasses.asdict(config),
        "config_hash": hashed,
        "members": members_of(config),
    }
    write_json(out / "status.json", {"state": "stopped", "step": sources[0].step, "frozen": own["frozen"]})
    write_json(out / "config.json", about | begun)  # last: only with it is the directory that of a run


def _source(folder: Path) -> _Source:
    found = checkpoint.load_checkpoint(folder / "checkpoints")
    if found is None or not {"envs", "data"} & found[1].keys():
        raise DeeprlError(f"{folder} has no checkpoint from which its agents could go on")
    return _Source(folder, read_about(folder), *found)


def _require_alike(source: _Source, config: RunConfig) -> None:
    """Raise DeeprlError, naming the setting, for a run in which agents share other settings."""
    here, there = identity(config), identity_of(source.about["config"], type(config))
    own = {"seeds", *EXECUTION, *per_agent_fields(type(config))}
    for name in here.keys() - own:
        if here[name] != there[name]:
            raise DeeprlError(f"{source.directory}: {name} is {there[name]!r} there, {here[name]!r} here")


def _numbers(picks: Sequence[_Pick]) -> dict[tuple[int, int], int]:
    """The new number of an agent by its source and its number there."""
    return {(p.source, p.member): i for i, p in enumerate(picks)}


def _rows(logs: Sequence[CsvLog], picks: Sequence[_Pick]) -> list[dict[str, str]]:
    """Rows of a log of each source, of the agents that are taken, under their new numbers, by step."""
    to = _numbers(picks)
    found = [
        {**row, "member": str(to[i, member])}
        for i, log in enumerate(logs)
        for row in log.rows()
        if (i, member := int(row["member"])) in to
    ]
    return sorted(found, key=lambda row: (int(row["step"]), int(row["member"]), int(row.get("episode", 0))))


def _own(runs: Sequence[Mapping[str, Any]], picks: Sequence[_Pick]) -> dict[str, Any]:
    """What a run keeps of itself (`Run.save`)."""
    to = _numbers(picks)
    frozen = [
        r | {"member": to[i, r["member"]]}
        for i, run in enumerate(runs)
        for r in run["frozen"]
        if (i, r["member"]) in to
    ]
    return {
        **runs[0],
        "wall_s": max(run["wall_s"] for run in runs),
        "learning_s": max(run["learning_s"] for run in runs),
        "frozen": sorted(frozen, key=lambda record: record["member"]),
        "diverged": False,
        "episodes": _episodes([run["episodes"] for run in runs], picks),
        "metrics": _taken("metrics", [run["metrics"] for run in runs], picks),
        "causes": sorted({name for run in runs for name in run["causes"]}),
    }


def _episodes(lists: Sequence[Sequence[Any]], picks: Sequence[_Pick]) -> list[tuple[Any, ...]]:
    to = _numbers(picks)
    known = [(i, Episode(*each)) for i, episodes in enumerate(lists) for each in episodes]
    return [tuple(e._replace(member=to[i, e.member])) for i, e in known if (i, e.member) in to]


def _taken(name: str, values: Sequence[Any], picks: Sequence[_Pick]) -> Any:
    """A part of checkpoints with the agents that are taken. Each value has its agents first; numbers are common."""
    first = values[0]
    if name == "replay" and first.keys() != {"inserted", "rows"}:
        raise DeeprlError("agents that learn from frames of images cannot be gathered; --env-backend device can")
    if isinstance(first, History):
        return _history(values, picks)
    if name == "episodes":
        return _episodes(values, picks)
    if isinstance(first, Mapping):
        return {key: _taken(key, [value[key] for value in values], picks) for key in first}
    if isinstance(first, torch.Tensor | np.ndarray):
        return torch.stack([torch.as_tensor(values[p.source][p.member]) for p in picks])
    if isinstance(first, list):  # environments one after another, those of an agent together
        width = len(first) // picks[0].agents
        return [each for p in picks for each in values[p.source][p.member * width : (p.member + 1) * width]]
    if any(value != first for value in values):
        raise DeeprlError(f"the runs to gather agents from differ in {name}: {first!r} and others")
    return first


def _history(histories: Sequence[History], picks: Sequence[_Pick]) -> History:
    """Rows of the agents that are taken."""
    first, last = histories[0].first, histories[0].last
    whole = [_read(history) for history in histories]
    rows = {name: torch.stack([whole[p.source][name][p.member] for p in picks]) for name in whole[0]}
    width = next(iter(rows.values())).shape[1] // (last - first)

    def read(begin: int, end: int) -> dict[str, Any]:
        return {name: value[:, (begin - first) * width : (end - first) * width] for name, value in rows.items()}

    found = History(read)
    found.first, found.last, found.stored = first, last, first
    return found


def _read(history: History) -> dict[str, torch.Tensor]:
    """All rows that are needed, [S, rows, ...] by name."""
    found: dict[str, list[torch.Tensor]] = {}
    starts = [begin for begin, _ in history.parts()] + [history.last]
    for i, (begin, rows) in enumerate(history.parts()):
        width = next(iter(rows.values())).shape[1]
        end = min(starts[i + 1], history.last)
        steps = next(b.last for b in history.blocks if b.first == begin) - begin
        each = width // steps
        for name, value in rows.items():
            found.setdefault(name, []).append(
                value[:, max(0, history.first - begin) * each : (end - begin) * each].clone()
            )
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}
