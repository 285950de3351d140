"""Trained agents that decide less often than their environment steps: `deeprl evaluate --decision-periods`.

At each decision an agent looks, and then does the same, or carries its plan out, for `period` steps: always as many, or
drawn anew for each decision. Periods count steps of the environment without the wrappers that repeat actions, whatever
the agent was trained with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from deeprl.core import rng
from deeprl.core.carry import Begin, fresh, where_rows
from deeprl.core.plans import Playing, held, no_plan, play
from deeprl.envs.make import EnvFactory
from deeprl.envs.units import repeats
from deeprl.errors import DeeprlError
from deeprl.run.trained import Population


class Period(NamedTuple):
    """Steps of the environment from one decision to the next: each number from `shortest` to `longest` alike."""

    shortest: int
    longest: int

    @property
    def steady(self) -> bool:
        """Whether it is always the same."""
        return self.shortest == self.longest

    def __str__(self) -> str:
        return f"{self.longest}" if self.steady else f"{self.shortest} to {self.longest}"


class Slow(NamedTuple):
    """What an agent that decides at times remembers: its own memory at the last decision, and what it is doing."""

    own: Any
    plan: Playing


def at_period(population: Population, period: Period) -> tuple[Callable[..., Any], Begin]:
    """The action function of one agent that decides so often, without exploration, and its memory as episodes begin.

    Agents that plan do what they have planned; others hold their action. Raises DeeprlError for discrete actions.
    """
    net, config, spec = population.net, population.config, population.spec
    if spec.discrete:
        raise DeeprlError("decision periods: for agents with continuous actions")
    plan, decide = getattr(population.module, "plan", None), population.act()

    def begin(n: int) -> Slow:
        return Slow(() if plan else population.begin(n), no_plan(n, period.longest, spec.action_dim))

    def act(state: Any, carry: Slow, obs: Tensor, is_first: Tensor, key: rng.Key) -> tuple[Tensor, Slow]:
        now = where_rows(is_first, fresh(begin, len(obs), obs.device), carry)
        anew, own = now.plan.left == 0, now.own
        if plan:
            ahead = plan(net, config, state, obs, now.plan.action, period.longest)
        else:
            action, after = decide(state, own, obs, is_first, key)
            own = where_rows(anew, after, own)
            ahead = held(action, period.longest)
        length: int | Tensor = period.longest
        if not period.steady:
            choices = period.longest - period.shortest + 1
            length = period.shortest + rng.randint(rng.fold_in(key, 1), anew.shape, choices)
        action, playing = play(now.plan, lambda _: ahead, length)
        return action, Slow(own, playing)

    return act, begin


def without_repeats(make: EnvFactory) -> EnvFactory:
    """The same environment, whose steps are single ones."""
    return dataclasses.replace(make, wrappers=tuple(name for name in make.wrappers if not repeats(name)))
