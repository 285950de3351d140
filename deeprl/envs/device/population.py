"""Environments of a population on the device: S agents x N environments each, stepped by one compiled function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from deeprl.core import rng
from deeprl.core.population import Execution, over_agents, stack
from deeprl.core.spec import EnvSpec, Transition
from deeprl.core.tree import flatten, load_flat
from deeprl.envs.device.base import DeviceEnv, Now, Played, begin, step
from deeprl.envs.vector import Episode


class Going(NamedTuple):
    """The N environments of one agent in play: what it sees, and what their episodes have brought so far.

    ret: of the episodes in progress; ended: how many have ended since they were last asked for, the sum of
    their returns and of their lengths.
    """

    now: Now
    obs: Shaped[Tensor, "N *O"]
    is_first: Bool[Tensor, " N"]
    ret: Float[Tensor, " N"]
    ended: Float[Tensor, "3"]


class DeviceEnvs:
    """S x N environments on the device, with the face of `envs.vector.PopulationEnvs` in tensors.

    `obs` [S, N, *O] and `is_first` [S, N] are what the agents see now. Environment e of the agent with seed s draws
    from (s, e) and the number of the step alone, wherever it runs. `one` is the step of one agent,
    (going, action, key) -> (going, transition). Nothing is read from the device but by `pop_episodes`, which tells of
    the episodes of each agent that have ended their number, mean return and length.
    """

    restorable = "captured"

    def __init__(self, env: DeviceEnv, limit: int, seeds: Sequence[int], envs_per_agent: int, execution: Execution):
        self.spec: EnvSpec = env.spec
        self.agents, self.width, self._steps = len(seeds), envs_per_agent, 0
        self._keys = rng.Streams(seeds, execution.device)
        places = torch.arange(envs_per_agent, device=execution.device)

        def one(now: Now, action: Tensor, key: rng.Key, place: Tensor) -> Played:
            return step(env, now, action, rng.fold_in(key, place), limit)

        def all_of(going: Going, action: Tensor, key: rng.Key) -> tuple[Going, Transition]:
            played = torch.vmap(one, in_dims=(0, 0, None, 0))(going.now, action, key, places)
            outcome = (x.clone() for x in (played.reward, played.terminated, played.truncated, played.next_obs))
            before = going.obs.clone()  # all of it may be a part of the state, which will be overwritten
            return counted(going, played), Transition(before, action, *outcome)

        def first(key: rng.Key, place: Tensor) -> tuple[Now, Tensor]:
            return begin(env, rng.fold_in(key, place))

        begun = [torch.vmap(first, in_dims=(None, 0))(key, places) for key in self._keys("env", 0).unbind()]
        self.going = stack([_going(now, obs) for now, obs in begun])
        self.one = all_of
        self._step = over_agents(all_of, execution, donate=True)

    @property
    def obs(self) -> Shaped[Tensor, "S N *O"]:
        """What the agents see."""
        return self.going.obs

    @property
    def is_first(self) -> Bool[Tensor, "S N"]:
        """Where an episode begins."""
        return self.going.is_first

    def step(self, action: Shaped[Tensor, "S N *A"]) -> Transition:
        """One step of every environment. action: [S, N, A] in [-1, 1], or [S, N] of discrete ones. Moves `obs` on."""
        self._steps += 1
        return self._step(self.going, action, self._keys("env", self._steps))[0]

    def moved(self, steps: int) -> None:
        """Count steps that were done from outside, by `one` on `going`."""
        self._steps += steps

    def pop_episodes(self, keep: bool = False) -> list[Episode]:
        """Of each agent whose episodes have ended since the last call as many with their mean return and length.

        keep: the next call tells of them again.
        """
        return mean_episodes(self.going.ended.clone() if keep else self.going.ended)

    def pop_faults(self) -> dict[int, str]:
        """None: a network whose actions are not finite shows in the losses."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"steps": self._steps, "going": flatten(self.going)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> int:
        """Restore what `state_dict` gave. Returns 0: no environment has to begin anew."""
        self._steps = int(saved["steps"])
        load_flat(self.going, saved["going"])
        return 0

    def close(self) -> None:
        """There is nothing to close."""


def _going(now: Now, obs: Shaped[Tensor, "N *O"]) -> Going:
    steps = now.steps
    zeros = torch.zeros(len(steps), device=steps.device)
    return Going(now, obs, torch.ones_like(steps, dtype=torch.bool), zeros, zeros.new_zeros(3))


def counted(going: Going, played: Played) -> Going:
    """The environments of an agent after a step, with what it brought."""
    ret, length, over = going.ret + played.reward, going.now.steps + 1, played.is_first
    some = over.to(ret.dtype)
    ended = torch.stack([some.sum(), (ret * some).sum(), (length * some).sum()])
    return Going(
        played.now,
        played.obs,
        over,
        torch.where(over, 0.0, ret),
        going.ended + ended,
    )


def mean_episodes(ended: Float[Tensor, "S 3"]) -> list[Episode]:
    """Of each agent as many episodes as have ended, with their mean return and length. ended: set to zero."""
    found = []
    for agent, (count, ret, length) in enumerate(ended.tolist()):
        mean = Episode(agent, 0, ret / max(count, 1.0), round(length / max(count, 1.0)))
        found += [mean] * int(count)
    ended.zero_()
    return found
