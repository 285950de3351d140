"""Every offline algorithm: an agent learns from its own rows, with its own settings, and sees what its dataset says."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, batch_of
from offline_helpers import SPEC, made_dataset, write_made
from torch import Tensor

from deeprl.config import build
from deeprl.core import rng
from deeprl.data.offline import Facts
from deeprl.replay.samplers import sample
from deeprl.run import checkpoint
from deeprl.run.learning import sampled

SMALL: dict[str, dict[str, Any]] = {
    "bc": {"hidden": (16, 16)},
    "iql": {"hidden": (16, 16)},
    "riql": {"hidden": (16, 16)},
    "td3_bc": {"hidden": (16, 16)},
    "rebrac": {"hidden": (16, 16)},
    "cql": {"actor_hidden": (16, 16), "critic_hidden": (16, 16), "bc_steps": 0, "sampled_actions": 2},
    "edac": {"hidden": (16, 16), "critics": 3},
}
VARIANTS = {name: (name, {}) for name in SMALL} | {
    "bc deterministic": ("bc", {"actor": "deterministic"}),
    "bc gaussian": ("bc", {"actor": "gaussian"}),
    "iql deterministic": ("iql", {"actor": "deterministic"}),
}


def parts(variant: str, **settings: Any) -> tuple[Any, Any, Any]:
    """Module, settings and networks of a small agent."""
    name, own = VARIANTS[variant]
    module = importlib.import_module(f"deeprl.offline.{name}")
    config = build(module.Config, SMALL[name] | own | {"batch_size": 16} | settings)
    return module, config, module.build_net(SPEC, config)


def whole(function: Any, name: str) -> Any:
    """An update, or a learner, of the policy too; of ReBRAC with some next actions."""
    more = {"next_action": batch_of(16, 1).action} if name == "rebrac" else {}
    return functools.partial(function, policy=True, **more) if name in ("td3_bc", "rebrac") else function


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_datasets_moments_and_scale_of_rewards_reach_acting_and_learning(variant: str) -> None:
    """An agent that is told them does with raw numbers what a plain one does with the numbers worked out by hand."""
    module, config, net = parts(variant)
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 3.0, 0.5])
    told = module.init(net, config, rng.key(0, "init"), Facts(mean, std, torch.tensor(3.0), torch.tensor(-1.0)))
    plain = module.init(net, config, rng.key(0, "init"))
    raw, key = batch_of(16), rng.key(0, "update")
    seen = raw._replace(obs=(raw.obs - mean) / std, next_obs=(raw.next_obs - mean) / std, reward=3.0 * raw.reward - 1.0)
    update = whole(module.update, VARIANTS[variant][0])
    ours, theirs = (update(net, config, s, b, key)[0] for s, b in ((told, raw), (plain, seen)))
    assert_equal(ours._replace(facts=plain.facts), theirs)
    assert not torch.equal(next(iter(ours.actor.values())), next(iter(told.actor.values())))
    first = torch.zeros(16, dtype=torch.bool)
    for explore in (True, False):
        acted = [
            module.act(net, config, s, (), obs, first, key, explore=explore)[0]
            for s, obs in ((told, raw.obs), (plain, seen.obs))
        ]
        assert torch.equal(*acted)


@pytest.mark.parametrize("name", ["iql", "riql", "td3_bc", "edac"])
def test_learner_draws_from_the_agents_rows_and_discounts_by_its_own_setting(name: str) -> None:
    module, config, net = parts(name, discount=0.3)
    dataset, state = made_dataset(), module.init(net, config, rng.key(0, "init"))
    sample_key, key = rng.key(0, "sample"), rng.key(0, "update")
    first, size = torch.tensor(120), torch.tensor(80)
    learn = sampled(whole(module.update, name), net, config)
    learned, _, _ = learn(state, dataset.data, size, sample_key, key, first)
    batch = sample(dataset.data, size, sample_key, 16, 0.3, first)
    assert_equal(learned, whole(module.update, name)(net, config, state, batch, key)[0])


RUN: dict[str, Any] = {
    "steps": 6, "compile": "off", "tensorboard": False, "threads": 1, "precision": "strict", "eval_episodes": 0,
    "log_every": 4,
}  # fmt: skip


def trained(module: Any, config: Any) -> dict[str, Tensor]:
    run = module.train(config)
    loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert loaded is not None
    assert (run.updates, run.frozen) == (6, [])
    return loaded[1]["agents"]


@pytest.mark.parametrize("name", [name for name in SMALL if name != "cql"])  # test_cql.py: with its returns, too
def test_run_of_three_equals_three_runs(name: str, tmp_path: Path) -> None:
    a, b = (write_made(tmp_path / f"{i}.npz", 200 + 40 * i, seed=i) for i in range(2))
    own = {"dataset": (a, b, b), "seeds": (0, 0, 5), "actor_lr": (1e-3, 1e-4, 3e-3), "backend": "loop"}
    own |= {"normalize_obs": "obs", "rewards": "standardize", "out": str(tmp_path / "three")}
    module, config, _ = parts(name, **(own | RUN | ({} if name == "bc" else {"discount": (0.9, 0.5, 0.99)})))
    together = trained(module, config)
    for i in range(3):
        alone = trained(module, build(module.Config, vars(config.member(i)) | {"out": str(tmp_path / str(i))}))
        assert [key for key in alone if not torch.equal(together[key][i], alone[key][0])] == []
    assert not torch.equal(together["state.facts.obs_mean"][0], together["state.facts.obs_mean"][1])
