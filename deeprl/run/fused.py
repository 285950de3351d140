"""What passes between two looks of the host as one function: acting, steps, storing, sampling, updates of a population.

For environments on the device. The loop of an algorithm says what is done and in which order (`move`, `learn`); `Fused`
writes it down, and when somebody has to look, `done` does all of it in one call, which is compiled once for each order
that occurs: a step at random, a step, some steps and an update. Every key and every place in the replay follows from
two numbers, the steps and the updates before, so that nothing is read from the device, and nothing but these two
numbers is sent there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.population import Agents, Execution, Lifted, over_agents
from deeprl.core.spec import Metrics, Seen
from deeprl.core.tree import tree_map
from deeprl.envs.device.population import DeviceEnvs, Going
from deeprl.replay import Extent, Replay, Stored, StoredFrames, extent_of, store
from deeprl.replay.samplers import Priorities

TOGETHER = 10  # steps of the environments in one call at most; those that give images 1: code grows with the steps


class Rows(NamedTuple):
    """What an agent learns from: its replay, and the priorities of the rows [P] (none, where it does without)."""

    data: Stored | StoredFrames
    priority: Float[Tensor, " P"]


# An update of one agent, which draws its own batch: (agents, rows, sample key, update key, extent, steps so far) to
# (agents, metrics, aux); aux: the rows of the batch and their new priorities, where it has such.
Learner = Callable[[Agents, Rows, rng.Key, rng.Key, Extent, Tensor], tuple[Agents, Metrics, Any]]
Task = bool | Learner  # a step of the environments, at random or not; or an update


class Changed(NamedTuple):
    """What a pass changes of one agent, beside its rows. agents: () where it only acts."""

    agents: Agents | tuple[()]
    going: Going
    carry: Any
    largest: Float[Tensor, ""]  # of the priorities


class Keys(NamedTuple):
    """The streams that a pass draws from, as keys with number 0."""

    explore: rng.Key
    env: rng.Key
    sample: rng.Key
    update: rng.Key


class Before(NamedTuple):
    """What has been done before a pass: steps of each agent, and its updates."""

    steps: Int[Tensor, ""]
    updates: Int[Tensor, ""]


@dataclass(frozen=True)
class Parts:
    """One agent's functions.

    act(state, carry, obs, is_first, key, steps) -> (action, carry); observe: see `learning`; move(going, action, key)
    -> (going, transition) of its `width` environments. capacity: rows of its replay; actions: A of random ones;
    reward_clip: rewards are stored cut to [-x, x], 0: as they are.
    """

    act: Callable[..., tuple[Tensor, Any]]
    observe: Callable[..., tuple[Agents, Metrics, Any]] | None
    move: Callable[..., Any]
    width: int
    capacity: int
    actions: int
    reward_clip: float = 0.0

    def step(
        self, random: bool, now: Changed, agents: Agents, rows: Rows, keys: Keys, steps: Tensor
    ) -> tuple[Changed, Agents]:
        """One step of the environments, stored, after which the agent has seen what came of it."""
        going, key = now.going, rng.key_number(keys.explore, steps)
        if random:
            action = rng.uniform(key, (self.width, self.actions), -1.0, 1.0)
            carry = memory.with_action(now.carry, action)
        else:
            action, carry = self.act(agents.state, now.carry, going.obs, going.is_first, key, steps)
        going, transition = self.move(going, action, rng.key_number(keys.env, steps // self.width + 1))
        if self.reward_clip:
            transition = transition._replace(reward=transition.reward.clip(-self.reward_clip, self.reward_clip))
        assert isinstance(rows.data, Stored)
        places = store(rows.data, steps % self.capacity, transition)
        if rows.priority.numel():
            rows.priority[places] = now.largest.expand(self.width)
        if self.observe is not None:
            agents, _, _ = self.observe(agents, Seen(going.obs, going.is_first, transition.reward))
        # What an agent remembers may be what it has seen, whose place will be overwritten.
        return now._replace(going=going, carry=tree_map(torch.clone, carry)), agents

    def learn(
        self, learner: Learner, now: Changed, agents: Agents, rows: Rows, keys: Keys, before: Before
    ) -> tuple[Changed, Agents, Metrics]:
        """An update."""
        drawn = rng.key_number(keys.sample, before.updates), rng.key_number(keys.update, before.updates)
        extent = extent_of(before.steps, self.capacity)
        agents, metrics, aux = learner(agents, rows, *drawn, extent, before.steps)
        if rows.priority.numel():
            row, priority = aux
            rows.priority[row] = priority
            now = now._replace(largest=torch.maximum(now.largest, priority.amax()))
        return now, agents, metrics

    def in_order(self, tasks: Sequence[Task]) -> Callable[..., tuple[Changed, Metrics]]:
        """All of the tasks as one function; of the metrics the newest of each name."""

        def whole(
            now: Changed, acting: Agents | tuple[()], rows: Rows, keys: Keys, before: Before
        ) -> tuple[Changed, Metrics]:
            agents: Any = now.agents or acting
            metrics: Metrics = {}
            for task in tasks:
                if isinstance(task, bool):
                    now, agents = self.step(task, now, agents, rows, keys, before.steps)
                    before = before._replace(steps=before.steps + self.width)
                else:
                    now, agents, found = self.learn(task, now, agents, rows, keys, before)
                    before, metrics = before._replace(updates=before.updates + 1), metrics | found
            return now._replace(agents=agents if now.agents else ()), metrics

        return whole


@dataclass
class Fused:
    """The passes of a population. Whoever looks at its agents, environments or replay calls `done` before.

    learners: what an update may be; waiting: how many steps have been written down since `done`.
    """

    parts: Parts
    execution: Execution
    agents: Agents
    envs: DeviceEnvs
    replay: Replay
    priorities: Priorities
    carry: Any
    streams: rng.Streams
    learners: list[Learner] = field(default_factory=list)
    waiting: int = 0
    _tasks: list[Task] = field(default_factory=list)
    _programs: dict[tuple[Task, ...], tuple[Lifted, tuple[Any, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        zero = torch.zeros((), dtype=torch.int64, device=self.execution.device)
        self._before = Before(zero, zero.clone())
        self._keys = Keys(*(self.streams.base(name) for name in Keys._fields))
        self._rows = Rows(self.replay.data, self.priorities.values)
        self._first: dict[str, int] = {}
        self._most = 1 if self.envs.spec.image else TOGETHER

    def move(self, random: bool, steps: int) -> None:
        """A step of all environments, after `steps` of each agent."""
        self._first.setdefault("steps", steps)
        self._tasks.append(random)
        self.waiting += 1

    def learn(self, learner: Learner, number: int, steps: int) -> None:
        """Update number `number`, after `steps` of each agent."""
        self._first.setdefault("steps", steps)
        self._first.setdefault("updates", number)
        self._tasks.append(learner)

    def add(self, learner: Learner, every: int) -> None:
        """Begin to compile what will be done in a run with this learner, with an update after so many steps."""
        self.learners.append(learner)
        steps = min(max(1, every // self.parts.width), self._most)
        self.prepare(False)
        self.prepare(*[False] * steps, learner)

    def may_wait(self) -> bool:
        """Whether there are steps to be done, but no update, and not too many yet."""
        return 0 < self.waiting < self._most and "updates" not in self._first

    def done(self) -> Metrics:
        """Do what has been written down. Returns the newest metrics of each name, [S] each."""
        if not self._tasks:
            return {}
        program, arguments = self._program(tuple(self._tasks))
        for name, value in self._first.items():
            getattr(self._before, name).fill_(value)
        (metrics,) = program(*arguments)
        self.envs.moved(self.waiting)
        self.replay.added(self.waiting)
        self._tasks, self._first, self.waiting = [], {}, 0
        return metrics

    def prepare(self, *tasks: Task) -> None:
        """Begin to compile what is done in this order."""
        program, arguments = self._program(tasks)
        program.prepare(*arguments)

    def _program(self, tasks: tuple[Task, ...]) -> tuple[Lifted, tuple[Any, ...]]:
        if tasks not in self._programs:
            changes = self.parts.observe is not None or not all(isinstance(task, bool) for task in tasks)
            agents, acting = (self.agents, ()) if changes else ((), self.agents)
            now = Changed(agents, self.envs.going, self.carry, self.priorities.largest)
            function = over_agents(self.parts.in_order(tasks), self.execution, shared=(4,), donate=True)
            self._programs[tasks] = function, (now, acting, self._rows, self._keys, self._before)
        return self._programs[tasks]
