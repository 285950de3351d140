"""Small recordings for tests of datasets: an environment whose successors can be worked out, and files of all kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
EPISODES = (5, 1, 7)  # lengths; the second terminates, the others are cut


def successor(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """f(s, a) of the toy environment, the same float32 numbers for one row and for many."""
    return (obs * np.float32(0.5) + action).astype(np.float32)


class Toy(gym.Env):
    """Moves in the plane to s / 2 + a; a is within [-2, 2]; no end of its own."""

    observation_space = spaces.Box(-4, 4, (2,))
    action_space = spaces.Box(-2, 2, (2,))

    def __init__(self, big: bool = False):
        if big:
            self.action_space = spaces.Box(-4, 4, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-4, 4, 2).astype(np.float32)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = successor(self.state, action)
        return self.state, float(self.state.sum()), False, False, {}


class Longer(gym.ObservationWrapper):
    """Observations of three numbers: those of the environment, and their sum."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(-8, 8, (3,))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.append(observation, observation.sum()).astype(np.float32)


gym.register("DatasetToy-v0", entry_point=Toy, max_episode_steps=5)


def episodes(lengths: Sequence[int] = EPISODES, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Episodes of the toy environment as Minari stores them; those of an odd number terminate."""
    env, made = Toy(), []
    env.action_space.seed(seed + 100)  # that of the first episode would draw a = s / 2, so that s' = s
    for number, length in enumerate(lengths):
        obs = [env.reset(seed=seed + number)[0]]
        action = [env.action_space.sample() for _ in range(length)]
        reward = []
        for a in action:
            now, r, *_ = env.step(a)
            obs.append(now)
            reward.append(r)
        last = np.arange(length) == length - 1
        over = bool(number % 2)
        made.append(
            {
                "observations": np.array(obs),
                "actions": np.array(action),
                "rewards": np.array(reward),
                "terminations": last & over,
                "truncations": last & (not over),
            }
        )
    return made


def flat(lengths: Sequence[int] = EPISODES, seed: int = 0) -> dict[str, np.ndarray]:
    """The same in D4RL's layout."""
    parts = episodes(lengths, seed)

    def joined(key: str) -> np.ndarray:
        return np.concatenate([p[key] for p in parts])

    return {
        "observations": np.concatenate([p["observations"][:-1] for p in parts]),
        "actions": joined("actions"),
        "rewards": joined("rewards"),
        "terminals": joined("terminations"),
        "timeouts": joined("truncations"),
        "next_observations": np.concatenate([p["observations"][1:] for p in parts]),
    }


def write(path: Path, arrays: dict[str, Any], **attrs: Any) -> str:
    """A file of the kind that its suffix tells; attrs, of HDF5 alone, make it one of our own.

    They are stored as JSON unless they are text.
    """
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return str(path)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
        for key, value in (attrs | {"deeprl": "0.1.0"} if attrs else {}).items():
            file.attrs[key] = value if isinstance(value, str) else json.dumps(value)
    return str(path)


def write_minari(
    root: Path,
    name: str = "toy/plane-v0",
    parts: Sequence[dict[str, Any]] | None = None,
    acts: spaces.Space = Toy.action_space,
    observes: spaces.Space = Toy.observation_space,
    **metadata: Any,
) -> Path:
    """A Minari dataset below `root`, by Minari itself; metadata is added to its own. Returns its directory."""
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [EpisodeBuffer(id=None, **part) for part in (episodes() if parts is None else parts)]
    minari.create_dataset_from_buffers(name, buffers, action_space=acts, observation_space=observes)
    path = root / name / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    return root / name
