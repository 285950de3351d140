"""What a step is: simulator steps, decisions, gradient steps; and how often an environment repeats an action."""

import gymnasium as gym
import numpy as np
import pytest
from test_cells import record

import deeprl
from deeprl.envs.make import make_env
from deeprl.envs.spaces import counted_repeat, env_spec
from deeprl.envs.units import recorded_unit, unit_of
from deeprl.envs.vector import PopulationEnvs


@pytest.mark.parametrize(
    ("env", "repeat", "offline", "name", "factor", "counted"),
    [
        ("Pendulum-v1", 1, False, "simulator steps", 1, "steps"),
        ("dmc/walker-run", 2, False, "simulator steps", 2, "decisions"),
        ("dmc/walker-run", 2, True, "gradient steps", 1, "gradient steps"),
        ("ALE/Pong-v5", 1, False, "decisions", 1, "decisions"),
        ("ale_py:ALE/Pong-v5", 4, False, "decisions", 1, "decisions"),
        ("Own-v0", 0, False, "decisions", 1, "decisions"),  # whose wrapper repeats actions now more, now less often
    ],
)
def test_the_unit_of_steps(env, repeat, offline, name, factor, counted):
    assert unit_of(env, repeat, offline) == (name, factor, counted)


def test_the_unit_of_a_record():
    assert recorded_unit(record("sac", facts={"spec": {"action_repeat": 4}})).told(10) == "40 simulator steps"
    assert recorded_unit(record("bc", facts={"spec": {"action_repeat": 4}})).told(10) == "10 gradient steps"
    assert recorded_unit(record("dqn", env="ALE/Pong-v5")).told(10) == "10 decisions"


class Skip(gym.Wrapper):
    """As many users write it."""

    times = 3

    def step(self, action):
        total = 0.0
        for _ in range(self.often()):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info

    def often(self):
        return self.times


class SkipAtRandom(Skip):
    def reset(self, *, seed=None, options=None):
        self.count = 0
        return super().reset(seed=seed, options=options)

    def often(self):
        self.count += 1
        return 1 + self.count % 2


class Scale(gym.RewardWrapper):
    def reward(self, reward):
        return 0.1 * reward


class Once(gym.Env):
    """An episode of two steps."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t >= 2, False, {}


@pytest.mark.parametrize(
    ("wrap", "repeat"),
    [
        (lambda env: env, 1),
        (Scale, 1),
        (Skip, 3),
        (SkipAtRandom, 0),
        (lambda env: gym.wrappers.MaxAndSkipObservation(env, 4), 4),
        (lambda env: gym.wrappers.MaxAndSkipObservation(Skip(env), 2), 6),
        (lambda env: Scale(Skip(gym.wrappers.MaxAndSkipObservation(env, 2))), 6),
    ],
)
def test_steps_of_wrappers_that_repeat_actions_are_counted(wrap, repeat):
    env = wrap(gym.make("Pendulum-v1"))
    assert counted_repeat(env, env_spec(env)).action_repeat == repeat
    assert "step" not in vars(env.unwrapped)  # all is as it was
    envs = PopulationEnvs(lambda: wrap(gym.make("Pendulum-v1")), [0])
    assert envs.spec.action_repeat == repeat
    envs.close()


def test_an_end_within_a_repetition_cuts_no_count_short():
    env = Skip(gym.wrappers.TimeLimit(Once(), 100))
    env.times = 1
    assert counted_repeat(env, env_spec(env)).action_repeat == 1  # the second step ends the episode


def test_the_repeats_of_the_control_suite_and_of_wrappers_multiply():
    pytest.importorskip("dm_control")
    env = Skip(make_env("dmc/cartpole-swingup", {"action_repeat": 2}))
    assert env_spec(env).action_repeat == 2
    assert counted_repeat(env, env_spec(env)).action_repeat == 6


def test_results_of_a_wrapped_environment_count_simulator_steps(tmp_path, capsys):
    few = {"steps": 40, "learning_starts": 20, "batch_size": 4, "hidden": [8], "eval_every": 20, "eval_episodes": 1}
    few |= {"compile": "off", "threads": 1, "tensorboard": False, "env": "Pendulum-v1", "wrappers": ["test_units:Skip"]}
    run = deeprl.train("sac", out=str(tmp_path / "run"), **few)
    assert [(row["step"], row["unit"]) for row in deeprl.results(run.directory)] == [
        (60, "simulator steps"),
        (120, "simulator steps"),
    ]
    assert run.unit == (("simulator steps"), 3, "decisions")
