"""SAC: every loss against numbers worked out by hand, and twenty updates against a plain independent implementation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    BATCH,
    CRITIC,
    ONE,
    SPEC,
    assert_close_critics,
    assert_equal,
    batch_of,
    cast,
    keys,
    plain_critics,
    seen,
)
from torch import Tensor, nn

from deeprl.config import build
from deeprl.core import rng
from deeprl.core.population import member, stack
from deeprl.core.spec import Batch, EnvSpec
from deeprl.core.tree import tree_leaves
from deeprl.errors import DeeprlError
from deeprl.online import sac
from deeprl.run import learning

METRICS = ("critic_loss", "critic_grad_norm", "q", "actor_loss", "actor_grad_norm", "entropy", "alpha", "alpha_loss")
# mean = 0 and log sigma = 0, whatever the observation.
ACTOR = {"trunk.0.weight": torch.zeros(2, 1), "trunk.0.bias": torch.zeros(2)}
LINEAR = sac.Config(hidden=(), init_alpha=0.5)
LINEAR_NET = sac.build_net(ONE, LINEAR)


@pytest.fixture
def zero_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every normal number is 0: the policy acts by its mean."""
    monkeypatch.setattr(rng, "normal", lambda key, shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype))


def linear_state(**settings: Any) -> sac.State:
    config = sac.Config(hidden=(), init_alpha=0.5, **settings)
    state = sac.init(LINEAR_NET, config, rng.key(0, "init"))
    copies = [{k: p.clone() for k, p in params.items()} for params in (ACTOR, CRITIC, CRITIC)]
    return state._replace(actor=copies[0], critic=copies[1], target_critic=copies[2])


# --- losses by hand ---


def test_critic_loss_by_hand() -> None:
    # Target (1, 2). Q_1 - target = 1, -1: mean square 1. Q_2 - target = 0.5, -1.5: mean square 1.25.
    # Half of the sum 2.25 is 1.125; the first critic's mean is (2 + 1) / 2.
    loss, q = sac.critic_loss(CRITIC, LINEAR_NET, BATCH, torch.tensor([1.0, 2.0]))
    assert float(loss) == pytest.approx(1.125)
    assert float(q) == pytest.approx(1.5)


@pytest.mark.usefixtures("zero_noise")
def test_actor_loss_by_hand() -> None:
    # a = tanh(0) = 0, log pi = -0.9189385 - log(1 - 0); min Q = 1 in both rows: 0.5 * -0.9189385 - 1 = -1.4594693
    loss, log_prob = sac.actor_loss(ACTOR, LINEAR_NET, CRITIC, torch.tensor(0.5), BATCH.obs, rng.key(0, "update"))
    assert float(log_prob) == pytest.approx(-0.9189385)
    assert float(loss) == pytest.approx(-1.4594693)


def test_actor_loss_reparameterises_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # mean 0.3, log sigma -1, noise 0.5: u = 0.3 + 0.5 / e = 0.4839397, a = tanh u = 0.4493932
    # log pi = -0.125 + 1 - 0.9189385 - log(1 - a^2) = -0.0439385 + 0.2255894 = 0.1816509
    # Row 1 (o = 1): Q_1 = 1.8987865, Q_2 = 1.4493932; row 2 (o = 2): Q_2 again. loss = 0.5 * 0.1816509 - 1.4493932
    monkeypatch.setattr(rng, "normal", lambda key, shape, dtype=torch.float32: torch.full(shape, 0.5, dtype=dtype))
    actor = {"trunk.0.weight": torch.zeros(2, 1), "trunk.0.bias": torch.tensor([0.3, -1.0])}
    loss, log_prob = sac.actor_loss(actor, LINEAR_NET, CRITIC, torch.tensor(0.5), BATCH.obs, rng.key(0, "update"))
    assert float(log_prob) == pytest.approx(0.1816509, abs=1e-6)
    assert float(loss) == pytest.approx(0.5 * 0.1816509 - 1.4493932, abs=1e-6)


@pytest.mark.parametrize(("log_prob", "loss", "slope"), [(1.0, 0.0, 0.0), (3.0, -4.0, -4.0), (-1.0, 4.0, 4.0)])
def test_alpha_loss_by_hand(log_prob: float, loss: float, slope: float) -> None:
    # alpha = 2, target entropy -1: -2 * (log pi - 1), and its derivative by log alpha is itself.
    # Entropy -3 is below the target: a negative slope, so that descent raises alpha.
    log_alpha = torch.tensor(math.log(2.0))
    gradient, result = torch.func.grad_and_value(sac.alpha_loss)(log_alpha, torch.tensor(log_prob), torch.tensor(-1.0))
    assert float(result) == pytest.approx(loss)
    assert float(gradient) == pytest.approx(slope)


@pytest.mark.usefixtures("zero_noise")
def test_td_target_by_hand() -> None:
    # Next action 0, min Q' = 1, log pi = -0.9189385: soft value 1 + 0.5 * 0.9189385 = 1.4594693.
    # Targets: 1 + 0.9 * 1.4594693 = 2.3135223 and 1 + 0 = 1 (terminated).
    # Errors: Q_1 = 2, 1: -0.3135223, 0; Q_2 = 1.5, 0.5: -0.8135223, -0.5.
    # Loss: 0.5 * ((0.0982962 + 0) / 2 + (0.6618186 + 0.25) / 2) = 0.2525287
    _, metrics, aux = sac.update(LINEAR_NET, LINEAR, linear_state(), BATCH, rng.key(0, "update"))
    assert float(metrics["critic_loss"]) == pytest.approx(0.2525287, abs=1e-6)
    # dLoss/dQ = error / 2: Q_1 -0.1567612, 0; Q_2 -0.4067612, -0.25. Gradients of (w_obs, w_action, bias):
    # Q_1 (-0.1567612, -0.0783806, -0.1567612), Q_2 (-0.9067612, -0.0783806, -0.6567612); squares sum to 1.3149836
    assert float(metrics["critic_grad_norm"]) == pytest.approx(1.3149836**0.5, abs=1e-5)
    assert float(metrics["q"]) == pytest.approx(1.5)
    assert float(metrics["entropy"]) == pytest.approx(0.9189385)
    assert float(metrics["alpha"]) == pytest.approx(0.5)
    # -alpha * (log pi + target entropy) = -0.5 * (-0.9189385 - 1)
    assert float(metrics["alpha_loss"]) == pytest.approx(0.9594693)
    assert aux == ()
    assert tuple(metrics) == METRICS


@pytest.mark.usefixtures("zero_noise")
def test_td_target_uses_the_target_critic_not_the_online_one() -> None:
    # Q' = Q + 10 at the bias: soft value 11.4594693, target 1 + 0.9 * 11.4594693 = 11.3135223 in row 1.
    # Errors -9.3135223, 0 and -9.8135223, -0.5: 0.5 * (86.7416981 / 2 + (96.3052204 + 0.25) / 2)
    state = linear_state()
    state.target_critic["layers.0.bias"].add_(10.0)
    _, metrics, _ = sac.update(LINEAR_NET, LINEAR, state, BATCH, rng.key(0, "update"))
    assert float(metrics["critic_loss"]) == pytest.approx(0.25 * (86.7416981 + 96.5552204), rel=1e-6)


# --- what an update touches ---


def test_terminated_row_ignores_what_follows() -> None:
    state, key = linear_state(), rng.key(0, "update")
    other = BATCH._replace(next_obs=torch.tensor([[1.0], [-77.0]]))
    assert_equal(
        sac.update(LINEAR_NET, LINEAR, state, BATCH, key)[:2], sac.update(LINEAR_NET, LINEAR, state, other, key)[:2]
    )
    # while the first row bootstraps
    other = BATCH._replace(next_obs=torch.tensor([[5.0], [2.0]]))
    state.target_critic["layers.0.weight"][1, 0] = 1.0
    losses = [sac.update(LINEAR_NET, LINEAR, state, b, key)[1]["critic_loss"] for b in (BATCH, other)]
    assert float(losses[0]) != float(losses[1])


@pytest.mark.parametrize(
    ("off", "still", "moving"),
    [
        ("actor_lr", "actor", ("critic", "log_alpha")),
        ("critic_lr", "critic", ("actor", "log_alpha")),
        ("alpha_lr", "log_alpha", ("actor", "critic")),
        ("tau", "target_critic", ("actor", "critic")),
    ],
)
def test_each_loss_moves_its_own_parameters_only(off: str, still: str, moving: tuple[str, ...]) -> None:
    config = sac.Config(hidden=(8,), **{off: 0.0})
    net = sac.build_net(SPEC, config)
    state = sac.init(net, config, rng.key(0, "init"))
    new, _, _ = sac.update(net, config, state, batch_of(16), keys(0)[0])
    assert_equal(getattr(new, still), getattr(state, still))
    for name in moving:
        pairs = zip(tree_leaves(getattr(new, name)), tree_leaves(getattr(state, name)), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs), name


def test_gradient_of_the_actor_loss_passes_through_the_critic_into_the_actor_alone() -> None:
    config = sac.Config(hidden=(8,))
    net = sac.build_net(SPEC, config)
    state = sac.init(net, config, rng.key(0, "init"))
    leaves = [p.requires_grad_() for p in state.critic.values()]
    grads, _ = torch.func.grad(sac.actor_loss, has_aux=True)(
        state.actor, net, state.critic, torch.tensor(0.1), batch_of(16).obs, rng.key(0, "update")
    )
    assert list(grads) == list(state.actor)
    assert all(bool(g.abs().sum() > 0) for g in grads.values())
    assert all(p.grad is None for p in leaves)


@pytest.mark.usefixtures("zero_noise")
def test_actor_minimises_against_the_new_critic() -> None:
    # critic_lr 0.5: Adam's first step is 0.5 * sign. Errors are negative, so the biases rise to 0.5 and 1.5, the
    # weights of o by 0.5. Weights of a: gradient of Q_1 is mean(error * a) = (-0.3135 * 0.5 + 0) / 2 < 0: 2.5; of Q_2
    # (-0.8135 * 0.5 + 0.5 * 0.5) / 2 < 0: 1.5. At a = 0: Q_1 = 1.5 o + 0.5 = 2, 3.5; Q_2 = 0.5 o + 1.5 = 2, 2.5.
    # Actor loss: 0.5 * -0.9189385 - (2 + 2.5) / 2 = -2.7094693.
    state = linear_state(critic_lr=0.5)
    new, metrics, _ = sac.update(LINEAR_NET, LINEAR, state, BATCH, rng.key(0, "update"))
    assert new.critic["layers.0.bias"].flatten().tolist() == pytest.approx([0.5, 1.5], abs=1e-5)
    assert new.critic["layers.0.weight"].flatten().tolist() == pytest.approx([1.5, 2.5, 0.5, 1.5], abs=1e-5)
    assert float(metrics["actor_loss"]) == pytest.approx(-2.7094693, abs=1e-5)


def test_target_update_by_hand() -> None:
    # Bias of Q_1: online 0 -> 0.5 (see above), target 0 -> 0 + 0.25 * 0.5; of Q_2: 1 -> 1.5, target 1 + 0.25 * 0.5.
    state = linear_state(critic_lr=0.5, tau=0.25)
    new, _, _ = sac.update(LINEAR_NET, LINEAR, state, BATCH, rng.key(0, "update"))
    for name, old in state.target_critic.items():
        torch.testing.assert_close(new.target_critic[name], 0.75 * old + 0.25 * new.critic[name])
    assert not torch.equal(new.target_critic["layers.0.bias"], state.target_critic["layers.0.bias"])


@pytest.mark.parametrize(("target_entropy", "sign"), [(100.0, 1.0), (-100.0, -1.0)])
def test_temperature_rises_below_the_target_entropy_and_falls_above(target_entropy: float, sign: float) -> None:
    # Adam's first step is the learning rate, 0.1, in the direction that the loss asks for.
    state = linear_state(alpha_lr=0.1, target_entropy=target_entropy)
    new, _, _ = sac.update(LINEAR_NET, LINEAR, state, BATCH, rng.key(0, "update"))
    assert float(new.log_alpha - state.log_alpha) == pytest.approx(sign * 0.1, rel=1e-4)


def test_update_counts_and_leaves_its_arguments_unchanged() -> None:
    state = linear_state()
    before = cast(state, torch.float32)
    new, _, _ = sac.update(LINEAR_NET, LINEAR, state, BATCH, rng.key(0, "update"))
    assert_equal(state, before)
    assert int(new.step) == 1
    assert_equal((new.hparams, new.obs_stats), (state.hparams, state.obs_stats))


# --- initial state ---


def test_initial_state_by_hand() -> None:
    config = sac.Config(hidden=(8,), init_alpha=0.25)
    state = sac.init(sac.build_net(SPEC, config), config, rng.key(3, "init"))
    assert float(state.log_alpha) == pytest.approx(math.log(0.25))
    assert float(state.hparams["target_entropy"]) == -2.0  # -A
    assert float(state.hparams["discount"]) == pytest.approx(0.99)
    assert_equal(state.critic, state.target_critic)
    assert state.critic["layers.0.weight"] is not state.target_critic["layers.0.weight"]
    assert not any(leaf.requires_grad for leaf in tree_leaves(state))
    assert int(state.step) == 0
    # The two networks of one agent start from different numbers, and so do two agents.
    other = sac.init(sac.build_net(SPEC, config), config, rng.key(4, "init"))
    assert not torch.equal(state.actor["trunk.0.weight"], other.actor["trunk.0.weight"])
    assert not torch.equal(state.critic["layers.0.weight"], other.critic["layers.0.weight"])


def test_target_entropy_setting_replaces_auto() -> None:
    config = sac.Config(target_entropy=-0.5)
    assert float(sac.init(sac.build_net(SPEC, config), config, rng.key(0, "init")).hparams["target_entropy"]) == -0.5


# --- populations ---


def test_per_agent_settings_equal_single_runs() -> None:
    config = sac.Config(
        seeds=(0, 0, 5),
        hidden=(8, 8),
        actor_lr=(1e-3, 1e-4, 3e-3),
        critic_lr=(1e-3, 3e-3, 1e-4),
        alpha_lr=(1e-2, 0.0, 1e-3),
        discount=(0.9, 0.99, 0.5),
        tau=(0.005, 0.5, 1.0),
        init_alpha=(1.0, 0.1, 0.01),
        target_entropy=(-2.0, 1.0, -0.5),
    )
    net = sac.build_net(SPEC, config)
    states = [
        cast(sac.init(net, config.member(i), rng.key(s, "init")), torch.float64) for i, s in enumerate(config.seeds)
    ]
    together = stack(states)
    learn = torch.vmap(lambda state, batch, key: sac.update(net, config, state, batch, key)[0])
    for t in range(10):
        batch = batch_of(16, t, torch.float64)
        together = learn(together, stack([batch] * 3), keys(t, config.seeds))
    for i, seed in enumerate(config.seeds):
        alone = states[i]
        for t in range(10):
            alone, _, _ = sac.update(net, config.member(i), alone, batch_of(16, t, torch.float64), keys(t, (seed,))[0])
        for ours, theirs in zip(tree_leaves(member(together, i)), tree_leaves(alone), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    # and the settings matter: agents 0 and 1 have one seed and part ways
    assert not torch.equal(together.actor["trunk.0.weight"][0], together.actor["trunk.0.weight"][1])


def test_members_of_other_seeds_differ_at_update_1_on_the_same_data() -> None:
    # purejaxrl #35: keys that are split in the wrong place gave all agents one stream. Here even agents that start from
    # the same weights and learn from the same batch must part ways by their own noise.
    config = sac.Config(hidden=(8,))
    net = sac.build_net(SPEC, config)
    state = sac.init(net, config, rng.key(0, "init"))
    learn = torch.vmap(lambda s, b, key: sac.update(net, config, s, b, key)[:2])
    new, metrics = learn(stack([state] * 4), stack([batch_of(16)] * 4), keys(0, (0, 1, 2, 3)))
    assert len(metrics["critic_loss"].unique()) == 4
    assert len(metrics["entropy"].unique()) == 4
    assert len(new.actor["trunk.0.weight"].unique(dim=0)) == 4
    # Another update number is other noise, too.
    assert float(sac.update(net, config, state, batch_of(16), keys(1)[0])[1]["entropy"]) != float(metrics["entropy"][0])


# --- against an independent implementation ---


class PlainActor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(obs)
        policy = torch.distributions.Normal(out[:, :2], out[:, 2:].clamp(-20, 2).exp())
        u = policy.mean + policy.stddev * noise
        action = torch.tanh(u)
        return action, (policy.log_prob(u) - torch.log(1 - action**2)).sum(1)


class PlainSac:
    """The usual script: modules, torch.optim, backward. Takes its noise and its first weights from outside."""

    def __init__(self, state: sac.State, dtype: torch.dtype):
        self.actor = PlainActor().to(dtype)
        self.critics, self.targets = (plain_critics(state.critic, dtype) for _ in range(2))
        with torch.no_grad():
            for name, p in self.actor.named_parameters():
                p.copy_(state.actor[name.replace("net", "trunk")])
        self.log_alpha = state.log_alpha.clone().requires_grad_()
        # As they are in the state: 1e-3 and so on, rounded to float32.
        rates = {name: float(value) for name, value in state.hparams.items()}
        self.tau = rates["tau"]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=rates["actor_lr"])
        critic_params = [p for c in self.critics for p in c.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic_params, lr=rates["critic_lr"])
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=rates["alpha_lr"])

    def update(self, batch: Batch, next_noise: Tensor, noise: Tensor) -> dict[str, float]:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, next_log_prob = self.actor(batch.next_obs, next_noise)
            next_q = torch.min(*(t(batch.next_obs, next_action) for t in self.targets))
            target = batch.reward + batch.discount * (next_q - alpha * next_log_prob)
        critic_loss = sum(nn.functional.mse_loss(c(batch.obs, batch.action), target) for c in self.critics) / 2
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        action, log_prob = self.actor(batch.obs, noise)
        actor_loss = (alpha * log_prob - torch.min(*(c(batch.obs, action) for c in self.critics))).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        alpha_loss = -(self.log_alpha.exp() * (log_prob.detach() - 2.0)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        with torch.no_grad():
            for target_net, critic in zip(self.targets, self.critics, strict=True):
                for t, p in zip(target_net.parameters(), critic.parameters(), strict=True):
                    t.mul_(1 - self.tau).add_(self.tau * p)
        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss}
        return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_twenty_updates_equal_a_plain_implementation(dtype: torch.dtype, bar: float) -> None:
    # float32: rounding of 1e-7 per update, amplified by Adam where a gradient is near zero.
    config = sac.Config(hidden=(16, 16), actor_lr=1e-3, critic_lr=2e-3, alpha_lr=3e-3, tau=0.01)
    net = sac.build_net(SPEC, config)
    state = cast(sac.init(net, config, rng.key(1, "init")), dtype)
    plain = PlainSac(state, dtype)
    for t in range(20):
        batch, key = batch_of(32, t, dtype), keys(t)[0]
        next_noise, noise = (rng.normal(k, (32, 2), dtype) for k in rng.split(key, 2))
        theirs = plain.update(batch, next_noise, noise)
        state, metrics, _ = sac.update(net, config, state, batch, key)
        for name, value in theirs.items():
            assert float(metrics[name]) == pytest.approx(value, rel=bar, abs=bar), (t, name)
    close = {"rtol": bar, "atol": bar}
    for name, p in plain.actor.named_parameters():
        torch.testing.assert_close(state.actor[name.replace("net", "trunk")], p.detach(), **close)
    assert_close_critics(state.critic, plain.critics, bar)
    assert_close_critics(state.target_critic, plain.targets, bar)
    torch.testing.assert_close(state.log_alpha, plain.log_alpha.detach(), **close)


# --- variants ---


@pytest.mark.parametrize(
    "settings",
    [{"log_std": "tanh"}, {"critics": 1}, {"critics": 5}, {"normalize_obs": True}, {"log_std_range": (-3.0, 1.0)}],
)
def test_variants_learn_finite_numbers(settings: dict[str, Any]) -> None:
    config = sac.Config(hidden=(8, 8), critic_lr=1e-2, **settings)
    net = sac.build_net(SPEC, config)
    state = start = sac.init(net, config, rng.key(0, "init"))
    losses = []
    for t in range(40):
        state = learning.observe(net, config, state, seen(batch_of(16).obs))[0] if t == 0 else state
        state, metrics, _ = sac.update(net, config, state, batch_of(64)._replace(discount=torch.zeros(64)), keys(t)[0])
        losses.append(float(metrics["critic_loss"]))
    assert state.critic["layers.0.weight"].shape[0] == config.critics
    assert all(bool(leaf.isfinite().all()) for leaf in tree_leaves(state))
    assert losses[-1] < 0.5 * losses[0]
    for name in ("actor", "critic", "target_critic"):
        pairs = zip(tree_leaves(getattr(state, name)), tree_leaves(getattr(start, name)), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs), name


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({}, -20.0, 2.0),
        ({"log_std": "tanh"}, -5.0, 2.0),
        ({"log_std": "tanh", "log_std_range": (-1.0, 0.5)}, -1.0, 0.5),
    ],
)
def test_log_std_range_is_that_of_its_kind_unless_set(settings: dict[str, Any], low: float, high: float) -> None:
    config = sac.Config(hidden=(), **settings)
    net = sac.build_net(ONE, config)
    for raw, expected in ((-1e4, low), (1e4, high)):
        params = {"trunk.0.weight": torch.zeros(2, 1), "trunk.0.bias": torch.tensor([0.0, raw])}
        log_std = torch.func.functional_call(net.actor, params, (torch.zeros(1, 1),))[1]
        assert log_std.item() == pytest.approx(expected)


def test_normalized_observations_reach_the_networks_in_acting_and_learning() -> None:
    # Statistics of 10 + 4 z: an agent that normalises raw observations does what a plain agent does on normalised ones.
    config, plain = sac.Config(hidden=(8,), normalize_obs=True), sac.Config(hidden=(8,))
    net = sac.build_net(SPEC, config)
    batch = batch_of(64)
    raw = batch._replace(obs=10 + 4 * batch.obs, next_obs=10 + 4 * batch.next_obs)
    state, _, _ = learning.observe(net, config, sac.init(net, config, rng.key(0, "init")), seen(raw.obs))
    mean, var = raw.obs.mean(0), raw.obs.var(0, unbiased=False)
    scaled = raw._replace(obs=(raw.obs - mean) / var.sqrt(), next_obs=(raw.next_obs - mean) / var.sqrt())
    key, first = rng.key(0, "explore"), torch.zeros(64, dtype=torch.bool)
    for explore in (True, False):
        ours, _ = sac.act(net, config, state, (), raw.obs, first, key, explore=explore)
        theirs, _ = sac.act(net, plain, state, (), scaled.obs, first, key, explore=explore)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours, theirs = (sac.update(net, c, state, b, key)[1] for c, b in ((config, raw), (plain, scaled)))
    for name in METRICS:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    # An update leaves the statistics alone; `observe` leaves all else alone.
    assert_equal(sac.update(net, config, state, raw, key)[0].obs_stats, state.obs_stats)


def test_acting_samples_or_takes_the_mode() -> None:
    # mean 0.5, sigma 1: the mode is tanh(0.5); a sample is tanh(0.5 + noise).
    state = linear_state()
    state.actor["trunk.0.bias"][0] = 0.5
    key, first, obs = rng.key(0, "explore"), torch.zeros(6, dtype=torch.bool), torch.zeros(6, 1)
    mode, carry = sac.act(LINEAR_NET, LINEAR, state, (), obs, first, key, explore=False)
    torch.testing.assert_close(mode, torch.full((6, 1), math.tanh(0.5)))
    sampled, _ = sac.act(LINEAR_NET, LINEAR, state, (), obs, first, key, explore=True)
    torch.testing.assert_close(sampled, torch.tanh(0.5 + rng.normal(key, (6, 1))))
    assert carry == ()
    assert float(sampled.abs().max()) <= 1.0


def test_own_networks_replace_the_papers() -> None:
    def tiny(spec: EnvSpec, config: sac.Config) -> tuple[nn.Module, nn.Module]:
        return sac.make_net(spec, sac.Config(hidden=(3,)))

    net = sac.build_net(SPEC, sac.Config(), tiny)
    assert net.critic.layers[0].weight.shape == (2, 5, 3)  # type: ignore[union-attr, index]


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be positive"),
        ({"utd": -1.0}, "utd: must be positive"),
        ({"buffer_size": 0}, "buffer_size: must be positive"),
        ({"learning_starts": 0}, "learning_starts: must be positive"),
        ({"critics": 0}, "critics: must be positive"),
        ({"log_std_range": (1.0,)}, "log_std_range: a lower and an upper"),
        ({"steps": 0}, "steps: must be positive"),
        ({"seeds": ()}, "seeds: at least one"),
        ({"seeds": (2**32,)}, "seeds: must be in"),
        ({"seeds": (1, 1)}, "seeds: 1 twice: two agents have the same seed"),
        ({"seeds": (0, 1), "tau": (0.1,)}, "tau: 1 values for 2 seeds"),
    ],
)
def test_wrong_settings_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeeprlError, match=message):
        sac.Config(**settings)


@pytest.mark.parametrize("values", [{"log_std": "softplus"}, {"actor_rl": 1.0}, {"hidden": "wide"}, {"critics": 2.5}])
def test_wrong_plain_values_raise(values: dict[str, Any]) -> None:
    with pytest.raises(DeeprlError, match=next(iter(values))):
        build(sac.Config, values)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_alpha": 0.0},
        {"init_alpha": -1.0},
        {"log_std_range": (2.0, -5.0)},
        {"hidden": (0,)},
        {"discount": 1.5},
        {"actor_lr": -1.0},
        {"tau": (0.1, 2.0), "seeds": (0, 1)},
    ],
)
def test_settings_that_would_fail_later_raise_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(DeeprlError, match=next(iter(settings))):
        sac.Config(**settings)
