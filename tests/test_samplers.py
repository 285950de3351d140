"""Samplers and frame replay, against numbers by hand and against a plain record of everything that happened."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeprl import rng
from deeprl.replay import FrameReplay, Replay, Stored, make_replay
from deeprl.samplers import Window, n_step, uniform
from deeprl.spec import Batch, EnvSpec, Transition
from deeprl.tree import tree_map

GAMMA = 0.9
KEY = rng.key(0, "sample")


def episode_rows(rewards: list[float], terminated: list[int], truncated: list[int]) -> Stored:
    """Rows of one environment whose observation is the row's number and whose successor is that number + 0.5."""
    n = len(rewards)
    number = torch.arange(n, dtype=torch.float32)[:, None]
    flags = [torch.tensor([i in ends for i in range(n)]) for ends in (terminated, truncated)]
    return Stored(number, number[:, 0].to(torch.int64), torch.tensor(rewards), *flags, number + 0.5)


def window_at(data: Stored, row: int, steps: int, envs: int = 1) -> tuple[float, float, float]:
    """Reward, discount and successor of the n-step transition that begins in a row."""
    batch = n_step(data, torch.tensor([row]), Window(steps, envs), GAMMA)
    return float(batch.reward), float(batch.discount), float(batch.next_obs)


def test_n_step_return_by_hand() -> None:
    data = episode_rows([1.0, 2.0, 4.0, 8.0, 16.0], [], [])
    # 1 + 0.9 * 2 + 0.81 * 4 = 6.04; bootstraps from the successor of row 2 with 0.9^3
    assert window_at(data, 0, 3) == pytest.approx((6.04, 0.729, 2.5))
    assert window_at(data, 1, 1) == pytest.approx((2.0, 0.9, 1.5))


def test_termination_ends_the_sum_and_the_bootstrap() -> None:
    data = episode_rows([1.0, 2.0, 4.0, 8.0, 16.0], [1], [])
    assert window_at(data, 0, 3) == pytest.approx((1 + 0.9 * 2, 0.0, 1.5))
    assert window_at(data, 1, 3) == pytest.approx((2.0, 0.0, 1.5))
    assert window_at(data, 2, 3) == pytest.approx((4 + 0.9 * 8 + 0.81 * 16, 0.729, 4.5))


def test_time_limit_ends_the_sum_and_bootstraps_with_the_steps_taken() -> None:
    data = episode_rows([1.0, 2.0, 4.0, 8.0, 16.0], [], [1])
    # two steps were possible: gamma^2, not gamma^3 and not gamma
    assert window_at(data, 0, 3) == pytest.approx((1 + 0.9 * 2, 0.81, 1.5))
    assert window_at(data, 1, 3) == pytest.approx((2.0, 0.9, 1.5))


def test_both_ends_at_once_are_a_termination() -> None:
    assert window_at(episode_rows([1.0, 2.0, 4.0], [1], [1]), 0, 3) == pytest.approx((2.8, 0.0, 1.5))


def test_windows_of_several_environments_stay_in_their_own() -> None:
    data = episode_rows([1.0, 100.0, 2.0, 200.0, 4.0, 400.0], [3], [])  # rows 0 2 4 and 1 3 5; row 3 terminates
    assert window_at(data, 0, 3, envs=2) == pytest.approx((6.04, 0.729, 4.5))
    assert window_at(data, 1, 3, envs=2) == pytest.approx((100 + 0.9 * 200, 0.0, 3.5))


class Seen(NamedTuple):
    """One transition as it happened: stacks and everything that followed it in its environment."""

    obs: np.ndarray
    reward: float
    next_obs: np.ndarray
    terminated: bool
    ended: bool


class World:
    """S x N environments of images [2, 2] whose pixels number the frames; episodes end as a random stream says."""

    def __init__(self, agents: int, envs: int, stack: int, ends: float, seed: int):
        self.shape, self.stack, self.ends = (agents, envs), stack, ends
        self.random = np.random.default_rng(seed)
        self.count = 0
        self.now = {place: self.first() for place in np.ndindex(self.shape)}
        self.history: dict[tuple[int, int], list[Seen]] = {place: [] for place in np.ndindex(self.shape)}

    def frame(self) -> np.ndarray:
        self.count += 1
        return np.full((2, 2), self.count % 251, np.uint8)

    def first(self) -> np.ndarray:
        return np.stack([self.frame()] * self.stack) if self.stack else self.frame()

    def after(self, obs: np.ndarray) -> np.ndarray:
        return np.concatenate([obs[1:], self.frame()[None]]) if self.stack else self.frame()

    def step(self) -> Transition:
        fields = {name: [] for name in ("obs", "reward", "terminated", "truncated", "next_obs")}
        for place in np.ndindex(self.shape):
            obs = self.now[place]
            seen = Seen(obs, float(self.random.integers(-3, 4)), self.after(obs), *(self.random.random(2) < self.ends))
            terminated, truncated = seen.terminated, seen.ended
            seen = seen._replace(ended=terminated or truncated)
            self.history[place].append(seen)
            self.now[place] = self.first() if seen.ended else seen.next_obs
            for name, value in zip(fields, (obs, seen.reward, terminated, truncated, seen.next_obs), strict=True):
                fields[name].append(value)
        arrays = {k: np.array(v).reshape(*self.shape, *np.shape(v[0])) for k, v in fields.items()}
        return Transition(action=np.arange(np.prod(self.shape)).reshape(self.shape), **arrays)

    def n_step(self, place: tuple[int, int], index: int, steps: int) -> tuple[np.ndarray, float, float, np.ndarray]:
        """The n-step transition that begins with transition `index` of an environment, added up one by one."""
        reward, gamma = 0.0, 1.0
        for seen in self.history[place][index : index + steps]:
            reward, gamma = reward + gamma * seen.reward, gamma * GAMMA
            if seen.ended:
                break
        return self.history[place][index].obs, reward, gamma * (not seen.terminated), seen.next_obs


def agent_of(replay: Replay, index: int) -> object:
    return tree_map(lambda x: x[index], replay.data)


def check_against_history(world: World, replay: Replay, window: Window, agent: int, seed: int) -> set[int]:
    """Compare a large batch with the plain record. Returns the transitions of environment 0 that were drawn."""
    data = agent_of(replay, agent)
    row = uniform(data, replay.extent, rng.key(seed, "sample"), 400, window)
    batch: Batch = n_step(data, row, window, GAMMA)
    drawn = set()
    for i, r in enumerate(row.tolist()):
        env, slot = r % replay.envs, r // replay.envs
        steps = len(world.history[agent, env])
        held = replay.capacity // replay.envs
        index = slot + (steps - 1 - slot) // held * held  # the newest transition that was written to this row
        assert index + window.steps <= steps, "the window runs over the place of writing"
        obs, reward, discount, next_obs = world.n_step((agent, env), index, window.steps)
        assert np.array_equal(batch.obs[i].numpy(), obs)
        assert float(batch.reward[i]) == pytest.approx(reward, abs=1e-5)
        assert float(batch.discount[i]) == pytest.approx(discount)
        if discount > 0:  # what follows a termination is never looked at
            assert np.array_equal(batch.next_obs[i].numpy(), next_obs)
        if env == 0:
            drawn.add(index)
    return drawn


@given(
    envs=st.integers(1, 3), stack=st.sampled_from([0, 1, 2, 4]), steps=st.integers(1, 4),
    ends=st.sampled_from([0.0, 0.1, 0.5]), length=st.integers(4, 60), rows=st.integers(16, 24), seed=st.integers(0, 99),
)  # fmt: skip
def test_frames_give_back_what_was_seen(
    envs: int, stack: int, steps: int, ends: float, length: int, rows: int, seed: int
) -> None:
    world = World(2, envs, stack, ends, seed)
    shape = (stack, 2, 2) if stack else (2, 2)
    spec = EnvSpec(shape, 0, (), (), "uint8", actions=9, frame_stack=stack)
    replay = make_replay(2, rows * envs, spec, envs)
    assert isinstance(replay, FrameReplay)
    for _ in range(length):
        replay.add(world.step())
    for agent in range(2):
        check_against_history(world, replay, Window(steps, envs, stack), agent, seed)


def test_every_stored_transition_can_be_drawn_while_frames_suffice() -> None:
    world = World(1, 1, 4, 0.05, 3)
    replay = make_replay(1, 32, EnvSpec((4, 2, 2), 0, (), (), "uint8", actions=2, frame_stack=4))
    for _ in range(100):
        replay.add(world.step())
    assert int(replay.data.skip) == 0
    drawn = check_against_history(world, replay, Window(2, 1, 4), 0, 5)
    assert drawn == set(range(68, 99))  # the newest has no second step yet


def test_rows_whose_frames_are_gone_are_skipped() -> None:
    world = World(1, 1, 4, 1.0, 3)  # every step ends by a time limit or a termination
    replay = make_replay(1, 64, EnvSpec((4, 2, 2), 0, (), (), "uint8", actions=2, frame_stack=4))
    for _ in range(200):
        step = world.step()
        replay.add(step._replace(terminated=np.zeros((1, 1), bool), truncated=np.ones((1, 1), bool)))
    # two frames per transition, 64 + 4 + 6 frames held
    assert int(replay.data.skip) == 64 - 37
    row = uniform(agent_of(replay, 0), replay.extent, KEY, 500, Window(1, 1, 4))
    age = (row - replay.extent.oldest) % 64
    assert set(age.tolist()) == set(range(27, 64))
