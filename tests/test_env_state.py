import gymnasium as gym
import numpy as np
import pytest

from deeprl import checkpoint, env_state

# id -> steps before the capture; the 100 steps after it cross a time limit or a terminated end (max_episode_steps below).
ENVS = {
    "Pendulum-v1": 37,
    "MountainCarContinuous-v0": 37,
    "CartPole-v1": 37,
    "Acrobot-v1": 37,
    "HalfCheetah-v5": 37,
    "Hopper-v5": 37,
    "Walker2d-v5": 37,
    "Ant-v5": 37,
    "Humanoid-v5": 37,
    "Swimmer-v5": 37,
    "InvertedPendulum-v5": 37,
}


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
    return checkpoint.load(tmp_path)[1]["env"]


@pytest.mark.parametrize("name", ENVS)
def test_restored_env_goes_on_bit_for_bit(name, tmp_path):
    env, other = (gym.make(name, max_episode_steps=60) for _ in range(2))
    env.action_space.seed(0)
    env.reset(seed=3)
    roll(env, [env.action_space.sample() for _ in range(ENVS[name])])
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
