"""Online runs: what agents do to explore, and which observations their running statistics count."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprl.config import build
from deeprl.core import rng
from deeprl.core.spec import EnvSpec, Seen
from deeprl.run import checkpoint
from deeprl.run.learning import observe

SIMBA = {"actor_width": 8, "critic_width": 8, "critic_blocks": 1}
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {"hidden": (8,)}),
    "sac normalised": ("sac", {"hidden": (8,), "normalize_obs": True}),
    "td3": ("td3", {"hidden": (8,), "exploration_noise": 0.3}),
    "td3 normalised": ("td3", {"hidden": (8,), "exploration_noise": 0.3, "normalize_obs": True}),
    "simba": ("simba", SIMBA),
    "simba ddpg": ("simba", SIMBA | {"policy": "ddpg", "exploration_noise": 0.3}),
    "simba_v2": ("simba_v2", SIMBA | {"bins": 11}),
}
# Episodes of 25 steps; the policy acts from step 30 on and, with a learning rate of 0, stays as it was.
RUN: dict[str, Any] = {
    "env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 25}, "steps": 60, "learning_starts": 30,
    "batch_size": 8, "compile": "off", "tensorboard": False, "threads": 1, "precision": "strict",
    "eval_episodes": 0, "log_every": 7, "actor_lr": 0.0,
}  # fmt: skip


def trained(variant: str, out: Path, callback: Any = None, **settings: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Module, settings and newest checkpoint of a run."""
    name, own = ALGORITHMS[variant]
    module = importlib.import_module(f"deeprl.online.{name}")
    config = build(module.Config, RUN | own | settings)
    run = module.train(dataclasses.replace(config, out=str(out)), callback=callback)
    loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert loaded is not None
    return module, config, loaded[1]


@pytest.mark.parametrize("variant", ALGORITHMS)
def test_run_acts_at_random_first_and_then_by_the_exploring_policy(variant: str, tmp_path: Path) -> None:
    module, config, saved = trained(variant, tmp_path, lambda run: run.step == 40)
    ((_, rows),) = saved["replay"]["rows"].parts()
    net = module.build_net(EnvSpec((3,), 1, (-2.0,), (2.0,)), config)
    state, first = module.init(net, config, rng.key(0, "init")), torch.zeros(1, dtype=torch.bool)
    for t in range(40):
        key, obs = rng.key(0, "explore", t), rows["obs"][0, t : t + 1]
        chosen, _ = module.act(net, config, state, (), obs, first, key, explore=True)
        expected = rng.uniform(key, (1, 1), -1.0, 1.0) if t < config.learning_starts else chosen
        torch.testing.assert_close(rows["action"][0, t : t + 1], expected)
        if getattr(config, "normalize_obs", False) and t < 39:
            after = Seen(rows["obs"][0, t + 1 : t + 2], torch.tensor([t % 25 == 24]), rows["reward"][0, t : t + 1])
            state = getattr(module, "observe", observe)(net, config, state, after)[0]


@pytest.mark.parametrize("variant", ["sac normalised", "td3 normalised", "simba", "simba_v2"])
def test_observations_count_once_each_but_for_the_first_and_the_final_ones(variant: str, tmp_path: Path) -> None:
    # Counting observes 0 | 1, 2, 3 in episodes of three steps: the reset of the run and the final 3 never count; the
    # other resets do. Nine steps: 1, 2, 0 three times. Mean 9 / N; N var = 1e-4 (1 + mean^2) + sum of (x - mean)^2.
    settings = {"env": "probe_envs:ProbeCounting-v0", "env_kwargs": {}, "steps": 9, "learning_starts": 8}
    agents = trained(variant, tmp_path, **settings)[2]["agents"]
    # SAC's statistics begin with nothing and are float32.
    start, rel, dtype = (0.0, 1e-6, torch.float32) if variant == "sac normalised" else (1e-4, 1e-9, torch.float64)
    total = 9 + start
    mean = 9 / total
    var = (start * (1 + mean**2) + sum(3 * (x - mean) ** 2 for x in (0, 1, 2))) / total
    assert agents["state.obs_stats.count"].item() == pytest.approx(total, rel=1e-12)
    assert agents["state.obs_stats.mean"].item() == pytest.approx(mean, rel=rel)
    assert agents["state.obs_stats.var"].item() == pytest.approx(var, rel=rel)
    assert agents["state.obs_stats.mean"].dtype == dtype


@pytest.mark.parametrize("variant", ["simba", "simba ddpg"])
def test_agent_alone_equals_agent_in_a_loop_population(variant: str, tmp_path: Path) -> None:
    own = {"backend": "loop", "actor_lr": 1e-3, "steps": 42}
    two = trained(variant, tmp_path / "two", seeds=(4, 5), **own)[2]["agents"]
    alone = trained(variant, tmp_path / "alone", seeds=(5,), **own)[2]["agents"]
    assert [k for k in alone if not torch.equal(two[k][1], alone[k][0])] == []
