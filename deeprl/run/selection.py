"""Members of a population that go on from others after an evaluation, with other settings: what a run does for it.

Who goes on from whom is chosen elsewhere (`Selection`; population-based training in `deeprl.tuning.pbt`). It is done
after the episodes of an evaluation have been recorded, and before a checkpoint can be written, so that every
checkpoint of a step holds all of it or nothing, and the session that resumes one of a stopped evaluation does it once
that evaluation is complete.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from deeprl.core.population import Agents, cause_name
from deeprl.core.tree import tree_leaves
from deeprl.envs.vector import Episode


class Standing(NamedTuple):
    """How a member stands after an evaluation.

    score: mean return of its episodes; may be NaN. cause: why it is frozen, "" for a healthy one. clean: whether it
    could learn again with the state of another member, as what it has stored is finite.
    """

    score: float
    cause: str
    clean: bool

    @property
    def well(self) -> bool:
        """Whether others can go on from it."""
        return not self.cause and math.isfinite(self.score)


class Succession(NamedTuple):
    """parents: of the members that go on from another one. settings: those that a member has from now on, by name, of
    the members whose settings change. rows: for `pbt.csv`."""

    parents: Mapping[int, int]
    settings: Mapping[int, Mapping[str, float]]
    rows: Sequence[Mapping[str, Any]]


class Selection(abc.ABC):
    """A callback of a run that also chooses which of its members go on from which others."""

    @abc.abstractmethod
    def __call__(self, run: Any) -> bool | None:
        """As any callback."""

    @property
    @abc.abstractmethod
    def rules(self) -> dict[str, Any]:
        """What its choices follow from, plain JSON, kept in `config.json`: a run of other rules is another run."""

    @property
    @abc.abstractmethod
    def every(self) -> int:
        """Steps from one choice to the next; a multiple of those between evaluations."""

    @abc.abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Rows for `pbt.csv` as a run begins."""

    @abc.abstractmethod
    def choose(self, step: int, standings: Sequence[Standing]) -> Succession:
        """What follows from how the members stand after the evaluation of a step."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What its next choice depends on beside the standings."""

    @abc.abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def standings_of(agents: Agents, episodes: Sequence[Episode], parts: Mapping[str, Any]) -> list[Standing]:
    """How all members stand. parts: of a run, among which there may be a replay."""
    found = []
    for member, (frozen, code) in enumerate(zip(agents.frozen_at.tolist(), agents.cause.tolist(), strict=True)):
        own = [e.ret for e in episodes if e.member == member]
        cause = cause_name(code) if frozen >= 0 else ""
        found.append(Standing(sum(own) / len(own), cause, not cause or _stored_is_finite(parts, member)))
    return found


def _stored_is_finite(parts: Mapping[str, Any], member: int) -> bool:
    """Whether all rows that a member has stored are finite."""
    if "replay" not in parts:
        return True
    columns = [x[member] for x in tree_leaves(parts["replay"].data) if x.is_floating_point()]
    return all(bool(column.isfinite().all()) for column in columns)


@torch.no_grad()
def apply_succession(agents: Agents, chosen: Succession, parts: Mapping[str, Any]) -> None:
    """Do it, in place.

    Of its parent a member gets all of its state but the settings: networks and targets, moments of optimizers, running
    statistics, and being healthy. Its seed, and so its random streams, its environments, its replay and what it
    remembers of its episodes stay its own: clones would act and learn alike.
    """
    state, children = agents.state, list(chosen.parents)
    if children:
        parents = [chosen.parents[child] for child in children]
        for leaf in tree_leaves(agents._replace(state=state._replace(hparams={}))):
            leaf[children] = leaf[parents]
        if "priorities" in parts:
            parts["priorities"].mend(children)
    for member, settings in chosen.settings.items():
        for name, value in settings.items():
            state.hparams[name][member] = value


def apply_settings(agents: Agents, settings: Mapping[str, float]) -> None:
    """Give all agents these settings, in place."""
    for name, value in settings.items():
        agents.state.hparams[name].fill_(value)
