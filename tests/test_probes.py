"""Do SAC and TD3 learn, through `train` and its checkpoint, where values and best actions are known?"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from deeprl import nets
from deeprl.online import sac, td3
from deeprl.run import checkpoint

pytestmark = pytest.mark.slow

GAMMA = 0.9
SEEDS = (0, 1, 2)
CRITIC = nets.CriticEnsemble(1, 1, (32, 32))
TRUNK = nets.MLP(1, (32, 32), 1)
# The temperature is fixed and so small that entropy adds nothing.
OWN: dict[ModuleType, dict[str, Any]] = {sac: {"alpha_lr": 0.0, "init_alpha": 1e-3}, td3: {}}


def train(env: str, out: Path, algorithm: ModuleType = sac, **settings: Any) -> dict[str, Tensor]:
    """The trained population's tensors by name."""
    config = algorithm.Config(
        env=f"probe_envs:Probe{env}-v0",
        seeds=SEEDS,
        out=str(out),
        **{
            "steps": 350,
            "learning_starts": 100,
            "batch_size": 64,
            "hidden": (32, 32),
            "actor_lr": 5e-3,
            "critic_lr": 1e-2,
            "discount": GAMMA,
            "tau": 0.3,
            "compile": "off",
            "precision": "strict",
            "threads": 1,
            "eval_episodes": 0,
            "tensorboard": False,
            "checkpoint_minutes": 0.0,
        }
        | OWN[algorithm]
        | settings,
    )
    run = algorithm.train(config)
    assert run.finished
    assert run.updates == (config.steps - config.learning_starts) * config.utd
    loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert loaded is not None
    step, content = loaded
    assert step == config.steps
    agents = content["agents"]
    assert agents["state.step"].tolist() == [run.updates] * len(SEEDS)
    assert agents["frozen_at"].tolist() == [-1] * len(SEEDS)
    if algorithm is sac:
        torch.testing.assert_close(agents["state.log_alpha"].exp(), torch.full((3,), config.init_alpha))
    return agents


def part(agents: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"state.{name}."
    return {k.removeprefix(prefix): v for k, v in agents.items() if k.startswith(prefix)}


def lift(module: torch.nn.Module, params: dict[str, Tensor], *args: Tensor) -> Any:
    return torch.vmap(lambda p: functional_call(module, p, args))(params)


def policy(agents: dict[str, Tensor], obs: float) -> Tensor:
    """The deterministic action of each agent [S]: tanh of the first output, which SAC's standard deviations follow."""
    return torch.tanh(lift(TRUNK, part(agents, "actor.trunk"), torch.tensor([[obs]]))[..., 0]).flatten()


def value(agents: dict[str, Tensor], obs: float, action: Tensor | None = None) -> Tensor:
    """Q of both critics of each agent [S, 2] at its own action, or at another."""
    actions = policy(agents, obs) if action is None else action
    params = part(agents, "critic")
    return torch.stack(
        [
            functional_call(
                CRITIC, {k: p[i] for k, p in params.items()}, (torch.tensor([[obs]]), actions[i].view(1, 1))
            )
            for i in range(len(SEEDS))
        ]
    ).squeeze(-1)


def assert_near(values: Tensor, expected: float, bar: float) -> None:
    torch.testing.assert_close(values, torch.full_like(values, expected), rtol=0, atol=bar)


def test_constant_reward_is_learned_as_value(tmp_path: Path) -> None:
    # One step, reward 1: Q = 1, whatever the action.
    agents = train("Constant", tmp_path, steps=200)
    for action in (-0.5, 0.0, 0.5):
        assert_near(value(agents, 0.0, torch.full((3,), action)), 1.0, 0.05)


def test_value_follows_the_observation(tmp_path: Path) -> None:
    # One step, the reward is the observation: Q(-1) = -1 and Q(1) = 1.
    agents = train("FromObservation", tmp_path, steps=200)
    for obs in (-1.0, 1.0):
        assert_near(value(agents, obs), obs, 0.05)


@pytest.mark.parametrize("algorithm", OWN, ids=lambda m: m.__name__.rpartition(".")[2])
def test_value_is_discounted_over_two_steps(algorithm: ModuleType, tmp_path: Path) -> None:
    # Rewards 0, 1: Q(1) = 1 and Q(0) = 0 + 0.9 * 1.
    agents = train("TwoSteps", tmp_path, algorithm, steps=300)
    assert_near(value(agents, 1.0), 1.0, 0.03)
    assert_near(value(agents, 0.0), 0.9, 0.03)


@pytest.mark.parametrize("algorithm", OWN, ids=lambda m: m.__name__.rpartition(".")[2])
def test_policy_finds_the_action_that_the_observation_asks_for(algorithm: ModuleType, tmp_path: Path) -> None:
    # -(a - o / 2)^2: the best actions are -0.5 and 0.5, of value 0; at the other one it is -(1)^2.
    agents = train("FromAction", tmp_path, algorithm)
    for obs in (-1.0, 1.0):
        assert_near(policy(agents, obs), obs / 2, 0.1)
        assert_near(value(agents, obs), 0.0, 0.05)


def test_value_bootstraps_through_a_time_limit(tmp_path: Path) -> None:
    # Reward 1 for ever, cut after 5 steps: Q = 1 / (1 - 0.9) = 10. If a time limit stopped bootstrapping, a fifth of
    # the targets would be 1 instead of 1 + 0.9 Q: Q = 1 + 0.9 * 0.8 * Q = 3.57.
    agents = train("Forever", tmp_path)
    assert_near(value(agents, 0.0), 10.0, 0.5)


def test_termination_stops_bootstrapping(tmp_path: Path) -> None:
    # Reward 1 in each of five steps: Q(t) = (1 - 0.9^(5 - t)) / 0.1: 4.095, 3.439, 2.71, 1.9, 1.
    agents = train("FiveSteps", tmp_path)
    for t in range(5):
        assert_near(value(agents, t / 5), (1 - GAMMA ** (5 - t)) / (1 - GAMMA), 0.25)
