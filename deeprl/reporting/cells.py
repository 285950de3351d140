"""What a cell of a table is: agents that differ in their seed alone, and so are samples of one number.

`agent_identity` is the only place where that is decided, from the whole record of a run. Whatever a record may hold
sets agents apart, but for `RECORD_ONLY` and `SETTINGS_ONLY`, each with its reason. A label is a name beside it: it
never brings together what differs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import deeprl

# Keys of config.json that do not set agents apart, and why.
RECORD_ONLY = {
    "format": "how the record is written",
    "members": "which agents there are; the settings of each are in `config`",
    "config_hash": "of the population with its seeds",
    "versions": "what it was computed with; a note names cells of several",
    "commit": "where it was computed; the table of runs tells",
    "device": "where it was computed: other rounding",
    "host": "where it was computed",
    "command": "how it was asked for",
    "execution": "how it was computed: other rounding; its precision is a setting",
    "changes": "other conditions after a resume; those of its precision count",
    "gathered": "in which run its first steps were made, which is the same to an agent",
}
# The same of the settings in `config`.
SETTINGS_ONLY = {
    "seeds": "the samples of a cell",
    "label": "the name of a cell, beside its identity",
    "out": "where the records are",
    "tensorboard": "which records there are",
    "track": "which records there are",
    "checkpoint_minutes": "what is kept",
    "keep_checkpoints": "what is kept",
    "keep_replay": "what is kept",
    "snapshot_every": "what is kept",
    "max_hours": "when it stops to go on later",
    "threads": "other rounding",
    "backend": "other rounding",
    "compile": "other rounding",
    "device": "other rounding",
    "cuda_graphs": "how it is launched",
}
_TAKEN_APART = {"config", "spec", "datasets", "evaluated_in", "custom_net", "origins"}  # by `agent_identity`
_PLACE = ("env", "env_kwargs", "wrappers")
_SHOWN_ELSEWHERE = {"algorithm", "dataset"}  # by the name of a cell and its task
_LONG = ("schedule", "pbt")  # shown by a digest: settings by step, and the rules of population-based training
_SCORES = "score_range"  # of a spec: how returns are shown


class Task(NamedTuple):
    """What an agent learns. name: the environment's id, or its dataset's name; of a dataset also where it is, and what
    it is: the digest of its file, or how it was named in records that do not have that."""

    name: str
    path: str = ""
    digest: str = ""


Place = tuple[str, str, str, str]  # of a cell: algorithm, task, label, key of its identity


class Cell(NamedTuple):
    """What one number of a table stands for; the agents (seeds) of a cell are its samples.

    env: the environment's id, or the name of the dataset. settings: JSON text of those that tell it from the other
    cells of this algorithm, env and label. key: twelve hex digits of its identity, the same wherever it is found.
    name: algorithm, label and settings, unlike that of any other cell with this env.
    """

    algorithm: str
    env: str
    label: str
    settings: str
    key: str = ""
    name: str = ""


def agent_identity(info: Mapping[str, Any], member: int) -> dict[str, Any]:
    """All that makes an agent what it is, but for its seed: settings and facts by name, plain JSON values.

    info: `config.json` of its run. Settings that the version which wrote it did not have are at their defaults.
    """
    found = {k: v for k, v in _settings(info, member).items() if k not in SETTINGS_ONLY}
    found |= {k: v for k, v in info.items() if k not in RECORD_ONLY and k not in _TAKEN_APART}
    found["net"] = found.get("net") or info.get("custom_net", "")
    place = info.get("evaluated_in") or {}  # which says more than the settings: what a dataset names is in it
    found |= {k: place[k] for k in _PLACE if k in place}
    found |= {f"spec.{k}": v for k, v in _spec(info.get("spec")).items() if k != _SCORES}
    if found.get("dataset"):
        found["dataset"] = info.get("datasets", {}).get(found["dataset"], {}).get("sha256") or found["dataset"]
    if "origins" in info:
        origin = info["origins"]["agents"][member]
        run = info["origins"]["runs"][origin["run"]]
        before = key_of(agent_identity(run, origin["member"]))
        found |= {"init": f"{run['algorithm']} {before} at step {origin['step']}", "source": {}}
    found |= {name: key_of({name: found[name]}) for name in _LONG if found.get(name)}
    changed = [c for c in info.get("changes", []) if c.get("name") == "precision"]
    if changed:
        told = dict.fromkeys([str(changed[0]["before"]), *(str(c["after"]) for c in changed)])
        found["precision"] = ", then ".join(told)
    return found


def _settings(info: Mapping[str, Any], member: int) -> dict[str, Any]:
    """The settings of one agent of a population."""
    own: dict[str, Any] = next(m for m in info["members"] if m["member"] == member).get("settings") or {}
    usual, several = _known(str(info["algorithm"]))
    whole = {**usual, **info["config"]}
    return {k: v[member] if k in several and isinstance(v, list) else v for k, v in whole.items()} | own


@functools.cache
def _known(algorithm: str) -> tuple[dict[str, Any], frozenset[str]]:
    """The defaults of an algorithm's settings, and which may differ between the agents of a population."""
    if algorithm not in deeprl.ALGORITHMS:
        return {}, frozenset()
    from deeprl.config import per_agent_fields
    from deeprl.config.runs import defaults
    from deeprl.run.trained import algorithm_module

    config = algorithm_module(algorithm).Config
    return defaults(config), frozenset(per_agent_fields(config))


def _spec(stored: Mapping[str, Any] | None) -> dict[str, Any]:
    if stored is None:
        return {}
    from deeprl.core.spec import EnvSpec

    later = {f.name: f.default for f in dataclasses.fields(EnvSpec) if f.default is not dataclasses.MISSING}
    return {**later, **stored}


def task_of(info: Mapping[str, Any], member: int) -> Task:
    """What an agent of a run learns."""
    from deeprl.data.datasets import dataset_name

    found = _settings(info, member)
    if not (source := found.get("dataset")):
        return Task(str(info["config"]["env"]))
    known = info.get("datasets", {}).get(source, {})
    return Task(dataset_name(source), known.get("path") or source, known.get("sha256") or source)


def canonical(value: Any) -> str:
    """JSON text in which equal values are equal: whole numbers and floats alike, keys in order."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        exact = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
        return float(value) if exact else value

    return json.dumps(plain(value), sort_keys=True)


def key_of(found: Mapping[str, Any]) -> str:
    """Twelve hex digits of an `agent_identity`."""
    return hashlib.sha256(canonical(found).encode()).hexdigest()[:12]


def names_of_tasks(tasks: Iterable[Task]) -> dict[Task, str]:
    """What tasks are called: one dataset always the same, those of one name by the folders that they lie in."""
    first: dict[str, Task] = {}
    for task in sorted(set(tasks)):
        first.setdefault(task.digest or task.name, task)
    alike: dict[str, list[Task]] = {}
    for task in first.values():
        alike.setdefault(task.name, []).append(task)
    names = {task: name for own in alike.values() for task, name in zip(own, _told_apart(own), strict=True)}
    return {task: names[first[task.digest or task.name]] for task in tasks}


def _told_apart(tasks: Sequence[Task]) -> list[str]:
    """Names of different tasks of one name."""
    if len(tasks) == 1:
        return [tasks[0].name]
    parents = [PurePath(task.path).parts[:-1] for task in tasks]
    for count in range(1, max(map(len, parents)) + 1):
        names = ["/".join([*folders[-count:], task.name]) for task, folders in zip(tasks, parents, strict=True)]
        if len(set(names)) == len(tasks):
            return names
    return [f"{task.name} ({task.digest[:8]})" if task.digest else task.name for task in tasks]


def cells_of(agents: Sequence[tuple[Mapping[str, Any], int]]) -> list[Cell]:
    """The cell of each agent, given as the record of its run and its number there."""
    tasks = [task_of(info, member) for info, member in agents]
    called = names_of_tasks(tasks)
    identities: dict[Place, dict[str, Any]] = {}
    places: list[Place] = []
    for (info, member), task in zip(agents, tasks, strict=True):
        found = agent_identity(info, member)
        label = str(info["config"].get("label") or "")
        places.append((str(info["algorithm"]), called[task], label, key_of(found)))
        identities.setdefault(places[-1], found)
    shown = {place: _shown(place, identities) for place in identities}
    names = _names(shown)
    made = {place: Cell(*place[:3], json.dumps(settings), place[3], names[place]) for place, settings in shown.items()}
    return [made[place] for place in places]


def _shown(place: Place, identities: Mapping[Place, Mapping[str, Any]]) -> dict[str, Any]:
    """What tells a cell from the others of its algorithm, task and label."""
    near = [found for other, found in identities.items() if other[:3] == place[:3]]
    names = sorted({name for found in near for name in found} - _SHOWN_ELSEWHERE)
    differ = [name for name in names if len({canonical(found.get(name)) for found in near}) > 1]
    return {name: identities[place].get(name) for name in differ}


def _names(shown: Mapping[Place, Mapping[str, Any]]) -> dict[Place, str]:
    """Algorithm, then label and settings where there are any; in quotation marks where it could be read as another."""
    plain = {
        place: " ".join([place[0], *filter(None, [place[2]]), *(f"{k}={v}" for k, v in settings.items())])
        for place, settings in shown.items()
    }
    often = Counter((place[1], name) for place, name in plain.items())
    for place, settings in shown.items():
        if often[place[1], plain[place]] > 1:
            label = [json.dumps(place[2], ensure_ascii=False)] if place[2] else []
            plain[place] = " ".join([place[0], *label, *(f"{k}={json.dumps(v)}" for k, v in settings.items())])
    return plain
