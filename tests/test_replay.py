"""Replay against a plain Python list: what is stored, what is overwritten, what can be drawn, by whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deeprl.core import rng
from deeprl.core.spec import Batch, EnvSpec, Transition
from deeprl.envs.make import make_env
from deeprl.envs.vector import PopulationEnvs
from deeprl.errors import DeeprlError
from deeprl.replay import Replay
from deeprl.replay.samplers import sample

SPEC = EnvSpec((2,), 1, (-1.0,), (1.0,))
SIZES = {
    "agents": st.integers(1, 3),
    "envs": st.integers(1, 4),
    "slots": st.integers(1, 6),
    "steps": st.integers(0, 20),
}


def transition(agents: int, envs: int, step: int) -> Transition:
    """Every number names its row: agent m, environment e, step t have the id 1000 (m + 1) + 10 t + e + 1."""
    m, e = np.meshgrid(np.arange(agents), np.arange(envs), indexing="ij")
    name = (1000.0 * (m + 1) + 10.0 * step + e + 1).astype(np.float32)
    return Transition(
        obs=np.stack([name, -name], -1),
        action=name[..., None] / 8192,
        reward=name * 2,
        terminated=name % 2 == 0,
        truncated=name % 3 == 0,
        next_obs=np.stack([name + 0.5, -name], -1),
    )


def filled(agents: int, envs: int, slots: int, steps: int) -> tuple[Replay, list[list[float]]]:
    """A buffer of `slots` steps after `steps` inserts, and its model: the ids each agent must hold, oldest first."""
    replay = Replay(agents, slots * envs, SPEC, envs)
    model: list[list[float]] = [[] for _ in range(agents)]
    for t in range(steps):
        data = transition(agents, envs, t)
        replay.add(data)
        for m in range(agents):
            model[m] = (model[m] + data.obs[m, :, 0].tolist())[-slots * envs :]
    return replay, model


def member_rows(replay: Replay, m: int) -> Any:
    return type(replay.data)(*(rows[m] for rows in replay.data))


def check_fields(batch: Batch, gamma: float) -> None:
    """All fields of a drawn row belong to one transition."""
    name = batch.obs[:, 0]
    assert torch.equal(batch.obs[:, 1], -name)
    assert torch.equal(batch.action, name[:, None] / 8192)
    assert torch.equal(batch.reward, 2 * name)
    assert torch.equal(batch.next_obs, torch.stack([name + 0.5, -name], -1))
    # gamma where the row did not terminate (odd id), else 0; `truncated` (ids divisible by 3) plays no part.
    torch.testing.assert_close(batch.discount, gamma * (name % 2))


@given(**SIZES)
def test_buffer_holds_the_newest_rows_of_each_agent(agents: int, envs: int, slots: int, steps: int) -> None:
    replay, model = filled(agents, envs, slots, steps)
    size = int(replay.size)
    assert size == len(model[0]) == min(steps, slots) * envs
    for m in range(agents):
        assert sorted(replay.data.obs[m, :size, 0].tolist()) == sorted(model[m])
        assert not replay.data.obs[m, size:].any()


@given(**(SIZES | {"steps": st.integers(1, 20)}), seed=st.integers(0, 100))
def test_sample_draws_whole_rows_that_were_written(agents: int, envs: int, slots: int, steps: int, seed: int) -> None:
    replay, model = filled(agents, envs, slots, steps)
    for m in range(agents):
        batch = sample(member_rows(replay, m), replay.size, rng.key(seed, "sample"), 32, 0.5)
        assert set(batch.obs[:, 0].tolist()) <= set(model[m])
        check_fields(batch, 0.5)


def test_sample_reaches_every_row_about_equally() -> None:
    replay, model = filled(1, 2, 5, 17)
    batch = sample(member_rows(replay, 0), replay.size, rng.key(0, "sample"), 10_000, 0.9)
    names, counts = batch.obs[:, 0].unique(return_counts=True)
    assert sorted(names.tolist()) == sorted(model[0])
    # 1000 expected of each, standard deviation sqrt(10000 * 0.1 * 0.9) = 30; five of them.
    assert float((counts - 1000).abs().max()) < 150


def test_discount_is_gamma_unless_terminated_and_ignores_truncation() -> None:
    replay = Replay(1, 4, SPEC, 4)
    data = transition(1, 4, 0)._replace(
        terminated=np.array([[False, False, True, True]]), truncated=np.array([[False, True, False, True]])
    )
    replay.add(data)
    batch = sample(member_rows(replay, 0), replay.size, rng.key(1, "sample"), 100, torch.tensor(0.9))
    expected = {1001.0: 0.9, 1002.0: 0.9, 1003.0: 0.0, 1004.0: 0.0}
    found = {float(o): round(float(d), 6) for o, d in zip(batch.obs[:, 0], batch.discount, strict=True)}
    assert found == expected
    assert batch.discount.dtype == torch.float32
    assert batch.reward.shape == batch.discount.shape == (100,)


@given(agents=st.integers(2, 4), seed=st.integers(0, 100))
def test_population_draws_equal_each_agent_alone_and_stay_apart(agents: int, seed: int) -> None:
    replay, model = filled(agents, 2, 4, 6)
    keys = torch.stack([rng.key(seed + m, "sample") for m in range(agents)])
    gammas = torch.linspace(0.5, 0.9, agents)

    def draw(data: Any, size: Tensor, key: Tensor, gamma: Tensor) -> Batch:
        return sample(data, size, key, 16, gamma)

    together = torch.vmap(draw, in_dims=(0, None, 0, 0))(replay.data, replay.size, keys, gammas)
    for m in range(agents):
        alone = draw(member_rows(replay, m), replay.size, keys[m], gammas[m])
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[m], b)
        assert set(alone.obs[:, 0].tolist()) <= set(model[m])


@given(**SIZES, more=st.integers(0, 12))
def test_state_dict_round_trip_goes_on_as_if_never_stopped(
    agents: int, envs: int, slots: int, steps: int, more: int
) -> None:
    replay, _ = filled(agents, envs, slots, steps)
    other = Replay(agents, slots * envs, SPEC, envs)
    other.load_state_dict(replay.state_dict())
    for t in range(steps, steps + more):
        replay.add(transition(agents, envs, t))
        other.add(transition(agents, envs, t))
    assert int(replay.size) == int(other.size)
    for ours, theirs in zip(replay.data, other.data, strict=True):
        assert torch.equal(ours, theirs)


def test_state_dict_holds_filled_rows_only() -> None:
    replay, _ = filled(2, 3, 5, 2)
    saved = replay.state_dict()
    assert saved["inserted"] == 6
    ((first, rows),) = saved["rows"].parts()
    assert first == 0
    assert {k: tuple(v.shape) for k, v in rows.items()} == {
        "obs": (2, 6, 2), "action": (2, 6, 1), "reward": (2, 6), "terminated": (2, 6),
        "truncated": (2, 6), "next_obs": (2, 6, 2)
    }  # fmt: skip


@pytest.mark.parametrize(("capacity", "envs", "expected"), [(10, 3, 9), (10, 1, 10), (4, 4, 4), (7, 4, 4)])
def test_capacity_is_cut_to_a_multiple_of_the_environments(capacity: int, envs: int, expected: int) -> None:
    replay = Replay(2, capacity, SPEC, envs)
    assert replay.capacity == expected
    assert replay.data.obs.shape == (2, expected, 2)
    assert replay.data.terminated.dtype == torch.bool


def test_capacity_below_the_environments_raises() -> None:
    with pytest.raises(DeeprlError, match="buffer_size 3 is smaller than the 4"):
        Replay(1, 3, SPEC, 4)


def test_add_takes_tensors_and_float64_arrays() -> None:
    replay = Replay(1, 2, SPEC, 1)
    data = transition(1, 1, 0)
    replay.add(Transition(*(torch.as_tensor(x) for x in data)))
    replay.add(Transition(*(np.asarray(x, np.float64 if x.dtype == np.float32 else bool) for x in data)))
    for rows in replay.data:
        assert torch.equal(rows[:, 0], rows[:, 1])


def test_next_obs_is_the_true_successor_at_a_time_limit() -> None:
    # The environment counts its steps and is cut after 3: rows 0 -> 1, 1 -> 2, 2 -> 3, never 2 -> 0 (a reset).
    envs = PopulationEnvs(lambda: make_env("probe_envs:ProbeCounting-v0"), (0, 1), 2, "sync")
    replay = Replay(2, 20, envs.spec, 2)
    for _ in range(10):
        replay.add(envs.step(np.zeros((2, 2, 1), np.float32)))
    envs.close()
    data = replay.data
    assert torch.equal(data.next_obs, data.obs + 1)
    assert sorted(data.obs.unique().tolist()) == [0.0, 1.0, 2.0]
    assert not data.terminated.any()
