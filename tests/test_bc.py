"""Behaviour cloning: losses by hand, against torch's own optimizer, recovers a known policy; %BC."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import batch_of, cast
from offline_helpers import (
    SPEC,
    assert_compiled_equals_eager,
    assert_population_equals_single,
    descend,
    learned,
    made_dataset,
    write_made,
)
from torch import nn

import deeprl
from deeprl.core import rng
from deeprl.core.population import Execution, member
from deeprl.errors import DeeprlError
from deeprl.offline import bc

TINY = {"hidden": (16, 16), "batch_size": 32, "steps": 100}


def test_squared_error_is_averaged_over_rows_and_entries() -> None:
    """tanh(0) = 0 against 1, 2 and 3, 4: (1 + 4 + 9 + 16) / 4."""
    config = bc.Config(hidden=())
    net = bc.build_net(SPEC, config)
    zeros = {k: torch.zeros_like(p) for k, p in bc.nets.init_params(net.actor, 0).items()}
    batch = batch_of(2)._replace(action=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    loss, mse = bc.actor_loss(zeros, net, config, batch)
    assert loss.item() == mse.item() == 7.5


def test_likelihood_by_hand() -> None:
    """N(0, 1) at 1, 2 and 3, 4: half the squares plus log 2 pi for the two entries."""
    config = bc.Config(hidden=(), actor="gaussian")
    net = bc.build_net(SPEC, config)
    zeros = {k: torch.zeros_like(p) for k, p in bc.nets.init_params(net.actor, 0).items()}
    batch = batch_of(2)._replace(action=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    loss, mse = bc.actor_loss(zeros, net, config, batch)
    assert loss.item() == pytest.approx(0.5 * (5.0 + 25.0) / 2 + math.log(2.0 * math.pi))
    assert mse.item() == 7.5


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_updates_equal_torchs_optimizer(decay: float) -> None:
    config = bc.Config(weight_decay=decay, **TINY)
    net = bc.build_net(SPEC, config)
    state = cast(bc.init(net, config, rng.key(3, "init")), torch.float64)
    actor = copy.deepcopy(net.actor).double()
    actor.load_state_dict(state.actor)
    optimizer = torch.optim.AdamW(actor.parameters(), lr=3e-4, weight_decay=decay)
    for t in range(10):
        batch = batch_of(32, seed=t, dtype=torch.float64)
        state, _, _ = bc.update(net, config, state, batch, rng.key(0, "update", t))
        descend(optimizer, nn.functional.mse_loss(actor(batch.obs), batch.action))
    for key, value in actor.state_dict().items():
        torch.testing.assert_close(state.actor[key], value, rtol=1e-6, atol=1e-9)  # rates are float32


def test_it_recovers_a_known_policy() -> None:
    """a = tanh(M s): a tanh of a linear network can be it exactly."""
    matrix = torch.tensor([[0.5, -1.0, 0.3], [0.2, 0.4, -0.8]])
    dataset = made_dataset(400)
    data = dataset.data._replace(action=torch.tanh(dataset.data.obs @ matrix.T))
    dataset = dataclasses.replace(dataset, data=data)
    config = bc.Config(hidden=(), batch_size=64, actor_lr=0.05, normalize_obs="obs", steps=300)
    state = member(learned(bc, config, Execution("loop"), 300, dataset), 0)
    net = bc.build_net(SPEC, config)
    probe = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    first = torch.ones(50, dtype=torch.bool)
    action, _ = bc.act(net, config, state, (), probe, first, rng.key(0, "eval"), explore=False)
    torch.testing.assert_close(action, torch.tanh(probe @ matrix.T), rtol=0.0, atol=0.02)


def test_the_best_episodes_alone_are_imitated(tmp_path: Path) -> None:
    """Two kinds of episodes: reward 1 with action 0.5, reward 0 with action -0.5."""
    good = (np.arange(200) // 20) % 5 == 0
    action = np.where(good, 0.5, -0.5).astype(np.float32)[:, None].repeat(2, 1)
    file = write_made(tmp_path / "mixed.npz", actions=action, rewards=good.astype(np.float32))
    settings = {"dataset": file, "steps": 200, "hidden": [], "actor_lr": 0.05, "batch_size": 32, "compile": "off"}
    best, all_of_it = (
        deeprl.load(deeprl.train("bc", **settings, best=share, out=str(tmp_path / str(share))).directory)
        for share in (0.2, 1.0)
    )
    assert np.abs(best(np.zeros(3)) - 0.5).max() < 0.1
    assert all_of_it(np.zeros(3)).max() < 0.0


CONFIG = bc.Config(seeds=(0, 1, 1), actor_lr=(1e-3, 3e-4, 1e-4), weight_decay=(0.0, 0.1, 0.1), **TINY)


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_population_equals_single(kind: str) -> None:
    assert_population_equals_single(bc, dataclasses.replace(CONFIG, actor=kind))


@pytest.mark.compiled
def test_compiled_equals_eager() -> None:
    assert_compiled_equals_eager(bc, CONFIG)


@pytest.mark.parametrize(("settings", "text"), [({"best": 1.5}, "best"), ({"weight_decay": -1.0}, "weight_decay")])
def test_wrong_settings(settings: dict, text: str) -> None:
    with pytest.raises(DeeprlError, match=text):
        bc.Config(**settings)
