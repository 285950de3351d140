"""Samplers and frame replay, against numbers by hand and against a plain record of everything that happened."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeprl.core import rng
from deeprl.core.spec import Batch, EnvSpec, Transition
from deeprl.core.tree import tree_map
from deeprl.envs.make import EnvFactory
from deeprl.envs.vector import PopulationEnvs
from deeprl.errors import DeeprlError
from deeprl.replay import Extent, FrameReplay, Replay, Stored, make_replay
from deeprl.replay import transitions as replay_module
from deeprl.replay.rows import image_rows
from deeprl.replay.samplers import Priorities, Window, n_step, prioritized, uniform_rows

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
    row = uniform_rows(data, replay.extent, rng.key(seed, "sample"), 400, window)
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
    row = uniform_rows(agent_of(replay, 0), replay.extent, KEY, 500, Window(1, 1, 4))
    age = (row - replay.extent.oldest) % 64
    assert set(age.tolist()) == set(range(27, 64))


# --- priorities ---


def plain(rows: int) -> tuple[Stored, Extent]:
    data = episode_rows([0.0] * rows, [], [])
    return data, Extent(torch.tensor(rows), torch.tensor(0))


def padded(values: list[float]) -> torch.Tensor:
    priorities = Priorities(1, len(values))
    priorities.update(torch.arange(len(values))[None], torch.tensor([values]))
    return priorities.values[0]


def test_rows_are_drawn_in_proportion_to_their_priority() -> None:
    data, extent = plain(600)  # three blocks
    values = [0.0] * 600
    values[3], values[300], values[599] = 1.0, 2.0, 5.0
    row, _ = prioritized(data, extent, padded(values), KEY, 4000, Window(), torch.tensor(0.4))
    counts = torch.bincount(row, minlength=600)
    # Stratified: every row gets its share of the 4000 draws up to one stratum at each of its borders.
    assert {i: int(counts[i]) for i in (3, 300, 599)} == pytest.approx({3: 500, 300: 1000, 599: 2500}, abs=2)
    assert int(counts.sum() - counts[3] - counts[300] - counts[599]) == 0


def test_importance_weights_by_hand() -> None:
    data, extent = plain(4)
    row, weight = prioritized(data, extent, padded([1.0, 2.0, 3.0, 2.0]), KEY, 64, Window(), torch.tensor(0.5))
    # N P = 4 p / 8 = 0.5, 1, 1.5, 1; to the power -0.5, over the largest, that of row 0
    expected = torch.tensor([0.5, 1.0, 1.5, 1.0]) ** -0.5 / 0.5**-0.5
    assert set(row.tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(weight, expected[row])


def test_full_correction_makes_weighted_means_those_of_uniform_draws() -> None:
    data, extent = plain(50)
    values = torch.linspace(0.1, 3.0, 50)
    row, weight = prioritized(data, extent, padded(values.tolist()), KEY, 20_000, Window(), torch.tensor(1.0))
    weighted = (weight * row).sum() / weight.sum()
    assert float(weighted) == pytest.approx(24.5, abs=0.2)


@given(
    filled=st.integers(8, 40), extra=st.integers(0, 60), steps=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_only_whole_windows_are_drawn(filled: int, extra: int, steps: int, seed: int) -> None:
    replay = Replay(1, filled, EnvSpec((1,), 0, (), (), actions=2))
    priorities = Priorities(1, filled)
    for i in range(filled // 2 + extra):
        ones = np.full((1, 1), float(i))
        no = np.zeros((1, 1), bool)
        priorities.add(replay.add(Transition(ones[..., None], ones, ones, no, no, ones[..., None])))
    data, inserted = agent_of(replay, 0), filled // 2 + extra
    stored = range(max(0, inserted - filled), inserted - steps + 1)
    key = rng.key(seed, "sample")
    drawn = prioritized(data, replay.extent, priorities.values[0], key, 300, Window(steps), torch.tensor(0.4))[0]
    for row in (drawn, uniform_rows(data, replay.extent, key, 300, Window(steps))):
        assert set(data.reward[row].to(torch.int64).tolist()) <= set(stored)
        last = n_step(data, row, Window(steps), 1.0).next_obs[:, 0]
        torch.testing.assert_close(last, data.reward[row] + steps - 1)  # no window has met the place of writing


def test_new_rows_get_the_largest_priority_so_far() -> None:
    priorities = Priorities(2, 10)
    priorities.add(slice(0, 2))
    assert priorities.values[:, :3].tolist() == [[1.0, 1.0, 0.0]] * 2
    priorities.update(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.5, 3.0], [0.25, 0.75]]))
    priorities.add(slice(2, 3))
    assert priorities.values[:, :3].tolist() == [[0.5, 3.0, 3.0], [0.75, 0.25, 1.0]]
    other = Priorities(2, 10)
    other.load_state_dict(priorities.state_dict())
    other.add(slice(3, 4))
    assert other.values[:, 3].tolist() == [3.0, 1.0]


def test_rows_without_mass_are_never_drawn_whatever_the_rounding() -> None:
    data, extent = plain(2048)
    values = torch.zeros(2048)
    values[::7] = torch.rand(293, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1e-6
    for seed in range(20):
        row, weight = prioritized(data, extent, values, rng.key(seed, "sample"), 512, Window(), torch.tensor(1.0))
        assert bool((row % 7 == 0).all())
        assert bool(weight.isfinite().all())


def test_samplers_work_under_vmap() -> None:
    world = World(3, 2, 2, 0.2, 1)
    replay = make_replay(3, 40, EnvSpec((2, 2, 2), 0, (), (), "uint8", actions=9, frame_stack=2), 2)
    for _ in range(30):
        replay.add(world.step())
    window, keys = Window(3, 2, 2), rng.Streams([0, 1, 2])("sample", 4)
    rows = torch.vmap(lambda d, k: uniform_rows(d, replay.extent, k, 16, window))(replay.data, keys)
    batch = torch.vmap(lambda d, r: n_step(d, r, window, GAMMA))(replay.data, rows)
    for i in range(3):
        alone = uniform_rows(agent_of(replay, i), replay.extent, keys[i], 16, window)
        assert torch.equal(rows[i], alone)
        for together, single in zip(batch, n_step(agent_of(replay, i), alone, window, GAMMA), strict=True):
            torch.testing.assert_close(together[i], single)


@pytest.mark.parametrize("image", [False, True])
def test_replay_goes_on_after_a_restore(image: bool) -> None:
    spec = EnvSpec((3, 2, 2), 0, (), (), "uint8", actions=9, frame_stack=3)
    if not image:
        spec = EnvSpec((12,), 0, (), (), actions=9)

    def flat(transition: Transition) -> Transition:
        vectors = {k: getattr(transition, k).reshape(2, 2, 12).astype(np.float32) for k in ("obs", "next_obs")}
        return transition if image else transition._replace(**vectors)

    world = World(2, 2, 3, 0.2, 8)
    steps = [flat(world.step()) for _ in range(60)]
    whole, first = make_replay(2, 48, spec, 2), make_replay(2, 48, spec, 2)
    for step in steps[:31]:
        whole.add(step)
        first.add(step)
    second = make_replay(2, 48, spec, 2)
    second.load_state_dict(first.state_dict())
    for step in steps[31:]:
        whole.add(step)
        second.add(step)
    assert all(torch.equal(a, b) for a, b in zip(whole.data, second.data, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.extent, second.extent, strict=True))


STACKS = EnvSpec((3, 2, 2), 0, (), (), "uint8", actions=9, frame_stack=3)


@pytest.mark.parametrize("first", [[0, 0, 5], [3, 4, 5]])
def test_stacks_that_could_not_be_put_together_again_are_refused(first: list[int]) -> None:
    replay = make_replay(1, 8, STACKS)
    step = World(1, 1, 3, 0.0, 0).step()
    stack = np.array(first, np.uint8)[None, None, :, None, None] * np.ones((2, 2), np.uint8)
    with pytest.raises(DeeprlError, match=r"^wrappers: an episode must begin .* put FrameStackObservation outermost"):
        replay.add(step._replace(obs=stack))


@pytest.mark.parametrize(
    ("wrapped", "refused"),
    [
        (("Skip", "Stack"), False),
        (("Stack",), False),
        (("Stack", "Skip"), True),
        (("Stack", "Jumps"), True),
        (("Stack", "Backwards"), True),
    ],
)
def test_order_of_wrappers_gives_stacks_that_were_seen_or_is_refused(wrapped: tuple[str, ...], refused: bool) -> None:
    make = EnvFactory("stack_envs:Numbered-v0", {}, tuple(f"stack_envs:{name}" for name in wrapped))
    envs = PopulationEnvs(make, [0, 1], 2)
    replay = make_replay(2, 120, envs.spec, 2)
    assert envs.spec.frame_stack == 3
    steps = []

    def play() -> None:
        for _ in range(60):
            steps.append(envs.step(np.zeros((2, 2), np.int64)))
            replay.add(steps[-1])

    if refused:
        with pytest.raises(DeeprlError, match="put FrameStackObservation outermost"):
            play()
        return
    play()
    batch = n_step(agent_of(replay, 1), torch.arange(120), Window(1, 2, 3), GAMMA)
    terminated = np.stack([t.terminated[1] for t in steps]).reshape(-1)
    for field in ("obs", "next_obs"):
        seen = np.stack([getattr(t, field)[1] for t in steps]).reshape(120, 3, 2, 2)
        keep = slice(None) if field == "obs" else ~terminated
        assert np.array_equal(getattr(batch, field).numpy()[keep], seen[keep])


def skipped(step: Transition, place: tuple[int, int]) -> Transition:
    """The same step with two frames more in one environment."""
    next_obs = step.next_obs.copy()
    next_obs[place] = 100 + np.arange(3, dtype=np.uint8)[:, None, None]
    return step._replace(next_obs=next_obs)


@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
@pytest.mark.parametrize("resumed", [False, True])
def test_stacks_are_compared_in_every_environment_and_after_a_resume(place: tuple[int, int], resumed: bool) -> None:
    world = World(2, 3, 3, 0.0, 0)
    replay = make_replay(2, 900, STACKS, 3)
    for _ in range(150 if resumed else 50):  # of one episode; after 100 steps it is compared no more
        replay.add(world.step())
    if resumed:
        saved, replay = replay.state_dict(), make_replay(2, 900, STACKS, 3)
        replay.load_state_dict(saved)
    with pytest.raises(DeeprlError, match="put FrameStackObservation outermost"):
        replay.add(skipped(world.step(), place))


def test_first_steps_of_every_episode_are_compared_and_later_ones_cost_nothing(monkeypatch: Any) -> None:
    looked: list[int] = []
    same = replay_module._same
    monkeypatch.setattr(replay_module, "_same", lambda a, b: (looked.append(a.size), same(a, b))[1])
    world = World(1, 1, 3, 0.0, 0)
    replay = make_replay(1, 400, STACKS)
    for _ in range(100):
        replay.add(world.step())
    before = sum(looked)
    for _ in range(50):
        replay.add(world.step())
    assert sum(looked) == before
    replay.add(world.step()._replace(truncated=np.ones((1, 1), bool)))
    world.now[0, 0] = world.first()
    replay.add(world.step())
    with pytest.raises(DeeprlError, match="put FrameStackObservation outermost"):
        replay.add(skipped(world.step(), (0, 0)))  # the second step of the second episode


def test_frames_that_stand_still_do_not_count_as_compared() -> None:
    replay = make_replay(1, 400, STACKS)
    still = World(1, 1, 3, 0.0, 0).step()
    still = still._replace(next_obs=still.obs)
    for _ in range(200):  # such as a black screen
        replay.add(still)
    with pytest.raises(DeeprlError, match="put FrameStackObservation outermost"):
        replay.add(skipped(still, (0, 0)))


def test_what_follows_a_termination_and_what_is_not_finite_is_not_compared() -> None:
    world = World(1, 1, 3, 0.0, 0)
    replay = make_replay(1, 400, STACKS)
    replay.add(skipped(world.step(), (0, 0))._replace(terminated=np.ones((1, 1), bool)))
    floats = make_replay(1, 400, EnvSpec((3, 2, 2), 0, (), (), actions=9, frame_stack=3))
    obs = np.full((1, 1, 3, 2, 2), np.nan, np.float32)
    floats.add(world.step()._replace(obs=obs, next_obs=obs))  # another fault, which stops the agent


def test_rows_of_images_are_those_that_indexing_gives_for_one_and_for_each():
    draw = torch.Generator().manual_seed(0)
    data = torch.randint(0, 255, (5, 7, 3, 4, 2), generator=draw, dtype=torch.uint8)
    index = torch.randint(0, 7, (5, 6, 2), generator=draw)
    each = torch.stack([data[i][index[i]] for i in range(5)])
    cases = [((0, 0), (data, index), each), ((1, 2), (data.movedim(0, 1), index.movedim(0, 2)), each)]
    cases += [((None, 0), (data[1], index), data[1][index])]
    cases += [((0, None), (data, index[2]), torch.stack([rows[index[2]] for rows in data]))]
    assert torch.equal(image_rows(data[0], index[0]), data[0][index[0]])
    for in_dims, arguments, expected in cases:
        found = torch.vmap(image_rows, in_dims=in_dims)(*arguments)
        assert found.is_contiguous()
        assert torch.equal(found, expected)
