"""SimbaV2 through `train`: what its statistics count, exact resume, and values that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import assert_same_run, final, train_with_stops
from torch import Tensor
from torch.func import functional_call

from deeprl import nets
from deeprl.nets import RSNorm, categorical
from deeprl.online import simba_v2

GAMMA = 0.9
# Updates from step 13 on, over whose first four rates fall; episodes of Pendulum end at 7 and 14.
TINY: dict[str, Any] = {
    "env": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 7},
    "steps": 18,
    "learning_starts": 12,
    "utd": 1.0,
    "lr_horizon": 4,
    "batch_size": 8,
    "buffer_size": 16,  # the ring wraps around
    "actor_width": 8,
    "critic_width": 8,
    "critic_blocks": 1,
    "bins": 11,
    "compile": "off",
    "precision": "strict",
    "threads": 1,
    "tensorboard": False,
    "eval_every": 9,
    "eval_episodes": 1,
    "log_every": 7,
}


def config(out: Path, **settings: Any) -> simba_v2.Config:
    return simba_v2.Config(out=str(out), **(TINY | settings))


def agents_of(directory: Path) -> dict[str, Tensor]:
    return {k.removeprefix("state."): v for k, v in final(directory)[1].items()}


# --- what is counted ---


def test_evaluations_count_nowhere(tmp_path: Path) -> None:
    for name, episodes in (("with", 1), ("without", 0)):
        simba_v2.train(config(tmp_path / name, steps=16, eval_every=4, eval_episodes=episodes))
    one, other = (agents_of(tmp_path / name) for name in ("with", "without"))
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_returns_count_each_environment_of_an_agent(tmp_path: Path) -> None:
    # Forever: reward 1, cut off after five steps. G = 1, 1.9, 2.71, 3.439, then 1 on the last step of the episode,
    # and from it on 1.9, 2.71: after seven steps G = 2.71, at most 3.439. Both environments alike; discount 0.5 for the
    # other agent: 1, 1.5, 1.75, 1.875, 1, 1.5, 1.75.
    settings = {"env": "probe_envs:ProbeForever-v0", "env_kwargs": {}, "steps": 14, "learning_starts": 12}
    settings |= {"seeds": (0, 1), "discount": (0.9, 0.5), "envs_per_agent": 2, "eval_episodes": 0}
    simba_v2.train(config(tmp_path / "run", **settings))
    agents = agents_of(tmp_path / "run")
    torch.testing.assert_close(agents["return_stats.returns"].float(), torch.tensor([[2.71, 2.71], [1.75, 1.75]]))
    torch.testing.assert_close(agents["return_stats.peak"].float(), torch.tensor([3.439, 1.875]))
    torch.testing.assert_close(agents["return_stats.count"].float(), torch.tensor([14.0001, 14.0001]))
    mean = torch.tensor([1 + 1.9 + 2.71 + 3.439 + 1 + 1.9 + 2.71, 1 + 1.5 + 1.75 + 1.875 + 1 + 1.5 + 1.75]) / 7
    torch.testing.assert_close(agents["return_stats.mean"].float(), mean, rtol=1e-4, atol=0)


# --- exact resume ---

# Stops: before learning, at an episode end, at an evaluation, twice in a row during learning.
CASES = {
    "vmap": ({"seeds": (0, 1)}, (5, 7, 9, 14, 15)),
    "loop_two_envs": ({"seeds": (0, 1), "backend": "loop", "envs_per_agent": 2}, (14, 16)),
    "half_utd_single_critic": ({"utd": 0.5, "critics": 1, "scale_rewards": False}, (13, 16)),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_continued_run_is_identical(case: str, tmp_path: Path) -> None:
    settings, stops = CASES[case]
    simba_v2.train(config(tmp_path / "whole", **settings))
    train_with_stops(config(tmp_path / "parts", **settings), stops, simba_v2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_agent_alone_equals_agent_in_a_loop_population(tmp_path: Path) -> None:
    simba_v2.train(config(tmp_path / "two", seeds=(4, 5), backend="loop", steps=16))
    simba_v2.train(config(tmp_path / "alone", seeds=(5,), backend="loop", steps=16))
    two, alone = agents_of(tmp_path / "two"), agents_of(tmp_path / "alone")
    assert [k for k in alone if not torch.equal(two[k][1], alone[k][0])] == []


# --- learning ---

LEARN: dict[str, Any] = {
    "env_kwargs": {},
    "learning_starts": 100,
    "lr_horizon": 40_000,
    "batch_size": 64,
    "actor_width": 16,
    "critic_width": 16,
    "bins": 51,
    "actor_lr": 5e-3,
    "critic_lr": 5e-3,
    "alpha_lr": 0.0,
    "init_alpha": 1e-3,  # so small that entropy adds nothing
    "discount": GAMMA,
    "tau": 0.3,
    "eval_episodes": 0,
    "log_every": 100,
}


def learned(env: str, out: Path, **settings: Any) -> tuple[simba_v2.Config, list[dict[str, Tensor]]]:
    """The settings of a run on a probe and the tensors of each agent."""
    chosen = config(out, **(LEARN | {"env": f"probe_envs:Probe{env}-v0"} | settings))
    assert simba_v2.train(chosen).finished
    agents = agents_of(out)
    assert agents["frozen_at"].tolist() == [-1] * len(chosen.seeds)
    return chosen, [{k: v[i] for k, v in agents.items()} for i in range(len(chosen.seeds))]


def part(agent: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in agent.items() if k.startswith(f"{name}.")}


def seen(agent: dict[str, Tensor], obs: float) -> Tensor:
    return functional_call(RSNorm(1), part(agent, "obs_stats"), (torch.tensor([[obs]]),))


def value(c: simba_v2.Config, agent: dict[str, Tensor], obs: float, action: Tensor) -> Tensor:
    """Values of the critics [E] in the environment's own rewards."""
    critic = nets.SimbaV2Critic(1, 1, c.critic_width, c.critic_blocks, c.bins, c.critics)
    logits = functional_call(critic, part(agent, "critic"), (seen(agent, obs), action))
    scale = max(float(agent["return_stats.var"] + 1e-8) ** 0.5, float(agent["return_stats.peak"]) / c.value_bound)
    return scale * categorical.mean(logits, categorical.atoms(-c.value_bound, c.value_bound, c.bins)).flatten()


@pytest.mark.slow
def test_value_bootstraps_through_a_time_limit(tmp_path: Path) -> None:
    # Reward 1 for ever, cut off after five steps. Actual returns G reach 4.0951 at most; the value is 10 all the same.
    c, agents = learned("Forever", tmp_path, steps=200, critic_lr=2e-2, tau=0.5, value_bound=20.0)
    for agent in agents:
        assert value(c, agent, 0.0, torch.zeros(1, 1)).tolist() == pytest.approx([10.0] * 2, abs=0.7)
