"""IQL: losses by hand, updates against an independent implementation, population = single, compiled = eager."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from helpers import BATCH, CRITIC, ONE, assert_equal, batch_of, cast
from offline_helpers import SPEC, assert_compiled_equals_eager, assert_population_equals_single, descend
from torch import nn

from deeprl.core import rng
from deeprl.core.spec import Batch, EnvSpec
from deeprl.errors import DeeprlError
from deeprl.offline import iql

TINY = {"hidden": (16, 16), "batch_size": 32, "steps": 100}


def linear_net(config: iql.Config) -> iql.Net:
    """Critics of `helpers.CRITIC`, V = w o + b, a Gaussian whose mean is tanh(w o + b): linear "networks"."""
    critic, value = iql.nets.CriticEnsemble(1, 1, ()), iql.nets.MLP(1, (), 1)
    return iql.Net(iql.nets.GaussianActor(1, 1, ()), critic, value, ONE)


VALUE = {"0.weight": torch.tensor([[1.0]]), "0.bias": torch.tensor([0.0])}


def test_value_loss_by_hand() -> None:
    """q = min Q = 1.5, 0.5; V = 1, 2; u = 0.5, -1.5: weights 0.7 and 0.3."""
    net = linear_net(iql.Config())
    loss, values = iql.value_loss(VALUE, net, BATCH.obs, torch.tensor([1.5, 0.5]), torch.tensor(0.7))
    assert loss.item() == pytest.approx((0.7 * 0.25 + 0.3 * 2.25) / 2)
    assert values.tolist() == [1.0, 2.0]


def test_critic_loss_by_hand() -> None:
    """Q_1 = 2, 1 and Q_2 = 1.5, 0.5 against 1, 1: means (1 + 0) / 2 and (0.25 + 0.25) / 2, summed."""
    net = linear_net(iql.Config())
    assert iql.critic_loss(CRITIC, net, BATCH, torch.ones(2)).item() == pytest.approx(0.5 + 0.25)


@pytest.mark.parametrize(("advantage", "weight"), [(0.5, math.exp(1.5)), (10.0, 100.0), (1e4, 100.0), (-1e4, 0.0)])
def test_weights_are_clipped_at_100(advantage: float, weight: float) -> None:
    """The target critics value the data's action at 0; V is minus the advantage."""
    config = iql.Config(critics=2, hidden=(), value_lr=0.0, actor_lr=1e-3, actor_lr_decay=False)
    net = linear_net(config)
    state = iql.init(net, config, rng.key(0, "init"))
    zeros = {k: torch.zeros_like(p) for k, p in state.critic.items()}
    value = {"0.weight": torch.zeros(1, 1), "0.bias": torch.tensor([-advantage])}
    state = state._replace(critic=zeros, target_critic=zeros, value=value)
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), torch.zeros(1, 1))
    _, metrics, _ = iql.update(net, config, state, batch, rng.key(0, "update"))
    log_prob = -0.5 * math.log(2 * math.pi)  # of the mean, tanh(0) = 0, at sigma 1
    assert metrics["actor_loss"].item() == pytest.approx(-weight * log_prob, rel=1e-5, abs=1e-6)
    assert metrics["advantage"].item() == advantage


def test_gaussian_density_has_no_tanh_correction() -> None:
    mean, log_std, action = torch.tensor([[0.3, -0.9]]), torch.tensor([-1.0, 0.5]), torch.tensor([[0.99, -0.5]])
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)
    torch.testing.assert_close(iql.nets.normal_log_prob(action, mean, log_std), expected)


def test_log_std_is_clipped_and_free() -> None:
    actor = iql.nets.GaussianActor(3, 2, (4,))
    with torch.no_grad():
        actor.raw_log_std.copy_(torch.tensor([-9.0, 7.0]))
    mean, log_std = actor(torch.randn(5, 3))
    assert log_std.tolist() == [-5.0, 2.0]
    assert mean.abs().max() < 1.0


# --- against an implementation with modules, autograd and torch.optim ---


def reference_step(
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    batch: Batch,
    config: iql.Config,
    t: int,
) -> None:
    """One step of IQL as its paper's code orders it."""
    obs, reward = batch.obs, batch.reward
    action = batch.action.clamp(-1 + 1e-5, 1 - 1e-5)
    q = modules["target"](obs, action).min(0).values.detach()
    u = q - modules["value"](obs).squeeze(1)
    descend(optimizers["value"], (torch.abs(config.expectile - (u < 0).to(u.dtype)) * u**2).mean())
    advantage = (q - modules["value"](obs).squeeze(1)).detach()
    weight = torch.exp(config.temperature * advantage).clamp(max=100.0)
    mean, log_std = modules["actor"](obs)
    density = torch.distributions.Normal(mean, log_std.exp())
    for group in optimizers["actor"].param_groups:
        group["lr"] = 3e-4 * 0.5 * (1 + math.cos(math.pi * t / config.steps))
    descend(optimizers["actor"], -(weight * density.log_prob(action).sum(-1)).mean())
    y = reward + batch.discount * modules["value"](batch.next_obs).squeeze(1).detach()
    descend(optimizers["critic"], ((modules["critic"](obs, action) - y) ** 2).mean(1).sum())
    with torch.no_grad():
        for old, new in zip(modules["target"].parameters(), modules["critic"].parameters(), strict=True):
            old.copy_(0.995 * old + 0.005 * new)


def test_updates_equal_an_independent_implementation() -> None:
    config = iql.Config(**TINY)
    net = iql.build_net(SPEC, config)
    state = cast(iql.init(net, config, rng.key(3, "init")), torch.float64)
    modules = {"actor": net.actor, "critic": net.critic, "value": net.value}
    modules = {name: copy.deepcopy(m).double() for name, m in modules.items()}
    for name, m in modules.items():
        m.load_state_dict(getattr(state, name))
    optimizers = {name: torch.optim.Adam(m.parameters(), lr=3e-4) for name, m in modules.items()}
    modules["target"] = copy.deepcopy(modules["critic"])
    for t in range(10):
        batch = batch_of(32, seed=t, dtype=torch.float64)
        state, _, _ = iql.update(net, config, state, batch, rng.key(0, "update", t))
        reference_step(modules, optimizers, batch, config, t)
    for name, params in (("target", state.target_critic), *((n, getattr(state, n)) for n in optimizers)):
        for key, value in modules[name].state_dict().items():
            torch.testing.assert_close(params[key], value, rtol=1e-6, atol=1e-9)  # rates are float32


# --- a population ---


CONFIG = iql.Config(
    seeds=(0, 1, 1), expectile=(0.6, 0.7, 0.9), temperature=(1.0, 3.0, 3.0), actor_lr=(1e-3, 1e-4, 1e-4), **TINY
)


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.1}, {"actor": "deterministic", "normalize_obs": "obs"}])
def test_population_equals_single(settings: dict) -> None:
    assert_population_equals_single(iql, dataclasses.replace(CONFIG, **settings))


@pytest.mark.compiled
def test_compiled_equals_eager() -> None:
    assert_compiled_equals_eager(iql, CONFIG)


def test_dropout_keeps_the_mean_of_a_layer() -> None:
    config = iql.Config(dropout=0.1, hidden=(64, 32))
    kept = iql.dropout_factors(rng.key(0, "update"), 500, config)
    assert [k.shape for k in kept] == [(500, 64), (500, 32)]
    assert {round(v, 4) for v in kept[0].unique().tolist()} == {0.0, 1.1111}
    assert kept[0].mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(kept[0][:, :32], kept[1])


def test_own_actor_needs_no_factors_unless_there_is_dropout() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Linear(3, 2)

        def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tanh(self.mean(obs)), torch.zeros(2)

    def make(spec: EnvSpec, config: iql.Config) -> tuple[nn.Module, nn.Module, nn.Module]:
        return Own(), *iql.make_net(spec, config)[1:]

    config = iql.Config(**TINY)
    net = iql.build_net(SPEC, config, make)
    state = iql.init(net, config, rng.key(0, "init"))
    assert int(iql.update(net, config, state, batch_of(8), rng.key(0, "update"))[0].step) == 1
    with pytest.raises(DeeprlError, match=r"^net: Own cannot take .*positional argument"):
        iql.build_net(SPEC, dataclasses.replace(config, dropout=0.1), make)


def test_dropout_acts_on_every_hidden_layer_of_the_policy() -> None:
    config = iql.Config(dropout=0.5, hidden=(16, 8))
    net, key, batch = iql.build_net(SPEC, config), rng.key(0, "update"), batch_of(32)
    p = iql.init(net, config, rng.key(0, "init")).actor
    first, second = iql.dropout_factors(key, 32, config)
    h = torch.relu(batch.obs @ p["trunk.0.weight"].T + p["trunk.0.bias"]) * first
    h = torch.relu(h @ p["trunk.2.weight"].T + p["trunk.2.bias"]) * second
    mean = torch.tanh(h @ p["trunk.4.weight"].T + p["trunk.4.bias"])
    density = torch.distributions.Normal(mean, p["raw_log_std"].exp()).log_prob(batch.action).sum(-1)
    weight = torch.linspace(0.1, 2.0, 32)
    loss = iql.actor_loss(p, net, config, batch, weight, key)
    torch.testing.assert_close(loss, -(weight * density).mean())


def test_loss_of_the_deterministic_policy_by_hand() -> None:
    """tanh(0) = 0 against (0.6, -0.8) and (0.1, 0.2): squares 1 and 0.05, weighted by 2 and 10."""
    config = iql.Config(actor="deterministic", hidden=())
    net = iql.build_net(SPEC, config)
    zero = {"trunk.0.weight": torch.zeros(2, 3), "trunk.0.bias": torch.zeros(2)}
    batch = batch_of(2)._replace(action=torch.tensor([[0.6, -0.8], [0.1, 0.2]]))
    loss = iql.actor_loss(zero, net, config, batch, torch.tensor([2.0, 10.0]), rng.key(0, "update"))
    assert loss.item() == pytest.approx((2.0 * 1.0 + 10.0 * 0.05) / 2)


def test_layers_start_orthogonal_with_gain_sqrt_2() -> None:
    config = iql.Config(hidden=(16, 8))
    state = iql.init(iql.build_net(SPEC, config), config, rng.key(0, "init"))
    parts = {**state.actor, **state.critic, **{f"value.{k}": p for k, p in state.value.items()}}
    weights = [p for k, p in parts.items() if k.endswith("weight")]
    assert len(weights) == 9
    for weight in weights:
        sizes = torch.linalg.svdvals(weight)
        torch.testing.assert_close(sizes, torch.full_like(sizes, 2**0.5))
    assert not any(p.any() for k, p in parts.items() if k.endswith("bias"))
    assert state.actor["raw_log_std"].tolist() == [0.0, 0.0]


def test_last_learning_rate_of_the_policy_is_zero() -> None:
    config = iql.Config(**TINY)
    net = iql.build_net(SPEC, config)
    state = iql.init(net, config, rng.key(0, "init"))
    last = state._replace(step=torch.tensor(config.steps))
    new, _, _ = iql.update(net, config, last, batch_of(8), rng.key(0, "update"))
    assert_equal(new.actor, last.actor)
    moving = dataclasses.replace(config, actor_lr_decay=False)
    new, _, _ = iql.update(net, moving, last, batch_of(8), rng.key(0, "update"))
    assert not torch.equal(new.actor["trunk.0.weight"], last.actor["trunk.0.weight"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"expectile": 1.5}, "expectile: must be in 0 .. 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"dropout": 0.1, "actor": "deterministic"}, "dropout: only the gaussian actor"),
        ({"critics": 0}, "critics"),
        ({"hidden": (0,)}, "hidden"),
    ],
)
def test_wrong_settings(settings: dict, text: str) -> None:
    with pytest.raises(DeeprlError, match=text):
        iql.Config(**settings)


def test_needs_continuous_actions() -> None:
    with pytest.raises(DeeprlError, match="iql needs continuous actions"):
        iql.build_net(EnvSpec((3,), 0, (), (), actions=2), iql.Config())
