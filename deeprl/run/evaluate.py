"""Evaluation: whole episodes of a fixed policy in environments of its own, with its own random stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.population import Execution, over_agents
from deeprl.core.tree import tree_leaves
from deeprl.envs.atari import GAME_LENGTH, GAME_OVER, GAME_RETURN
from deeprl.envs.checked import Checked
from deeprl.envs.dmc import DMControl
from deeprl.envs.make import EnvFactory, MakeEnv
from deeprl.envs.restorable import forgets
from deeprl.envs.spaces import env_spec, to_env_action
from deeprl.envs.state import wrappers_of
from deeprl.envs.vector import Episode, env_seeds
from deeprl.run.progress import Progress

# (obs [S, E, *O], is_first [S, E] bool, keys [S, 4]) -> action [S, E, A] in [-1, 1], or [S, E] of discrete actions;
# rows of finished episodes are ignored.
PopulationPolicy = Callable[[np.ndarray, np.ndarray, Tensor], np.ndarray]

LONGEST = 5_000  # steps: where an episode ends at the latest in an environment that names no time limit

_PARALLEL_EPISODES = 10  # environments kept per agent; more episodes run in rounds of as many


class StoppedError(Exception):
    """An evaluation was asked to stop before its end."""


def names_time_limit(env: gym.Env) -> bool:
    """Whether episodes are known to end: by Gymnasium's `TimeLimit`, or by the limit of a suite that deeprl knows."""
    base: Any = env.unwrapped
    limited = bool(env.spec and env.spec.max_episode_steps) or isinstance(base, DMControl)
    if type(base).__module__ == "ale_py.env":
        limited = base.ale.getInt("max_num_frames_per_episode") > 0
    return limited or any(isinstance(layer, gym.wrappers.TimeLimit) for layer in wrappers_of(env))


class GreedyPolicy:
    """A population's policy for evaluation, a `PopulationPolicy`, reading `state` as it is at each call.

    act(state, carry, obs, is_first, key) of one agent, without exploration. execution: that of the training run, of
    which only the backend counts here. begin: what an agent remembers as n episodes begin; it does so anew at a call
    in which all rows are the first of an episode, and only there may the number of episodes change. Runs eagerly, in
    f32: it is called with other shapes than in training, and a graph for them costs more than it saves. Threads may
    call it at the same time: each has a memory of its own.
    """

    def __init__(
        self,
        act: Callable[..., tuple[Tensor, Any]],
        state: Any,
        execution: Execution | None = None,
        begin: memory.Begin = lambda n: (),
    ):
        self.act, self.state, self.begin = act, state, begin
        self._device = tree_leaves(state)[0].device
        backend = execution.backend if execution else "vmap"
        self._lifted = over_agents(act, Execution(backend, device=str(self._device)))
        self._own = threading.local()

    def __call__(self, obs: np.ndarray, is_first: np.ndarray, keys: Tensor) -> np.ndarray:
        inputs, own = (torch.from_numpy(x).to(self._device) for x in (obs, is_first)), self._own
        if is_first.all() or not hasattr(own, "carry"):
            own.carry = memory.fresh_of_all(self.begin, len(is_first), is_first.shape[1], self._device)
        action, own.carry = self._lifted(self.state, own.carry, *inputs, keys.to(self._device))
        return action.cpu().numpy()


def cut_episodes(episodes: Sequence[Episode]) -> str:
    """A line about those that were cut where no time limit is known; empty if none was."""
    count = sum(e.length >= LONGEST for e in episodes)
    remedy = """another limit: --env-kwargs '{"max_episode_steps": 1000}'"""
    what = f"evaluation episodes cut after {LONGEST:,} steps, as no time limit is named"
    return f"{what}: {count} of {len(episodes)}; {remedy}" if count else ""


class Evaluator:
    """Runs `episodes` episodes of every agent of a population and returns all of them.

    The start of episode e of the agent with seed s in evaluation number `counter` depends on (s, e, counter) alone.
    Environments are made at the first call and kept; keep=False makes new ones for every call, so that wrappers with
    a memory cannot carry it from one evaluation to the next. Those with a `state_dict` may have one too.
    Where no time limit is known, episodes are cut after `LONGEST` steps; `cut` is a line about those of the last call.
    Calls from several threads follow one another, as they play in the same environments.
    """

    def __init__(self, make: MakeEnv, seeds: Sequence[int], episodes: int, keep: bool = True):
        self._make, self._seeds, self._episodes, self._keep = make, list(seeds), episodes, keep
        self._envs: list[list[gym.Env]] = []
        self._playing = threading.RLock()
        self.cut = ""

    def __call__(
        self,
        policy: PopulationPolicy,
        counter: int = 0,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[Episode]:
        """Episodes ordered by member and episode number. counter: 0 <= counter < 2^32, usually the training step.

        progress: called at every step with the number of finished episodes and that of the step. stop: asked at every
        step; raises StoppedError where it is true.
        """
        with self._playing:
            return self._play(policy, counter, progress, stop)

    def _play(
        self,
        policy: PopulationPolicy,
        counter: int,
        progress: Callable[[int, int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> list[Episode]:
        starts = [env_seeds(seed, "eval", self._episodes, counter) for seed in self._seeds]
        episodes: list[Episode] = []
        for first in range(0, self._episodes, _PARALLEL_EPISODES):
            width = min(_PARALLEL_EPISODES, self._episodes - first)
            rounds = self._round(policy, [s[first : first + width] for s in starts], first, counter)
            for step, ended in enumerate(rounds, 1):
                episodes += ended
                if progress is not None:
                    progress(len(episodes), step)
                if stop is not None and stop():
                    self.close()
                    raise StoppedError
        self.cut = cut_episodes(episodes) if self._endless else ""
        if not self._keep or hasattr(self._envs[0][0].unwrapped, "state_dict"):
            self.close()
        return sorted(episodes)

    def _round(
        self, policy: PopulationPolicy, starts: list[list[int]], first: int, counter: int
    ) -> Iterator[list[Episode]]:
        """Play one episode in each of S x E environments; yields the episodes that ended, step by step."""
        envs = self._made(len(starts[0]))
        spec = env_spec(envs[0][0])
        self._endless = not names_time_limit(envs[0][0])
        shape = (len(starts), len(starts[0]))
        obs = np.zeros((*shape, *spec.obs_shape), spec.obs_dtype)
        is_first = np.ones(shape, bool)
        returns, lengths = np.zeros(shape), np.zeros(shape, np.int64)
        running = list(np.ndindex(shape))
        keys = rng.Streams(self._seeds)("eval", counter)
        for m, e in running:
            obs[m, e] = envs[m][e].reset(seed=starts[m][e])[0]
        while running:
            keys[:, 3] = first * 2**20 + lengths.max() + 1  # 0 is what the starts were drawn from
            action = to_env_action(spec, policy(obs, is_first, keys))
            is_first[:] = False
            ended = []
            for m, e in running:
                obs[m, e], reward, terminated, truncated, info = envs[m][e].step(action[m, e])
                returns[m, e] += float(reward)
                lengths[m, e] += 1
                truncated = truncated or (self._endless and bool(lengths[m, e] >= LONGEST))
                if not (terminated or truncated):
                    continue
                if info.get(GAME_OVER, True) or truncated:
                    result = info.get(GAME_RETURN, returns[m, e]), info.get(GAME_LENGTH, lengths[m, e])
                    ended.append(Episode(m, first + e, float(result[0]), int(result[1])))
                else:  # a life was lost
                    obs[m, e], is_first[m, e] = envs[m][e].reset()[0], True
            over = {(e.member, e.env - first) for e in ended}
            running = [place for place in running if place not in over]
            yield ended

    def _made(self, width: int) -> list[list[gym.Env]]:
        if not self._envs:
            self._envs = [[] for _ in self._seeds]
        for row in self._envs:
            row.extend(Checked(self._make()) for _ in range(width - len(row)))
        return self._envs

    def close(self) -> None:
        for row in self._envs:
            for env in row:
                env.close()
        self._envs = []


class Evaluations:
    """Those of a run: in what, and which was the last.

    make: how their environments are made, None before `begin` and in a run without. at: the step of the last one.
    """

    def __init__(self, seeds: Sequence[int], episodes: int):
        self.make: EnvFactory | None = None
        self.at = -1
        self._seeds, self._episodes = seeds, episodes
        self._evaluator: Any = None  # an `Evaluator`, or what has its face

    def begin_in(self, evaluator: Any, make: EnvFactory) -> None:
        """Set them up with an evaluator of another kind; make: how its environments are made elsewhere."""
        self.make, self._evaluator = make, evaluator

    def begin(self, make: EnvFactory) -> list[str]:
        """Set them up. Returns lines about what the user should know.

        They are played in the same environments each time, unless these remember: a resumed run, which has others, must
        come to the same episodes. A user's own wrappers may remember what does not show at once. Raises DeeprlError if
        the first steps in one break the rules of environments.
        """
        self.make = make
        if self._episodes == 0:
            self._evaluator = Evaluator(make, self._seeds, 0)
            return []
        env = make()
        limited, same = names_time_limit(env), bool(make.wrappers) or forgets(env)
        env.close()
        self._evaluator = Evaluator(make, self._seeds, self._episodes, keep=same and not make.wrappers)
        cut = f"{make.env} names no time limit: evaluation episodes are cut after {LONGEST:,} steps"
        anew = f"{make.env} goes another way when an episode is played again: every evaluation makes new environments"
        return [*([] if limited else [cut]), *([] if same else [anew])]

    def missing(self, step: int) -> bool:
        """Whether a step at which there is to be one has none yet."""
        return self._evaluator is not None and self._episodes > 0 and self.at != step

    def run(self, policy: GreedyPolicy, step: int, progress: Progress, stop: Callable[[], bool]) -> list[Episode]:
        """The episodes of the evaluation of a step. Raises StoppedError where `stop` says so."""
        count = self._episodes * len(self._seeds)
        episodes: list[Episode] = self._evaluator(
            policy, step, lambda n, t: progress.meanwhile(f"evaluating: {n} of {count} episodes, step {t:,}"), stop
        )
        if self._evaluator.cut:
            progress.say(self._evaluator.cut)
        self.at = step
        return episodes

    def close(self) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
