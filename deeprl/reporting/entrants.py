"""What a comparison compares: an algorithm's returns by task and seed, from runs, benchmark rows or peers' files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.envs.units import repeats
from deeprl.errors import DeeprlError
from deeprl.reporting.cells import Cell, canonical, task_of
from deeprl.reporting.curves import PUBLISHED_COLUMNS, Curve
from deeprl.reporting.peers import Peer, is_peer, read_peer
from deeprl.reporting.read import Pairs, RunRecord, group, read_runs, unit_name
from deeprl.run.records import run_directories

_LOOKS = {"action_repeat", "render_mode", "size", "camera", "width", "height"}  # arguments that leave a task what it is


class SeedReturns(NamedTuple):
    """One training run: its mean evaluation return by step, and the normalised score where there is one, else empty."""

    seed: str
    returns: Curve
    scores: Curve


class Entry(NamedTuple):
    """An algorithm on one task. unit: of its steps, empty where it is not recorded. place: what the task is, as JSON
    text (arguments, wrappers, digest of the dataset); empty where that is not recorded."""

    seeds: list[SeedReturns]
    unit: str = ""
    place: str = ""


@dataclass
class Entrant:
    """An algorithm by the name that a comparison gives it: its entries by environment or dataset, and what to know."""

    name: str
    entries: dict[str, Entry]
    notes: list[str] = field(default_factory=list)


def read_entrants(words: Sequence[str]) -> list[Entrant]:
    """The algorithms of `PATH` or `NAME=PATH`, in this order: several of a path which has several on one task.

    PATH: a run, a directory of runs, a CSV file of benchmark rows or published curves (`curves.PUBLISHED_COLUMNS`), or
    what `deeprl.reporting.peers` reads, then `NAME@ENVIRONMENT=PATH` where its files do not tell that.

    Raises DeeprlError for a path that is not there or cannot be read, and for two algorithms of one name.
    """
    found = [entrant for word in words for entrant in _read(word, alone=len(words) == 1)]
    names = [entrant.name for entrant in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DeeprlError(f"two are called {twice[0]!r}: name them, NAME=PATH")
    return found


def _read(word: str, alone: bool) -> list[Entrant]:
    name, env, path = _named(word)
    if path.is_dir() and (not is_peer(path) or run_directories(path)):
        return _from_runs(name, path, alone)
    if is_peer(path):
        curves = read_peer(Peer(name, path, env))
        entries = {env: Entry([_without_score(k, c) for k, c in enumerate(seeds)]) for env, seeds in curves.items()}
        return [Entrant(name, entries)]
    return _from_rows(name, path, alone)


def _named(word: str) -> tuple[str, str, Path]:
    """Name, environment where it is given, and path."""
    if Path(word).exists():
        return (Path(word).resolve().name if Path(word).is_dir() else Path(word).stem), "", Path(word)
    name, equals, path = word.partition("=")
    name, _, env = name.partition("@")
    if not (equals and name and Path(path).exists()):
        raise DeeprlError(f"{path or word}: no such file or directory")
    return name, env, Path(path)


def _without_score(number: int, curve: Curve) -> SeedReturns:
    return SeedReturns(str(number), dict(curve), {})


def _entrants(name: str, cells: Mapping[str, Mapping[str, Entry]], notes: Sequence[str], alone: bool) -> list[Entrant]:
    """Entrants of one path. cells: entries by environment and name; one on each task is one entrant."""
    if all(len(own) == 1 for own in cells.values()):
        several = sorted({called for own in cells.values() for called in own})
        told = [f"{name} is another algorithm on each task: {', '.join(several)}."] if len(several) > 1 else []
        entries = {env: next(iter(own.values())) for env, own in cells.items()}
        return [Entrant(name, entries, [*notes, *told])]
    found: dict[str, Entrant] = {}
    for env, own in cells.items():
        for called, entry in own.items():
            full = called if alone or called == name else f"{name}: {called}"
            found.setdefault(full, Entrant(full, {})).entries[env] = entry
    entrants = [found[full] for full in sorted(found)]
    entrants[0].notes += notes
    return entrants


def _from_runs(name: str, path: Path, alone: bool) -> list[Entrant]:
    runs = read_runs(path)
    cells: dict[str, dict[str, Entry]] = {}
    for cell, pairs in group(runs).items():
        cells.setdefault(cell.env, {})[cell.name] = _entry(cell, pairs)
    if not cells:
        raise DeeprlError(f"{path}: no evaluation yet")
    notes = [f"{name}: run {run.name} is unfinished." for run in runs if not run.finished]
    notes += [
        f"{name}: seed {agent.seed} of run {run.name} diverged; it stays in all statistics."
        for run in runs
        for agent in run.agents
        if agent.frozen is not None
    ]
    return _entrants(name, cells, notes, alone)


def _entry(cell: Cell, pairs: Pairs) -> Entry:
    seeds = []
    for run, agent in pairs:
        returns = {at.step: at.mean for at in agent.evaluations}
        scores = {step: run.score(ret) for step, ret in returns.items()}
        known = {step: score for step, score in scores.items() if score is not None}
        seeds.append(SeedReturns(str(agent.seed), returns, known))
    return Entry(seeds, unit_name(pairs), _place(pairs[0][0], pairs[0][1].member))


def _place(run: RunRecord, member: int) -> str:
    """What sets a task apart beside its name, and does not lie in how it is looked at or how long actions are held."""
    about = run.info.get("evaluated_in") or run.info["config"]
    kwargs = {k: v for k, v in (about.get("env_kwargs") or {}).items() if k not in _LOOKS}
    wrappers = [name for name in about.get("wrappers") or () if not repeats(name)]
    told: dict[str, Any] = {"env": about.get("env", ""), "arguments": kwargs, "wrappers": wrappers}
    if digest := task_of(run.info, member).digest:
        told["dataset"] = digest[:12]
    return canonical(told)


def _from_rows(name: str, path: Path, alone: bool) -> list[Entrant]:
    cells: dict[str, dict[str, Entry]] = {}
    seeds: dict[tuple[str, ...], list[SeedReturns]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [c for c in PUBLISHED_COLUMNS if c not in (reader.fieldnames or ())]:
                raise DeeprlError(f"{path} lacks the column {', '.join(missing)}: benchmark rows, or curves of others")
            for row in reader:
                _add(row, seeds, cells)
    except (OSError, UnicodeDecodeError) as error:
        raise DeeprlError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from error
    except (TypeError, ValueError) as error:
        raise DeeprlError(f"{path} row {reader.line_num} is broken: {error}") from error
    if not cells:
        raise DeeprlError(f"{path}: no rows")
    return _entrants(name, cells, [], alone)


def _add(
    row: Mapping[str, str], seeds: dict[tuple[str, ...], list[SeedReturns]], cells: dict[str, dict[str, Entry]]
) -> None:
    """Put a row where its agent is. Of two agents that are equal in everything a step occurs twice."""
    step, ret, env = int(row["step"]), float(row["return"]), row["env"]
    agents = seeds.setdefault((row["algorithm"], env, row["seed"], row.get("config_hash") or ""), [])
    agent = next((one for one in agents if step not in one.returns), None)
    if agent is None:
        agent = SeedReturns(row["seed"], {}, {})
        agents.append(agent)
        own = cells.setdefault(env, {})
        own.setdefault(row["algorithm"], Entry([], row.get("unit") or "")).seeds.append(agent)
    agent.returns[step] = ret
    if (score := row.get("score")) and math.isfinite(float(score)):
        agent.scores[step] = float(score)


def described(place: str) -> str:
    """An `Entry.place` in words."""
    told = json.loads(place)
    return ", ".join(f"{k} {json.dumps(v)}" for k, v in told.items() if v and k != "env") or "no arguments"
