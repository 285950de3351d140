"""Evaluation in environments on the device: all episodes of all agents at once, read when they are over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.population import Execution, Lifted, over_agents, stack
from deeprl.core.tree import tree_map, write_into
from deeprl.envs.device.base import DeviceEnv, Now, begin, step
from deeprl.envs.vector import Episode
from deeprl.run.evaluate import LONGEST, GreedyPolicy, StoppedError, cut_episodes

_LOOKS = 50  # steps between looks at how many episodes are over


class Underway(NamedTuple):
    """The E episodes of one agent in play. over: which have ended; ret, length: their sums, which stay from then on."""

    now: Now
    obs: Shaped[Tensor, "E *O"]
    is_first: Bool[Tensor, " E"]
    carry: Any
    over: Bool[Tensor, " E"]
    ret: Float[Tensor, " E"]
    length: Int[Tensor, " E"]
    steps: Int[Tensor, ""]


class DeviceEvaluator:
    """Plays `episodes` of every agent of a population, with the face of `evaluate.Evaluator`.

    All that episode e of the agent with seed s in evaluation number `counter` draws depends on (s, e, counter) alone.
    limit: the step at which an episode is truncated; 0: `LONGEST`, and `cut` is a line about those of the last call.
    """

    def __init__(self, env: DeviceEnv, limit: int, seeds: Sequence[int], episodes: int, execution: Execution):
        self._env, self._limit, self._episodes = env, limit, episodes
        self._execution = replace(execution, precision="fast")
        self._streams = rng.Streams(seeds, execution.device)
        self._places = torch.arange(episodes, device=execution.device)
        self._of: GreedyPolicy | None = None
        self._step: Lifted
        self._playing: Underway
        self._keys: Tensor
        self.cut = ""

    def __call__(
        self,
        policy: GreedyPolicy,
        counter: int = 0,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[Episode]:
        """Episodes ordered by member and episode number. counter: 0 <= counter < 2^32, usually the training step.

        progress: called now and then with the number of finished episodes and that of the step. stop: asked as often;
        raises StoppedError where it is true.
        """
        self._begin(policy, counter)
        number, last = 0, self._limit or LONGEST
        while not self._playing.over.all():
            together = min(_LOOKS, last - number)
            for _ in range(together):
                self._step(self._playing, policy.state, self._keys)
            number += together
            if progress is not None:
                progress(int(self._playing.over.sum()), number)
            if stop is not None and stop():
                raise StoppedError
        found = zip(self._playing.ret.tolist(), self._playing.length.tolist(), strict=True)
        episodes = [
            Episode(agent, e, ret, length)
            for agent, rows in enumerate(found)
            for e, (ret, length) in enumerate(zip(*rows, strict=True))
        ]
        self.cut = cut_episodes(episodes) if not self._limit else ""
        return episodes

    def _begin(self, policy: GreedyPolicy, counter: int) -> None:
        """Put all episodes at their beginning, in the place of those of the call before."""
        keys = self._streams("eval", counter)
        playing = stack([self._first(policy, key) for key in keys.unbind()])
        if self._of is policy:
            write_into((self._playing, self._keys), (playing, keys))
            return
        self._of, self._playing, self._keys = policy, playing, keys
        self._step = over_agents(self._one(policy), self._execution, donate=True)

    def _first(self, policy: GreedyPolicy, key: rng.Key) -> Underway:
        now, obs = torch.vmap(lambda place: begin(self._env, rng.fold_in(key, place)))(self._places)
        yes, zero = torch.ones_like(self._places, dtype=torch.bool), torch.zeros_like(self._places)
        carry = memory.fresh(policy.begin, self._episodes, key.device)
        return Underway(now, obs, yes, carry, ~yes, zero.float(), zero, zero.sum())

    def _one(self, policy: GreedyPolicy) -> Callable[..., tuple[Underway]]:
        limit, env = self._limit or LONGEST, self._env

        def one(playing: Underway, state: Any, key: rng.Key) -> tuple[Underway]:
            act_key, env_key = rng.split(rng.fold_in(key, 2**20 + playing.steps), 2)
            action, carry = policy.act(state, playing.carry, playing.obs, playing.is_first, act_key)

            def played(now: Now, act: Tensor, place: Tensor) -> Any:
                return step(env, now, act, rng.fold_in(env_key, place), limit)

            after = torch.vmap(played)(playing.now, action, self._places)
            more = ~playing.over
            new = Underway(
                after.now,
                after.obs,
                after.is_first,
                tree_map(torch.clone, carry),
                playing.over | after.is_first,
                playing.ret + torch.where(more, after.reward, 0.0),
                playing.length + more,
                playing.steps + 1,
            )
            return (new,)

        return one

    def close(self) -> None:
        """There is nothing to close."""
