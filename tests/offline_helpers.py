"""What tests of offline algorithms share: a small dataset, its environment, a population that learns from it.

The environment is registered at import: `offline_helpers:MadeLinear-v0`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from helpers import assert_equal

from deeprl.core import rng
from deeprl.core.population import Execution, freezing, member, new_agents, over_agents
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import flatten
from deeprl.data.datasets import Dataset
from deeprl.data.offline import facts_of
from deeprl.replay import Stored
from deeprl.run.learning import sampled

SPEC = EnvSpec((3,), 2, (-1.0,) * 2, (1.0,) * 2)


class Linear(gym.Env):
    """What the arrays of `made` come from: s' = 0.9 s + 0.1 (a, sum a), r = s_0 - |a|^2."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    state = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=3).astype(np.float32)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.state[0] - np.square(action).sum())
        self.state = step(self.state, action)
        return self.state, reward, False, False, {}


if "MadeLinear-v0" not in gym.registry:
    gym.register("MadeLinear-v0", Linear, max_episode_steps=20)


def step(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The successor of an observation."""
    return (0.9 * obs + 0.1 * np.array([*action, action.sum()])).astype(np.float32)


def made(rows: int = 200, length: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """D4RL's arrays of episodes of `length` steps: s' = 0.9 s + 0.1 (a, sum a), r = s_0 - |a|^2, every second one ends
    by termination, the others by a time limit."""
    generator = np.random.default_rng(seed)
    obs, action = np.zeros((rows, 3), np.float32), generator.uniform(-1, 1, (rows, 2)).astype(np.float32)
    next_obs = np.zeros_like(obs)
    for t in range(rows):
        obs[t] = generator.normal(size=3) if t % length == 0 else next_obs[t - 1]
        next_obs[t] = step(obs[t], action[t])
    last = np.arange(rows) % length == length - 1
    odd = (np.arange(rows) // length) % 2 == 1
    reward = (obs[:, 0] - np.square(action).sum(1)).astype(np.float32)
    return {
        "observations": obs,
        "actions": action,
        "rewards": reward,
        "next_observations": next_obs,
        "terminals": last & odd,
        "timeouts": last & ~odd,
    }


def made_dataset(rows: int = 200, length: int = 20, seed: int = 0, name: str = "made") -> Dataset:
    """The same as `load_dataset` would give it."""
    a = made(rows, length, seed)
    order = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    data = Stored(*(torch.from_numpy(a[key]) for key in order))
    ends = torch.arange(length, rows + 1, length)
    returns = torch.from_numpy(a["rewards"].astype(np.float64)).reshape(-1, length).sum(1)
    return Dataset(name, data, ends, returns, SPEC)


def write_made(path: Path, rows: int = 200, seed: int = 0, **other: Any) -> str:
    """A file of these arrays; other: arrays in place of its own. Returns its path."""
    np.savez(path, **(made(rows, seed=seed) | other))
    return str(path)


def agents_of(module: Any, config: Any, dataset: Dataset) -> list[Any]:
    """The states of a population's agents, before any update."""
    net = module.build_net(SPEC, config)
    facts = facts_of(dataset, config.normalize_obs, config.rewards)
    return [module.init(net, config.member(i), rng.key(s, "init"), facts) for i, s in enumerate(config.seeds)]


def learned(module: Any, config: Any, execution: Execution, updates: int = 3, dataset: Dataset | None = None) -> Any:
    """The state of a population after some updates; a policy that is delayed is updated in each second one."""
    dataset = dataset or made_dataset()
    agents = new_agents(agents_of(module, config, dataset))
    net, delayed = module.build_net(SPEC, config), hasattr(config, "policy_delay")
    learner = getattr(module, "learner", functools.partial(sampled, module.update))  # some have more to sample
    learners = [learner(net, config, **({"policy": p} if delayed else {})) for p in (False, True)]
    run = [over_agents(freezing(f), execution, shared=(1,), donate=True) for f in learners[: 2 if delayed else 1]]
    first, size = (torch.full((len(config.seeds),), n) for n in (0, len(dataset)))
    for i in range(updates):
        run[i % len(run)](agents, dataset.data, size, *keys(i, config.seeds), first)
    assert agents.frozen_at.tolist() == [-1] * len(config.seeds)
    return agents.state


def assert_population_equals_single(module: Any, config: Any) -> None:
    """Bit-equal member by member in the `loop` backend; to rounding in `vmap`."""
    looped, vmapped = (learned(module, config, Execution(backend)) for backend in ("loop", "vmap"))
    for i in range(len(config.seeds)):
        assert_equal(member(looped, i), member(learned(module, config.member(i), Execution("loop")), 0))
    assert_close_states(vmapped, looped)


def assert_compiled_equals_eager(module: Any, config: Any) -> None:
    """To rounding, in the `vmap` backend."""
    assert_close_states(*(learned(module, config, Execution("vmap", compile=c)) for c in (True, False)))


def assert_close_states(a: Any, b: Any) -> None:
    """Parameters of two states are equal to rounding."""
    for name, ours in flatten(a).items():
        if "moments" not in name and "hparams" not in name:
            torch.testing.assert_close(ours, flatten(b)[name], rtol=1e-4, atol=1e-5, msg=name)


def keys(number: int, seeds: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampling and update keys of a population's update, [S, 4] each."""
    streams = rng.Streams(tuple(seeds))
    return streams("sample", number), streams("update", number)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of an optimizer of torch."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
