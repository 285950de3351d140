import enum
from collections import defaultdict, deque
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.wrappers.utils import RunningMeanStd

from deeprl.envs import state as env_state
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError
from deeprl.run import checkpoint

ENVS = [
    "Pendulum-v1", "MountainCarContinuous-v0", "CartPole-v1", "Acrobot-v1", "HalfCheetah-v5", "Hopper-v5",
    "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Swimmer-v5", "InvertedPendulum-v5",
]  # fmt: skip


def step_or_reset(env, action):
    """One step, and a reset where it ended the episode: everything that can be observed of it, and whether it ended."""
    obs, reward, terminated, truncated, _ = env.step(action)
    seen = [np.array(obs), np.array(reward, np.float64), np.array([terminated, truncated])]
    if terminated or truncated:
        seen.append(np.array(env.reset()[0]))
    return seen, bool(terminated or truncated)


def roll(env, actions):
    steps = [step_or_reset(env, action) for action in actions]
    return [seen for seen, _ in steps], sum(ended for _, ended in steps)


def assert_same(expected, found):
    for t, (one, other) in enumerate(zip(expected, found, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype, t
            assert a.tobytes() == b.tobytes(), t


def through_disk(state, tmp_path):
    checkpoint.save(tmp_path, 1, {"env": state})
    return checkpoint.load_checkpoint(tmp_path)[1]["env"]


@pytest.mark.parametrize("name", ENVS)
def test_restored_env_goes_on_bit_for_bit(name, tmp_path):
    env, other = (gym.make(name, max_episode_steps=60) for _ in range(2))
    env.action_space.seed(0)
    env.reset(seed=3)
    roll(env, [env.action_space.sample() for _ in range(37)])
    state = through_disk(env_state.capture(env), tmp_path)
    actions = [env.action_space.sample() for _ in range(130)]
    expected, ends = roll(env, actions)
    assert ends >= 2  # 130 steps with a time limit of 60 hold at least two ends, each followed by a random reset

    other.reset(seed=99)
    roll(other, actions[:11])
    env_state.restore(other, state)
    found, _ = roll(other, actions)
    assert_same(expected, found)


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "Hopper-v5"])
def test_capture_right_after_a_reset_restores(name, tmp_path):
    env, other = (gym.make(name, max_episode_steps=20) for _ in range(2))
    env.action_space.seed(0)
    env.reset(seed=3)
    state = through_disk(env_state.capture(env), tmp_path)
    actions = [env.action_space.sample() for _ in range(50)]
    expected, _ = roll(env, actions)
    other.reset(seed=99)
    env_state.restore(other, state)
    assert_same(expected, roll(other, actions)[0])


def test_time_limit_is_reached_at_the_same_step(tmp_path):
    env, other = (gym.make("Pendulum-v1", max_episode_steps=10) for _ in range(2))
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    roll(env, [action] * 7)
    other.reset(seed=1)
    env_state.restore(other, through_disk(env_state.capture(env), tmp_path))
    truncated = [other.step(action)[3] for _ in range(3)]
    assert truncated == [False, False, True]  # steps 8, 9, 10


def test_capture_does_not_change_the_env():
    env, other = (gym.make("HalfCheetah-v5", max_episode_steps=20) for _ in range(2))
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(50)]
    env.reset(seed=0)
    other.reset(seed=0)
    expected = roll(env, actions)[0]
    found = []
    for action in actions:
        found.append(step_or_reset(other, action)[0])
        env_state.capture(other)
    assert_same(expected, found)


def test_restored_classic_control_state_is_an_array(tmp_path):
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    kind = type(env.unwrapped.state)
    env_state.restore(env, through_disk(env_state.capture(env), tmp_path))
    assert type(env.unwrapped.state) is kind


def test_state_after_the_first_step_restores_into_an_env_that_is_further(tmp_path):
    """Gymnasium's checker compares the first steps that it sees; that is nothing to restore."""
    env, other = (gym.make("Pendulum-v1", max_episode_steps=20) for _ in range(2))
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(50)]
    env.reset(seed=3)
    roll(env, actions[:1])
    state = through_disk(env_state.capture(env), tmp_path)
    other.reset(seed=99)
    roll(other, actions[:5])
    env_state.restore(other, state)
    assert_same(roll(env, actions)[0], roll(other, actions)[0])


class LateMemory(gym.Wrapper):
    """From its third step on it remembers that, and answers otherwise."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            self.late = True
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + hasattr(self, "late"), terminated, truncated, info


def test_what_a_wrapper_did_not_remember_yet_is_forgotten(tmp_path):
    env, other = (LateMemory(gym.make("Pendulum-v1")) for _ in range(2))
    env.reset(seed=3)
    state = through_disk(env_state.capture(env), tmp_path)
    other.reset(seed=99)
    action = np.zeros(1, np.float32)
    roll(other, [action] * 5)
    env_state.restore(other, state)
    assert_same(roll(env, [action] * 9)[0], roll(other, [action] * 9)[0])


class Walk(gym.Env):
    """A random walk that takes part by its own state_dict: an array, a number, a list."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=2)
        self.visits = [0, 0]
        return self.place.copy(), {}

    def step(self, action):
        self.place += action + self.np_random.normal(size=2)
        self.visits[0] += 1
        return self.place.copy(), float(self.visits[0]), bool(self.visits[0] == 25), False, {}

    def state_dict(self):
        return {"place": self.place.copy(), "visits": list(self.visits), "nested": {"place": self.place.copy()}}

    def load_state_dict(self, state):
        assert isinstance(state["place"], np.ndarray)
        assert isinstance(state["nested"]["place"], np.ndarray)
        self.place, self.visits = state["place"].copy(), list(state["visits"])


class Opaque(Walk):
    """An environment whose state nobody knows."""

    state_dict = None
    load_state_dict = None

    def __getattribute__(self, name):
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_env_with_state_dict_takes_part(tmp_path):
    env, other = (gym.wrappers.TimeLimit(Walk(), 40) for _ in range(2))
    env.reset(seed=5)
    actions = np.linspace(-1, 1, 100, dtype=np.float32).reshape(50, 2)
    roll(env, actions[:7])
    state = through_disk(env_state.capture(env), tmp_path)
    expected, ends = roll(env, actions)
    assert ends == 2  # visits 7 + 18 = 25, and 25 more; 7 steps are left of 50
    other.reset(seed=6)
    env_state.restore(other, state)
    assert_same(expected, roll(other, actions)[0])


def test_unknown_env_gives_none():
    env = Opaque()
    env.reset(seed=0)
    assert env_state.capture(env) is None


class Sticky(gym.Wrapper):
    """Repeats its last action at times; all its own state is a plain number."""

    def reset(self, **kwargs):
        self.last = 0.0
        return self.env.reset(**kwargs)

    def step(self, action):
        if self.env.unwrapped.np_random.random() < 0.5:
            action = np.array([self.last], np.float32)
        self.last = float(action[0])
        return self.env.step(action)


def test_plain_attributes_of_wrappers_are_restored(tmp_path):
    env, other = (Sticky(gym.make("Pendulum-v1", max_episode_steps=30)) for _ in range(2))
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(60)]
    env.reset(seed=5)
    roll(env, actions[:7])
    state = through_disk(env_state.capture(env), tmp_path)
    expected, _ = roll(env, actions)
    other.reset(seed=6)
    env_state.restore(other, state)
    assert_same(expected, roll(other, actions)[0])


class Jitter(gym.Wrapper):
    """Noise from a generator of its own."""

    def __init__(self, env):
        super().__init__(env)
        self.noise = np.random.default_rng(4)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + self.noise.normal(), terminated, truncated, info


@pytest.mark.parametrize(
    "wrap",
    [
        wrappers.NormalizeObservation,
        wrappers.NormalizeReward,
        lambda env: wrappers.FrameStackObservation(env, 3),
        lambda env: wrappers.DelayObservation(env, 2),
        lambda env: wrappers.StickyAction(env, 0.5),
        wrappers.TimeAwareObservation,
        wrappers.FlattenObservation,
        lambda env: wrappers.RescaleAction(env, -1, 1),
        lambda env: wrappers.TransformReward(env, lambda r: 2 * r),
        Jitter,
        lambda env: wrappers.NormalizeReward(wrappers.FrameStackObservation(Jitter(env), 2)),
    ],
)
@pytest.mark.parametrize("disk", [True, False])
def test_wrappers_go_on_bit_for_bit(wrap, disk, tmp_path):
    env, other = (wrap(gym.make("Pendulum-v1", max_episode_steps=30)) for _ in range(2))
    env.action_space.seed(0)
    drawn = [env.action_space.sample() for _ in range(80)]
    env.reset(seed=5)
    roll(env, drawn[:17])
    state = env_state.capture(env)
    state = through_disk(state, tmp_path) if disk else state
    other.reset(seed=6)
    roll(other, drawn[:5])
    env_state.restore(other, state)
    expected, _ = roll(env, drawn)
    assert_same(expected, roll(other, drawn)[0])


class Secret(gym.Wrapper):
    """Remembers something that nobody can capture."""

    def __init__(self, env):
        super().__init__(env)
        self.memory = iter(range(100))


def test_wrapper_with_unknown_memory_gives_none():
    env = Secret(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    assert env_state.capture(env) is None


# --- games ---


def game_pair(name, kwargs):
    return (make_env(name, kwargs) for _ in range(2))


def assert_goes_on(env, other, tmp_path, before=120, after=150):
    """`other`, restored from a state of `env` on disk, does all that `env` does, resets included."""
    rng = np.random.default_rng(0)
    drawn = [int(a) for a in rng.integers(0, env.action_space.n, before + after)]
    env.reset(seed=5)
    roll(env, drawn[:before])
    state = through_disk(env_state.capture(env), tmp_path)
    expected, ends = roll(env, drawn[before:])
    other.reset(seed=6)
    roll(other, drawn[3:20])
    env_state.restore(other, state)
    assert_same(expected, roll(other, drawn[before:])[0])
    return ends


@pytest.mark.parametrize("game", ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"])
def test_minatar_goes_on_bit_for_bit(game, tmp_path):
    pytest.importorskip("minatar")
    ends = assert_goes_on(*game_pair(f"MinAtar/{game}-v1", {"sticky_action_prob": 0.5}), tmp_path, 77, 400)
    assert ends or game == "Freeway"  # which ends after 2,500 frames


@pytest.mark.parametrize("seeded", [True, False])
def test_minatar_generators_are_restored_whether_one_or_two(seeded, tmp_path):
    pytest.importorskip("minatar")
    env, other = (make_env("MinAtar/Breakout-v1") for _ in range(2))
    env.reset(seed=5 if seeded else None)
    other.reset(seed=None if seeded else 5)
    env_state.restore(other, through_disk(env_state.capture(env), tmp_path))
    game = other.unwrapped.game
    assert (game.random is game.env.random) == seeded
    assert_same(*(roll(e, [1, 2, 0] * 60)[0] for e in (env, other)))


@pytest.mark.parametrize(
    ("game", "kwargs"),
    [
        ("Breakout", {"repeat_action_probability": 0.0, "terminal_on_life_loss": True}),
        ("Breakout", {"repeat_action_probability": 0.6, "max_num_frames_per_episode": 300}),
        ("Pong", {"max_num_frames_per_episode": 200, "noop_max": 3}),
        ("SpaceInvaders", {"stack": 2, "full_action_space": True, "max_num_frames_per_episode": 600}),
    ],
)
def test_atari_goes_on_bit_for_bit(game, kwargs, tmp_path):
    pytest.importorskip("ale_py")
    assert assert_goes_on(*game_pair(f"ALE/{game}-v5", kwargs), tmp_path)


def test_atari_goes_on_from_the_step_before_the_reset_after_a_lost_life(tmp_path):
    pytest.importorskip("ale_py")
    env, other = game_pair("ALE/Breakout-v5", {"terminal_on_life_loss": True})
    env.reset(seed=5)
    while not env.step(0)[2]:
        pass
    state = through_disk(env_state.capture(env), tmp_path)
    other.reset(seed=6)
    env_state.restore(other, state)
    starts = [e.reset() for e in (env, other)]
    assert starts[0][1] == starts[1][1]
    assert starts[0][1]["lives"] == 4
    assert np.array_equal(starts[0][0], starts[1][0])
    infos = [e.step(1)[4] for e in (env, other)]
    assert infos[0] == infos[1]
    assert infos[0]["deeprl.game_length"] > 20  # the game goes on


def test_atari_with_sticky_actions_of_ale_gives_none():
    pytest.importorskip("ale_py")
    make_env("ALE/Pong-v5")  # registers the names
    env = gym.make("ALE/Pong-v5")
    env.reset(seed=0)
    assert env_state.capture(env) is None
    env = gym.make("ALE/Pong-v5", repeat_action_probability=0.0)
    env.reset(seed=0)
    assert env_state.capture(env) is not None


class Mode(enum.IntEnum):
    EASY = 1


class Place(NamedTuple):
    x: int
    y: int


class Remembers(gym.Wrapper):
    """Holds what loses its type when it is taken for a plain list or dict."""

    def __init__(self, env):
        super().__init__(env)
        self.visits = defaultdict(int)
        self.generators = {"noise": np.random.default_rng(0)}
        self.place, self.last = Place(0, 0), None
        self.statistics = [RunningMeanStd(shape=(1,))]

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.place = Place(self.place.x + 1, int(obs[0] > 0))
        self.visits[np.int64(self.place.y), "side"] += 1
        self.statistics[0].update(np.array([[reward]]))
        again, self.last = float(self.last == (0, 1)), (0, self.place.y)
        reward += self.visits[0, "side"] + self.generators["noise"].random() + self.statistics[0].mean[0] + again
        return obs, float(reward), terminated, truncated, info


def test_containers_of_wrappers_keep_their_types(tmp_path):
    env, other = (Remembers(gym.make("Pendulum-v1", max_episode_steps=30)) for _ in range(2))
    env.action_space.seed(0)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(80)]
    roll(env, actions[:40])
    state = through_disk(env_state.capture(env), tmp_path)
    expected = roll(env, actions[40:])[0]
    other.reset(seed=1)
    env_state.restore(other, state)
    assert_same(expected, roll(other, actions[40:])[0])


def test_attribute_that_no_checkpoint_could_be_loaded_with_is_not_captured():
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    env = gym.Wrapper(env)
    env.mode = Mode.EASY
    assert env_state.capture(env) is None


def test_own_state_is_a_copy_of_arrays_that_the_environment_goes_on_with():
    class Live(Walk):
        def state_dict(self):
            return {"place": self.place, "visits": self.visits}

    env = Live()
    env.reset(seed=0)
    state = env_state.capture(env)["inner"]
    before = state["place"].tolist(), list(state["visits"])
    env.step(np.ones(2, np.float32))
    assert (state["place"].tolist(), state["visits"]) == before


def test_own_state_of_other_types_is_refused():
    class Own(gym.Env):
        observation_space = action_space = gym.spaces.Box(-1, 1)

        def state_dict(self):
            return {"queue": deque([1, 2])}

        def load_state_dict(self, state):
            raise AssertionError

    with pytest.raises(DeeprlError, match=r"Own.state_dict\(\) gives more than numbers"):
        env_state.capture(Own())
