"""Does it learn? DQN and its extensions on environments whose values are known, through `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprl.core.spec import EnvSpec
from deeprl.online import dqn

pytestmark = pytest.mark.slow

GAMMA = 0.9
SEEDS = (0, 1, 2)
SPEC = EnvSpec((1,), 0, (), (), actions=2)
RAINBOW = {"value": "c51", "double": True, "dueling": True, "prioritized": True, "n_step": 3}


def train(env: str, out: Path, **settings: Any) -> tuple[dqn.Config, Any]:
    """The settings and the trained population's state. Actions are random, so that both are known everywhere."""
    config = dqn.Config(
        env=f"probe_envs:ProbeDiscrete{env}-v0",
        seeds=SEEDS,
        out=str(out),
        **{
            "steps": 140,
            "learning_starts": 60,
            "utd": 3.0,
            "train_every": 2,
            "target_every": 4,
            "batch_size": 32,
            "buffer_size": 1_000,
            "hidden": (32,),
            "lr": 1e-2,
            "discount": GAMMA,
            "epsilon_end": 1.0,
            "v_min": -4.0,
            "v_max": 12.0,
            "bins": 33,
            "compile": "off",
            "precision": "strict",
            "threads": 1,
            "eval_episodes": 0,
            "tensorboard": False,
            "checkpoint_minutes": 0.0,
        }
        | settings,
    )
    run = dqn.train(config)
    assert run.finished
    assert run.updates == (config.steps - config.learning_starts) * config.utd
    agents = run._attached["agents"].tree
    assert agents.frozen_at.tolist() == [-1] * len(SEEDS)
    return config, agents.state


def q(trained: tuple[dqn.Config, Any], obs: float) -> Tensor:
    """Q of both actions of each agent [S, 2]."""
    config, state = trained
    net = dqn.build_net(SPEC, config)
    x = torch.tensor([[obs]])
    return torch.vmap(lambda p: dqn.values(config, dqn.outputs(net, p, x)))(state.params).squeeze(1)


def assert_near(values: Tensor, expected: float | list[float], bar: float) -> None:
    torch.testing.assert_close(values, torch.tensor(expected).expand_as(values), rtol=0, atol=bar)


def test_constant_reward_is_learned_as_value(tmp_path: Path) -> None:
    # One step, reward 1: Q = 1, whatever the action.
    assert_near(q(train("Constant", tmp_path, steps=100), 0.0), 1.0, 0.05)


def test_value_follows_the_observation(tmp_path: Path) -> None:
    # One step, the reward is the observation: Q(-1) = -1 and Q(1) = 1.
    trained = train("FromObservation", tmp_path, steps=100)
    for obs in (-1.0, 1.0):
        assert_near(q(trained, obs), obs, 0.05)


def test_value_is_discounted_over_two_steps(tmp_path: Path) -> None:
    # Rewards 0, 1: Q(1) = 1 and Q(0) = 0 + 0.9 * 1.
    trained = train("TwoSteps", tmp_path)
    assert_near(q(trained, 1.0), 1.0, 0.05)
    assert_near(q(trained, 0.0), 0.9, 0.05)


@pytest.mark.parametrize("extensions", [{}, {"value": "hl_gauss", "dueling": True}])
def test_each_action_has_its_own_value(extensions: dict[str, Any], tmp_path: Path) -> None:
    # -(a - o / 2)^2 of a = -1, 1: the action of the observation's sign has -0.25, the other one -2.25.
    trained = train("FromAction", tmp_path, **extensions)
    assert_near(q(trained, -1.0), [-0.25, -2.25], 0.1)
    assert_near(q(trained, 1.0), [-2.25, -0.25], 0.1)


@pytest.mark.parametrize("extensions", [{}, RAINBOW])
def test_value_bootstraps_through_a_time_limit(extensions: dict[str, Any], tmp_path: Path) -> None:
    # Reward 1 for ever, cut after 5 steps: Q = 1 / (1 - 0.9) = 10; 3.57 if a time limit stopped bootstrapping.
    assert_near(q(train("Forever", tmp_path, steps=130, target_every=2, **extensions), 0.0), 10.0, 0.5)


@pytest.mark.parametrize("extensions", [{}, RAINBOW])
def test_termination_stops_bootstrapping(extensions: dict[str, Any], tmp_path: Path) -> None:
    # Reward 1 in each of five steps: Q(t) = (1 - 0.9^(5 - t)) / 0.1: 4.095, 3.439, 2.71, 1.9, 1.
    trained = train("FiveSteps", tmp_path, steps=150, **extensions)
    for t in range(5):
        assert_near(q(trained, t / 5), (1 - GAMMA ** (5 - t)) / (1 - GAMMA), 0.25)
