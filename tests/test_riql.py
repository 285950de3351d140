"""RIQL: quantile and Huber's loss by hand, updates against an independent implementation, population = single."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from helpers import BATCH, CRITIC, ONE, batch_of, cast
from offline_helpers import SPEC, assert_compiled_equals_eager, assert_population_equals_single, descend
from torch import nn

from deeprl import nets
from deeprl.core import rng
from deeprl.errors import DeeprlError
from deeprl.offline import riql
from deeprl.recipes import RECIPES

TINY = {"hidden": (16, 16), "batch_size": 32, "steps": 100}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("critics", [1, 2, 3, 5])
def test_quantile_equals_torchs(share: float, critics: int) -> None:
    qs = torch.randn(critics, 7, generator=torch.Generator().manual_seed(critics))
    torch.testing.assert_close(riql.quantile_of(qs, torch.tensor(share)), torch.quantile(qs, share, dim=0))


def test_huber_loss_by_hand() -> None:
    """Errors of 1, 0 and 0.5, -0.5 at a threshold of 0.5: (0.75 + 0 + 0.25 + 0.25) / 4; smooth at the threshold."""
    net = riql.Net(nets.TanhActor(1, 1, ()), nets.CriticEnsemble(1, 1, ()), nets.MLP(1, (), 1), ONE)
    loss = riql.critic_loss(CRITIC, net, BATCH, torch.ones(2), torch.tensor(0.5))
    assert loss.item() == pytest.approx((0.75 + 0.0 + 0.25 + 0.25) / 4)
    square = riql.critic_loss(CRITIC, net, BATCH, torch.ones(2), torch.tensor(100.0))
    assert square.item() == pytest.approx((1.0 + 0.0 + 0.25 + 0.25) / 4 / 200.0)


@pytest.mark.parametrize(
    ("name", "sigma", "alpha", "critics"),
    [
        ("halfcheetah-random-observation", 0.1, 0.1, 5),
        ("halfcheetah-random-action", 0.5, 0.25, 3),
        ("walker2d-random-dynamics", 1.0, 0.25, 3),
        ("hopper-random-dynamics", 1.0, 0.5, 5),
        ("hopper-random-observation", 0.1, 0.25, 3),
        ("walker2d-adversarial-reward", 3.0, 0.1, 5),
        ("hopper-adversarial-reward", 0.1, 0.25, 5),
        ("halfcheetah-adversarial-dynamics", 1.0, 0.1, 5),
    ],
)
def test_recipes_are_the_papers(name: str, sigma: float, alpha: float, critics: int) -> None:
    """Cells of its table of settings; the threshold is 1 / sigma^2."""
    settings = RECIPES["riql"][name].settings
    assert settings["huber_threshold"] == pytest.approx(1 / sigma**2)
    assert (settings["quantile"], settings["critics"], settings["steps"]) == (alpha, critics, 3_000_000)


def test_updates_equal_an_independent_implementation() -> None:
    """As the paper's code has it: V and the critics see V before its step; targets are clipped."""
    config = riql.Config(quantile=0.25, huber_threshold=4.0, **TINY)
    net = riql.build_net(SPEC, config)
    state = cast(riql.init(net, config, rng.key(3, "init")), torch.float64)
    modules = {name: copy.deepcopy(getattr(net, name)).double() for name in ("actor", "critic", "value")}
    for name, m in modules.items():
        m.load_state_dict(getattr(state, name))
    optimizers = {name: torch.optim.Adam(m.parameters(), lr=3e-4) for name, m in modules.items()}
    target = copy.deepcopy(modules["critic"])
    for t in range(10):
        batch = batch_of(32, seed=t, dtype=torch.float64)
        batch = batch._replace(reward=batch.reward * (1.0 + 2000.0 * (t == 4)))  # some beyond -100 and 1000
        state, _, _ = riql.update(net, config, state, batch, rng.key(0, "update", t))
        next_v = modules["value"](batch.next_obs).squeeze(1).detach()
        q = torch.quantile(target(batch.obs, batch.action), 0.25, dim=0).detach()
        u = q - modules["value"](batch.obs).squeeze(1)
        descend(optimizers["value"], (torch.abs(0.7 - (u < 0).to(u.dtype)) * u**2).mean())
        y = torch.clamp(batch.reward + batch.discount * next_v, -100, 1000)
        qs = modules["critic"](batch.obs, batch.action)
        descend(optimizers["critic"], nn.functional.smooth_l1_loss(qs, y.expand_as(qs), beta=4.0))
        with torch.no_grad():
            for old, new in zip(target.parameters(), modules["critic"].parameters(), strict=True):
                old.lerp_(new, 0.005)
        weight = torch.exp(3.0 * u.detach()).clamp(max=100.0)
        for group in optimizers["actor"].param_groups:
            group["lr"] = 3e-4 * 0.5 * (1 + math.cos(math.pi * t / config.steps))
        error = (modules["actor"](batch.obs) - batch.action).square().sum(1)
        descend(optimizers["actor"], (weight * error).mean())
    for module, params in (*((m, getattr(state, n)) for n, m in modules.items()), (target, state.target_critic)):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(params[key], value, rtol=1e-6, atol=1e-9)  # rates are float32


def test_critics_start_as_published() -> None:
    """Hidden layers U(-1/8, 1/8) for 64 units, whatever their inputs: 5 of them would give 1/sqrt(5)."""
    net = riql.build_net(SPEC, riql.Config(hidden=(64, 64)))
    params = nets.init_params(net.critic, 0)
    assert 0.124 < params["layers.0.weight"].abs().max() <= 1 / 8
    assert (params["layers.0.bias"] == 0.1).all()
    assert (params["layers.1.bias"] == 0.1).all()
    last = params["layers.2.weight"]
    assert 0.0029 < last.abs().max() <= 0.003
    assert params["layers.2.bias"].abs().max() <= 0.003
    assert 0.124 < params["layers.1.weight"].abs().max() <= 1 / 8


def test_one_critic_learns() -> None:
    config = riql.Config(critics=1, **TINY)
    net = riql.build_net(SPEC, config)
    state = riql.init(net, config, rng.key(0, "init"))
    metrics = riql.update(net, config, state, batch_of(32), rng.key(0, "update", 0))[1]
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["spread"] == 0.0


def test_quantile_is_not_rounded_under_bf16() -> None:
    """Halfway between 250.25 and 251.25; bf16 has no numbers between 250 and 251."""
    qs = torch.tensor([[250.25], [251.25]])
    with torch.autocast("cpu", torch.bfloat16):
        assert riql.quantile_of(qs, torch.tensor(0.5)).item() == 250.75


def test_value_and_policy_start_as_torchs_layers() -> None:
    net = riql.build_net(SPEC, riql.Config(**TINY))
    state = riql.init(net, riql.Config(**TINY), rng.key(0, "init"))
    assert 0.0 < state.value["0.bias"].abs().max() <= 1 / math.sqrt(3)


CONFIG = riql.Config(
    seeds=(0, 1, 1), quantile=(0.1, 0.25, 0.5), huber_threshold=(1.0, 100.0, 1.0), expectile=(0.7, 0.7, 0.9), **TINY
)


def test_population_equals_single() -> None:
    assert_population_equals_single(riql, CONFIG)
    assert_population_equals_single(riql, dataclasses.replace(CONFIG, normalize_obs="off", critics=3))


@pytest.mark.compiled
def test_compiled_equals_eager() -> None:
    assert_compiled_equals_eager(riql, CONFIG)


@pytest.mark.parametrize(
    ("settings", "text"), [({"quantile": 1.1}, "quantile"), ({"huber_threshold": 0.0}, "huber_threshold")]
)
def test_wrong_settings(settings: dict, text: str) -> None:
    with pytest.raises(DeeprlError, match=text):
        riql.Config(**settings)
