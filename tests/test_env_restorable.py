"""What a resumed run finds of its environments: captured, played again, or begun anew; in one process or several."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import run_helpers
import test_dqn_run
from gymnasium import wrappers
from hypothesis import given, settings
from hypothesis import strategies as st
from opaque_envs import Harder, Hidden, HiddenChoice, OneSeed, SecretlyHarder, Silent, Unseeded, lives
from test_envs import PENDULUM, actions, play

from deeprl.envs.make import EnvFactory, FreshWorld, make_env
from deeprl.envs.restorable import Captured, Replayed, episode_seed, forgets, how_restorable
from deeprl.envs.vector import PopulationEnvs, env_seeds
from deeprl.online import dqn
from deeprl.run import checkpoint
from deeprl.run.evaluate import Evaluator

HIDDEN = EnvFactory("opaque_envs:Hidden-v0", {}, ())
NORMALIZED = EnvFactory("opaque_envs:Hidden-v0", {}, ("gymnasium.wrappers:NormalizeObservation",))
UNSEEDED = EnvFactory("opaque_envs:Unseeded-v0", {}, ())

MAKES = {
    "box": Hidden,
    "discrete": HiddenChoice,
    "running_statistics": lambda: wrappers.NormalizeReward(wrappers.NormalizeObservation(Hidden())),
    "stack_and_limit": lambda: wrappers.TimeLimit(wrappers.FrameStackObservation(Hidden(), 3), 7),
    "counts_episodes": lambda: Harder(HiddenChoice()),
    "lives": lives,
    "lives_of_one_seed": lambda: OneSeed(lives()),
    "lives_without_infos": lambda: Silent(lives()),
    "lives_and_stack": lambda: wrappers.FrameStackObservation(lives(), 3),
    "made_by_gymnasium": lambda: gym.make("Hidden-v0"),
}


# --- one environment ---


def seen(*parts: Any) -> bytes:
    return b"|".join(np.asarray(part).tobytes() for part in parts)


def restored(layer: Any, state: Any, again: int) -> Any:
    """What `restore` gives for an environment that was made anew."""
    layer.reset(seed=1)
    layer.to_restore = (state, again)
    return layer.restore()


def advance(env: gym.Env, action: Any) -> tuple[bytes, bool]:
    """A step, and a reset where it ended the episode: all that can be observed of it, and whether it ended."""
    obs, reward, terminated, truncated, _ = env.step(np.array(action) if np.ndim(action) else action)
    first = env.reset()[0] if terminated or truncated else np.zeros(0)
    return seen(obs, np.float64(reward), terminated, truncated, first), terminated or truncated


def drawn_actions(env: gym.Env, seed: int, n: int) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(n)]


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@given(seed=st.integers(0, 2**31 - 1), skip=st.integers(0, 3))
@settings(max_examples=6)
def test_every_state_of_two_episodes_goes_on_bit_for_bit(make: Any, seed: int, skip: int) -> None:
    env, undisturbed = Replayed(make()), Replayed(make())
    moves = drawn_actions(env, seed, 120)
    for one in (env, undisturbed):
        one.reset(seed=seed)
    states, course, ends = [], [], []
    for t, move in enumerate(moves):
        if len(ends) <= skip + 1:  # every step of the episodes up to this one
            states.append(env.capture())
        step, ended = advance(env, move)
        course.append(step)
        if ended:
            ends.append(t)
    assert course == [advance(undisturbed, move)[0] for move in moves]
    assert len(ends) >= skip + 2
    for t, state in list(enumerate(states))[ends[skip - 1] + 1 if skip else 0 :]:
        other = Replayed(make())
        assert restored(other, state, seed + 1) is None, t
        assert [advance(other, move)[0] for move in moves[t : t + 40]] == course[t : t + 40], t


def test_episode_follows_from_seed_number_and_actions() -> None:
    """By hand: what the layer does to an environment that tells its seeds."""
    asked: list[int] = []

    class Tells(HiddenChoice):
        def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
            asked.append(seed)
            return super().reset(seed=seed)

    env = Replayed(Tells())
    for seed in (7, None, None, 8, None, 7, None):
        env.reset(seed=seed)
    assert asked == [7, episode_seed(7, 1), episode_seed(7, 2), 8, episode_seed(8, 1), 7, episode_seed(7, 1)]
    assert len(set(asked)) == 5
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in asked)


def test_state_holds_copies() -> None:
    env = Replayed(Hidden())
    env.reset(seed=0)
    move = np.array([0.5, 2.0], np.float32)
    env.step(move)  # which writes into it
    state = env.capture()
    assert state["actions"].tolist() == [[0.5, 2.0]]
    assert state["actions"].dtype == np.float32
    env.step(np.ones(2, np.float32))
    assert state["actions"].tolist() == [[0.5, 2.0]]


def test_episode_with_options_cannot_be_played_again() -> None:
    env = Replayed(Hidden())
    env.reset(seed=0, options={"start": object()})
    assert env.capture() is None
    env.reset()
    assert env.capture() is not None


def test_another_course_is_noticed_and_a_new_episode_begins() -> None:
    env, other = Replayed(Hidden()), Replayed(Hidden())
    moves = drawn_actions(env, 0, 2)
    env.reset(seed=3)
    for move in moves:
        env.step(move.copy())
    state = env.capture()
    for change in ({"digest": "0" * 32}, {"seed": 4}, {"actions": state["actions"] + np.float32(1e-3)}):
        assert np.array_equal(restored(other, state | change, 11), Hidden().reset(seed=11)[0])
        assert other.capture()["seed"] == 11  # and it is the start of what follows
    assert restored(other, state, 11) is None


def test_course_that_ends_too_early_is_no_error() -> None:
    class Strict(Hidden):
        def step(self, action: Any) -> Any:
            assert self.world().left > 0, "stepped beyond the end"
            return super().step(action)

    env = Replayed(Strict())
    env.reset(seed=0)
    while not env.step(np.zeros(2, np.float32))[2]:
        pass
    state = env.capture()  # before the reset that a vector environment does at once
    assert len(state["actions"]) >= 3
    longer = np.concatenate([state["actions"]] * 5)
    assert restored(env, state, 1) is None
    assert restored(env, state | {"actions": longer}, 1) is not None


@pytest.mark.parametrize(("layer", "base"), [(Captured, Hidden), (Replayed, lambda: gym.make("Pendulum-v1"))])
def test_state_of_the_other_kind_begins_a_new_episode(layer: Any, base: Any) -> None:
    own, other = {Captured: (Replayed, Hidden), Replayed: (Captured, lambda: gym.make("Pendulum-v1"))}[layer]
    env = own(other())
    env.reset(seed=0)
    assert np.array_equal(restored(layer(base()), env.capture(), 5), base().reset(seed=5)[0])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: gym.make("Pendulum-v1"), "captured"),
        (lambda: wrappers.NormalizeObservation(gym.make("CartPole-v1")), "captured"),
        *[(make, "replayed") for make in MAKES.values()],
        (Unseeded, "no"),
        (lambda: SecretlyHarder(Hidden()), "no"),
        (lambda: SecretlyHarder(gym.make("Pendulum-v1")), "no"),
    ],
)
def test_kind_is_found_out(make: Any, kind: str) -> None:
    assert how_restorable(make()) == kind


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda: gym.make("Pendulum-v1"), True),
        (lambda: gym.make("HalfCheetah-v5"), True),
        *[(make, name not in ("running_statistics", "counts_episodes")) for name, make in MAKES.items()],
        (lambda: wrappers.NormalizeObservation(gym.make("CartPole-v1")), False),  # captured, but remembers
        (Unseeded, False),
        (lambda: SecretlyHarder(Hidden()), False),
    ],
)
def test_it_is_found_out_whether_episodes_depend_on_those_before(make: Any, same: bool) -> None:
    assert forgets(make()) is same


@pytest.mark.parametrize("name", ["LunarLanderContinuous-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3"])
def test_box2d_is_played_again(name: str) -> None:
    pytest.importorskip("Box2D")
    env, other = Replayed(make_env(name)), Replayed(make_env(name))
    assert how_restorable(make_env(name)) == "replayed"
    moves = drawn_actions(env, 1, 1500)
    env.reset(seed=5)
    ends = sum(advance(env, move)[1] for move in moves[:900])
    assert restored(other, env.capture(), 6) is None
    courses = [[advance(one, move) for move in moves[900:]] for one in (env, other)]
    assert courses[0] == courses[1]
    assert ends + sum(ended for _, ended in courses[0]) >= 1


def test_fresh_world_makes_another_world_for_each_episode() -> None:
    class World:
        pass

    class Walker(HiddenChoice):
        world_of_box2d = destroyed = None

        def _destroy(self) -> None:
            self.destroyed = self.world

    base = Walker()
    base.world = World()
    env = FreshWorld(base)
    base.reset = lambda **kwargs: (np.zeros(2), {})  # keeps the world, as that of BipedalWalker does
    before = base.world
    env.reset(seed=0)
    assert base.destroyed is before
    assert type(base.world) is World
    assert base.world is not before


# --- a population, in one process and in several ---


def moved(envs: PopulationEnvs, moves: np.ndarray) -> list[bytes]:
    record, episodes = play(envs, moves)
    rows = [seen(*t, first, after) for t, first, after in record]
    return [*rows, repr(episodes).encode(), seen(envs.obs, envs.is_first)]


@pytest.mark.parametrize("backends", [("sync", "sync"), ("async", "async"), ("sync", "async"), ("async", "sync")])
@pytest.mark.parametrize(
    ("make", "kind", "width"), [(PENDULUM, "captured", 1), (NORMALIZED, "replayed", 2)], ids=["captured", "replayed"]
)
def test_population_goes_on_bit_for_bit(make: Any, kind: str, width: int, backends: tuple, tmp_path: Path) -> None:
    first, second = backends
    envs = PopulationEnvs(make, [5, 9], width, first)
    other = None
    moves = actions(60, 2, width, envs.spec.action_dim)
    try:
        assert envs.restorable == kind
        start = moved(envs, moves[:31])
        checkpoint.save(tmp_path, 31, {"envs": envs.state_dict()})
        assert checkpoint.load_checkpoint(tmp_path)[1]["envs"]["envs"] != []
        other = PopulationEnvs(make, [5, 9], width, second)
        assert other.restorable == kind
        if first != second:  # the backends do the same
            assert moved(other, moves[:31]) == start
        assert other.load_state_dict(checkpoint.load_checkpoint(tmp_path)[1]["envs"]) == 0
        assert moved(other, moves[31:]) == moved(envs, moves[31:])
    finally:
        envs.close()
        if other is not None:
            other.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_what_cannot_be_restored_begins_anew_with_other_seeds(backend: str, tmp_path: Path) -> None:
    def begun(make: Any, seeds: list[int]) -> np.ndarray:
        return np.stack([make().reset(seed=s)[0] for s in seeds]).astype(np.float32).reshape(2, 1, 2)

    envs = PopulationEnvs(UNSEEDED, [0, 1], 1, backend)
    try:
        assert envs.restorable == "no"
        moved(envs, actions(5, 2, 1, 2))
        state = envs.state_dict()
        assert state["envs"] == []
        assert envs.load_state_dict(state) == 2
        assert envs.is_first.all()
    finally:
        envs.close()
    # Known environments of which one state is missing: only that one begins anew.
    envs = PopulationEnvs(HIDDEN, [0, 1])
    starts = [envs.obs.copy()]
    for steps in (2, 3):
        moved(envs, actions(steps, 2, 1, 2))
        state = envs.state_dict()
        state["envs"][1] = None
        other = PopulationEnvs(HIDDEN, [0, 1])
        assert other.load_state_dict(state) == 1
        assert np.array_equal(other.obs[0], envs.obs[0])
        assert other.is_first[:, 0].tolist() == [envs.is_first[0, 0], True]
        seeds = [env_seeds(s, "env", 1, envs._steps)[0] for s in (0, 1)]
        assert np.array_equal(other.obs[1], begun(HIDDEN, seeds)[1])
        starts.append(other.obs.copy())
    assert len({start[1].tobytes() for start in starts}) == 3  # at the start, and at two checkpoints


def test_states_without_their_number_of_steps_are_read() -> None:
    """As the first version wrote them."""
    envs = PopulationEnvs(PENDULUM, [5])
    moved(envs, actions(5, 1, 1, 1))
    state = envs.state_dict()
    del state["steps"]
    other = PopulationEnvs(PENDULUM, [6])
    assert other.load_state_dict(state) == 0
    assert moved(other, actions(20, 1, 1, 1)) == moved(envs, actions(20, 1, 1, 1))


# --- games of several lives; the reset after a lost one is a no-op, which is a step of the game ---


def in_layers(name: str, wrapped: tuple[str, ...]) -> EnvFactory:
    return EnvFactory(f"opaque_envs:{name}-v0", {}, tuple(f"opaque_envs:{layer}" for layer in wrapped))


def played_lives(make: EnvFactory, steps: int, backend: str = "sync") -> tuple[str, list, list, list]:
    """Kind, (lives, steps since the reset) that ends left behind and that began what follows, and games reported."""
    envs = PopulationEnvs(make, [3], 1, backend)
    ends, begins, games = [], [], []
    for _ in range(steps):
        t = envs.step(np.zeros((1, 1), np.int64))
        games += [(e.ret, e.length) for e in envs.pop_episodes()]
        if (t.terminated | t.truncated)[0, 0]:
            ends.append(t.next_obs[0, 0, 1:].round().astype(int).tolist())
            begins.append(envs.obs[0, 0, 1:].round().astype(int).tolist())
    envs.close()
    return envs.restorable, ends, begins, games


@pytest.mark.parametrize(
    ("make", "kind", "backend"),
    [
        (in_layers("SavedLives", ()), "captured", "sync"),
        (in_layers("SavedLives", ("OneSeed",)), "captured", "sync"),
        (in_layers("SavedLives", ("NoSeed",)), "captured", "sync"),
        (in_layers("SavedLives", ("Holder",)), "replayed", "sync"),
        (in_layers("Lives", ("OneSeed",)), "replayed", "sync"),
        (in_layers("Lives", ()), "replayed", "async"),
        (in_layers("Lives", ("Secret",)), "no", "sync"),
        (in_layers("Lives", ("Secret", "OneSeed")), "no", "sync"),
    ],
)
def test_games_go_on_after_lost_lives_whatever_seeds_resets_have(make: EnvFactory, kind: str, backend: str) -> None:
    # 12 steps a game, two of them the no-ops after its first two lives: 4 + 3 + 3 decisions.
    ends = [[2, 4], [1, 8], [0, 12]] * 2
    begins = [[2, 5], [1, 9], [3, 0]] * 2
    assert played_lives(make, 20, backend) == (kind, ends, begins, [(12.0, 10), (12.0, 10)])


@pytest.mark.parametrize(
    "make",
    [
        in_layers("SavedLives", ("Cut",)),
        in_layers("Lives", ("Cut",)),
        in_layers("Lives", ("Cut", "OneSeed")),
        in_layers("Lives", ("Cut", "Secret")),
    ],
)
def test_game_cut_by_a_limit_with_the_step_that_loses_a_life_begins_anew(make: EnvFactory) -> None:
    _, ends, begins, games = played_lives(make, 12)
    assert (ends, begins, games) == ([[2, 4]] * 3, [[3, 0]] * 3, [(4.0, 4)] * 3)


def test_each_game_that_is_played_again_has_a_seed_and_its_lives_have_the_same() -> None:
    env = Replayed(lives())
    numbers = [env.reset(seed=5)[0][0]]
    for _ in range(21):
        _, _, terminated, _, _ = env.step(0)
        if terminated:
            numbers.append(env.reset()[0][0])
    first, second, third = (lives().reset(seed=episode_seed(5, n))[0][0] for n in range(3))
    assert numbers == [first] * 3 + [second] * 3 + [third]
    assert len({first, second, third}) == 3
    for _ in range(4):
        env.step(0)
    env.reset(seed=5)  # with a life lost
    assert env.capture()["lives"] == 0
    assert env.step(0)[0].tolist() == [first, 3, 1]


def test_life_that_is_not_followed_by_its_reset_goes_on_with_it() -> None:
    env, other = Replayed(lives()), Replayed(lives())
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    state = env.capture()
    assert state["lives"] == 0
    assert restored(other, state, 1) is None
    assert other.reset()[0].tolist() == env.reset()[0].tolist()
    assert other.step(0)[0][1:].tolist() == [2, 6]


def test_states_in_which_each_life_was_an_episode_are_read() -> None:
    env, other = Replayed(lives()), Replayed(lives())
    env.reset(seed=0)
    env.step(0)
    state = env.capture()
    del state["lives"]
    assert restored(other, state, 1) is None
    assert [advance(other, 0) for _ in range(20)] == [advance(env, 0) for _ in range(20)]


@pytest.mark.parametrize("wrapped", [("Cut",), ("Cut", "NoSeed"), ("OneSeed",)])
def test_evaluation_begins_new_games_in_environments_that_are_kept(wrapped: tuple[str, ...]) -> None:
    evaluator = Evaluator(in_layers("Lives", wrapped), [0], 1)
    seen: list[list[float]] = []

    def policy(obs: np.ndarray, is_first: np.ndarray, keys: Any) -> np.ndarray:
        seen.append(obs[0, 0, 1:].tolist())
        assert len(seen) < 100, "the game does not end"
        return np.zeros(obs.shape[:2], np.int64)

    episodes = [evaluator(policy, counter)[0] for counter in range(2)]
    first = [[3, t] for t in range(4)]
    if "Cut" in wrapped:  # with the step that loses the first life
        assert ([e.length for e in episodes], seen) == ([4, 4], first * 2)
    else:
        game = [*first, *[[2, t] for t in range(5, 8)], *[[1, t] for t in range(9, 12)]]
        assert ([e.length for e in episodes], seen) == ([10, 10], game * 2)


# --- whole runs ---

RUNS = {
    "async": ({"seeds": (0, 1), "env_backend": "async"}, (13, 45)),
    "replayed": ({"seeds": (0, 1), "env": HIDDEN.env, "env_kwargs": {}, "envs_per_agent": 3}, (15, 45, 48)),
    "replayed_async": (
        {"seeds": (0,), "env": HIDDEN.env, "env_kwargs": {}, "envs_per_agent": 2, "env_backend": "async"},
        (14, 44),
    ),
    "replayed_normalized": ({"env": HIDDEN.env, "env_kwargs": {}, "wrappers": NORMALIZED.wrappers}, (13, 14, 44)),
}


@pytest.mark.parametrize("case", RUNS)
def test_stopped_and_continued_sac_run_is_identical(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chosen, stops = RUNS[case]
    chosen = {"steps": 72, "log_every": 6, **chosen}
    # The other backend does the same.
    run_helpers.sac.train(run_helpers.config(tmp_path / "whole", **(chosen | {"env_backend": "sync"})))
    run_helpers.train_with_stops(run_helpers.config(tmp_path / "parts", **chosen), stops)
    run_helpers.assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert "anew" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "backend"), [("HiddenChoice", "sync"), ("HiddenChoice", "async"), ("Lives", "sync")])
def test_stopped_and_continued_dqn_run_is_identical(name: str, backend: str, tmp_path: Path) -> None:
    chosen = {"env": f"opaque_envs:{name}-v0", "seeds": (0,), "envs_per_agent": 2}
    dqn.train(test_dqn_run.config(tmp_path / "whole", **chosen))
    test_dqn_run.train_with_stops(test_dqn_run.config(tmp_path / "parts", env_backend=backend, **chosen), (24, 70))
    test_dqn_run.assert_same_run(tmp_path / "whole", tmp_path / "parts")


# --- processes: signals, and their end ---

SCRIPT = """
import signal, sys
import numpy as np
from deeprl.envs.vector import PopulationEnvs
from deeprl.envs.make import EnvFactory

got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))
print("begin", flush=True)
envs = PopulationEnvs(EnvFactory("Pendulum-v1", {}, ()), [0, 1], 1, "async")
print("ready", flush=True)
for line in sys.stdin:
    if line == "terminate\\n":
        envs.vector.close(terminate=True)
        break
    if line == "leave\\n":
        break
    for _ in range(3):
        envs.step(np.zeros((2, 1, 1), np.float32))
    envs.state_dict()
    print(envs.obs.tolist(), sorted(set(got)), flush=True)
"""


class Script:
    """The script above in a process group of its own. Its workers hold its standard output open while they live."""

    def __init__(self) -> None:
        env = os.environ | {"PYTHONPATH": str(run_helpers.ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=env, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.line() == "begin"

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def send(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def to_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def output_after_all_have_ended(self) -> tuple[str, str]:
        return self.process.communicate(timeout=60)


WITHOUT_TORCH = """
import sys, deeprl.envs.restorable, deeprl.envs.workers
from deeprl.envs.make import make_env

for name in ("Pendulum-v1", "opaque_envs:Hidden-v0"):
    make_env(name).reset(seed=0)
assert "torch" not in sys.modules
"""


def test_workers_do_not_load_torch() -> None:
    """A second for each of them, of which there may be hundreds."""
    code, places = WITHOUT_TORCH, (run_helpers.ROOT, Path(__file__).parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


def expected_line(signals: list[int]) -> str:
    envs = PopulationEnvs(EnvFactory("Pendulum-v1", {}, ()), [0, 1])
    for _ in range(3):
        envs.step(np.zeros((2, 1, 1), np.float32))
    return f"{envs.obs.tolist()} {signals}"


def test_workers_do_not_heed_what_reaches_the_whole_group() -> None:
    numbers = [signal.SIGINT.value, signal.SIGTERM.value]
    with Script() as script:
        assert script.line() == "ready"
        for number in numbers:
            script.to_group(number)
        time.sleep(0.2)
        script.send("step")
        assert script.line() == expected_line(numbers)
        script.send("leave")
        assert script.output_after_all_have_ended() == ("", "")


def test_signals_while_workers_start_reach_the_parent_only() -> None:
    with Script() as script:
        while not select.select([script.process.stdout], [], [], 0.01)[0]:
            script.to_group(signal.SIGINT)
        assert script.line() == "ready"
        script.send("step")
        assert script.line() == expected_line([signal.SIGINT.value])


@pytest.mark.parametrize("how", ["leave", "terminate", "SIGKILL"])
def test_workers_end_with_their_parent(how: str) -> None:
    with Script() as script:
        assert script.line() == "ready"
        script.send("step")
        assert script.line() == expected_line([])
        if how == "SIGKILL":
            script.process.kill()
        else:
            script.send(how)
        script.output_after_all_have_ended()
        assert script.process.returncode == (-signal.SIGKILL if how == "SIGKILL" else 0)
