"""Trials: settings that are tried with every tuning seed, many of them as one population; and what came of them."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeprl.config import RunConfig, per_agent_fields, setting
from deeprl.errors import DeeprlError
from deeprl.launch.planned import Planned
from deeprl.reporting.read import AgentRecord, read_runs
from deeprl.reporting.stats import iqm
from deeprl.run.records import read_about, read_status
from deeprl.run.trained import algorithm_module

OBJECTIVES: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda values: float(np.mean(values)), "iqm": iqm}


class Trial(NamedTuple):
    """number: in the study; settings: those that it chooses, by their names."""

    number: int
    settings: Mapping[str, Any]


class Score(NamedTuple):
    """What came of a trial: the value of each seed, None where the agent diverged."""

    seeds: tuple[float | None, ...]

    def value(self, objective: str) -> float | None:
        """The number that is searched for, over the seeds; None where an agent diverged: the trial failed."""
        return OBJECTIVES[objective](self.whole) if len(self.whole) == len(self.seeds) else None

    @property
    def whole(self) -> list[float]:
        """Of the seeds whose agents did not diverge."""
        return [value for value in self.seeds if value is not None]


class Cost(NamedTuple):
    """What runs have taken. steps: of all agents together, in the unit of their settings; episodes, episode_steps: of
    evaluations, which an agent that learns from a dataset takes from the environment, too."""

    steps: int = 0
    episodes: int = 0
    episode_steps: int = 0
    wall_s: float = 0.0

    def __add__(self, other: Any) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that train together. members: of each trial, the agents that stand for it, one a seed."""

    planned: Planned
    trials: tuple[Trial, ...]
    members: Mapping[int, tuple[int, ...]]

    def trained(self, until: int) -> bool:
        """Whether it has come so far, or to an end before."""
        with contextlib.suppress(DeeprlError):
            status = read_status(self.planned.directory)
            return status.get("state") == "diverged" or int(status.get("step", -1)) >= until
        return False

    def train(self, until: int) -> bool:
        """Train, up to a step. Returns whether it has come there: a signal or `max_hours` may have stopped it."""
        if not self.trained(until):
            config = self.planned.config
            stop = None if until >= config.steps else lambda run: run.step >= until
            with contextlib.chdir("."):
                algorithm_module(self.planned.algorithm).train(config, callback=stop)
        return self.trained(until)

    def scores(self, last: int, until: int) -> dict[int, Score]:
        """By number of trial, from the `last` evaluations of each agent that there are up to a step."""
        (run,) = read_runs(self.planned.directory)
        agents = {agent.member: agent for agent in run.agents}
        return {
            trial.number: Score(
                tuple(_value(agents[m], last, until * run.unit.factor) for m in self.members[trial.number])
            )
            for trial in self.trials
        }

    def cost(self) -> Cost:
        """Of the training so far, without what gathered agents had done before."""
        folder = self.planned.directory
        status, before = read_status(folder), read_about(folder).get("gathered", {"step": 0, "wall_s": 0.0})
        with (folder / "evaluations.csv").open(newline="", encoding="utf-8") as file:
            lengths = [int(row["length"]) for row in csv.DictReader(file) if int(row["step"]) > before["step"]]
        steps = (int(status["step"]) - before["step"]) * len(self.planned.config.seeds)
        return Cost(steps, len(lengths), sum(lengths), float(status.get("wall_s", 0.0)) - before["wall_s"])


def _value(agent: AgentRecord, last: int, until: int) -> float | None:
    """The mean of an agent's last evaluations up to a step; None of one that diverged."""
    found = [at.mean for at in agent.evaluations if at.step <= until]
    return float(np.mean(found[-last:])) if found and agent.frozen is None else None


def groups(
    algorithm: str, base: RunConfig, trials: Sequence[Trial], seeds: Sequence[int], directory: Path
) -> list[Group]:
    """Every trial with every seed, as few populations as possible, in folders 0, 1, ... of `directory`.

    Trials that differ in more than per-agent settings are in different ones; those that are equal in all share agents.
    """
    own = set(per_agent_fields(type(base)))
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        shared = {k: v for k, v in trial.settings.items() if k not in own}
        alike.setdefault(json.dumps(shared, sort_keys=True), []).append(trial)
    found = []
    for i, (shared_text, here) in enumerate(alike.items()):
        singles = [{k: v for k, v in trial.settings.items() if k in own} for trial in here]
        cells = [each for j, each in enumerate(singles) if each not in singles[:j]]
        values = {k: tuple(cell[k] for cell in cells for _ in seeds) for k in cells[0]}
        kind = type(base)
        settings = {k: setting(kind, k, v) for k, v in {**json.loads(shared_text), **values}.items()}
        out = directory / str(i)
        config = dataclasses.replace(base, **settings, seeds=tuple(seeds) * len(cells), out=str(out))
        places = [cells.index(each) * len(seeds) for each in singles]
        members = {t.number: tuple(range(p, p + len(seeds))) for t, p in zip(here, places, strict=True)}
        found.append(Group(Planned(algorithm, config), tuple(here), members))
    return found


def whole_group(algorithm: str, config: RunConfig) -> Group:
    """A run as the only trial, number 0, of its group."""
    return Group(Planned(algorithm, config), (Trial(0, {}),), {0: tuple(range(len(config.seeds)))})
