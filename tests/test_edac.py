"""SAC-N and EDAC: losses by hand, updates against a plain implementation, populations, compiled = eager."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from helpers import BATCH, CRITIC, ONE, assert_equal, batch_of, cast, keys
from offline_helpers import (
    SPEC,
    agents_of,
    assert_close_states,
    assert_compiled_equals_eager,
    assert_population_equals_single,
    descend,
    learned,
    made_dataset,
)
from torch import Tensor, nn

from deeprl import nets
from deeprl.core import rng
from deeprl.core.population import Execution, member, stack
from deeprl.data.offline import Facts
from deeprl.errors import DeeprlError
from deeprl.offline import edac

TINY: dict[str, Any] = {"hidden": (16, 16), "batch_size": 32, "steps": 100, "critics": 4}
LINEAR = edac.Config(hidden=(), critics=2)
LINEAR_NET = edac.build_net(ONE, LINEAR)
KEY = rng.key(0, "update")


def scalar(value: float) -> Tensor:
    return torch.tensor(value)


# --- losses by hand ---


def test_critic_loss_by_hand() -> None:
    # Target (1, 2). Q_1 - target = 1, -1: mean square 1. Q_2 - target = 0.5, -1.5: mean square 1.25. The sum is 2.25.
    # Slopes 2 and 1 point the same way: the cosine of both pairs is 1, their sum by E - 1 is 2.
    target = torch.tensor([1.0, 2.0])
    for eta, total in ((None, 2.25), (scalar(0.0), 2.25), (scalar(0.5), 3.25)):
        loss, metrics = edac.critic_loss(CRITIC, LINEAR_NET, BATCH, target, eta)
        assert float(loss) == pytest.approx(total)
        assert float(metrics["critic_loss"]) == pytest.approx(2.25)
        assert float(metrics["q"]) == pytest.approx((2.0 + 1.0 + 1.5 + 0.5) / 4)
        assert ("diversity" in metrics) == (eta is not None)
    assert float(metrics["diversity"]) == pytest.approx(2.0)


def test_alignment_by_hand() -> None:
    # One row: (3, 4), (0, 2), (-5, 0). Cosines 4/5, -3/5, 0: all ordered pairs sum to 0.4, by E - 1 = 2: 0.2.
    # The other row: all the same: 6 / 2 = 3. Their mean is 1.6.
    slopes = torch.tensor([[[3.0, 4.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 2.0]], [[-5.0, 0.0], [9.0, 9.0]]])
    assert float(edac.alignment(slopes)) == pytest.approx(1.6)


def test_alignment_of_critics_without_slope_is_zero_and_so_is_its_gradient() -> None:
    flat = torch.zeros(3, 5, 2)
    slope, value = torch.func.grad_and_value(edac.alignment)(flat)
    assert float(value) == 0.0
    assert bool((slope == 0.0).all())


def test_slopes_of_linear_critics_are_their_weights() -> None:
    slopes, qs = edac.action_slopes(CRITIC, LINEAR_NET, BATCH)
    assert slopes.flatten(1).tolist() == [[2.0, 2.0], [1.0, 1.0]]
    assert qs.tolist() == [[2.0, 1.0], [1.5, 0.5]]


def test_temperature_loss_by_hand() -> None:
    # log alpha = 2; mean log pi = -3, target entropy -1: -2 * (-3 - 1) = 8, and the slope is 4: alpha falls.
    slope, value = torch.func.grad_and_value(edac.alpha_loss)(scalar(2.0), scalar(-3.0), scalar(-1.0))
    assert (float(value), float(slope)) == (8.0, 4.0)


def test_actor_loss_takes_the_most_pessimistic_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    # pi is the constant 0, sigma 1, noise 0: a = 0, log pi = -log(2 pi) / 2. Q_1 = 1, 2, Q_2 = 1, 1: the minimum is 1.
    monkeypatch.setattr(rng, "normal", lambda key, shape, dtype: torch.zeros(shape, dtype=dtype))
    actor = {"trunk.0.weight": torch.zeros(2, 1), "trunk.0.bias": torch.zeros(2)}
    loss = edac.actor_loss(actor, LINEAR_NET, CRITIC, scalar(0.5), BATCH.obs, KEY)
    assert float(loss) == pytest.approx(-0.25 * math.log(2.0 * math.pi) - 1.0)


# --- against an independent implementation ---


class PlainCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], 1)).squeeze(1)


class PlainEdac:
    """The usual script: modules, torch.optim, backward, autograd.grad with create_graph, all pairs one by one."""

    def __init__(self, state: edac.State):
        self.h = {name: value.item() for name, value in state.hparams.items()}  # as they are in the state: rounded
        trunk = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        self.actor = nn.ModuleDict({"trunk": trunk}).double()
        self.actor.load_state_dict(state.actor)
        self.critics, self.targets = (self.critics_of(state.critic) for _ in range(2))
        self.log_alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.optimizers = {
            "alpha": torch.optim.Adam([self.log_alpha], lr=self.h["alpha_lr"]),
            "actor": torch.optim.Adam(self.actor.parameters(), lr=self.h["actor_lr"]),
            "critic": torch.optim.Adam([p for c in self.critics for p in c.parameters()], lr=self.h["critic_lr"]),
        }

    @staticmethod
    def critics_of(params: dict[str, Tensor]) -> list[PlainCritic]:
        critics = [PlainCritic().double() for _ in range(4)]
        for e, critic in enumerate(critics):
            for layer, linear in enumerate(m for m in critic.net if isinstance(m, nn.Linear)):
                linear.weight.data = params[f"layers.{layer}.weight"][e].T.clone()
                linear.bias.data = params[f"layers.{layer}.bias"][e].clone()
        return critics

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor["trunk"](obs).chunk(2, 1)
        std = log_std.clamp(-5, 2).exp()
        u = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)
        return torch.tanh(u), log_prob.sum(1)

    def diversity(self, obs: Tensor, action: Tensor) -> Tensor:
        slopes = []
        for critic in self.critics:
            a = action.clone().requires_grad_()
            (slope,) = torch.autograd.grad(critic(obs, a).sum(), a, create_graph=True)
            slopes.append(slope / (slope.norm(dim=1, keepdim=True) + 1e-10))
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        return sum((slopes[i] * slopes[j]).sum(1).mean() for i, j in pairs) / 3

    def update(self, batch: Any, noise: Tensor, next_noise: Tensor) -> dict[str, float]:
        log_prob = self.sample(batch.obs, noise)[1].mean().detach()
        descend(self.optimizers["alpha"], -self.log_alpha * (log_prob + self.h["target_entropy"]))
        alpha = self.log_alpha.exp().detach()
        action, log_prob = self.sample(batch.obs, noise)
        q = torch.stack([c(batch.obs, action) for c in self.critics]).min(0).values
        actor_loss = (alpha * log_prob - q).mean()
        descend(self.optimizers["actor"], actor_loss)
        with torch.no_grad():
            action, log_prob = self.sample(batch.next_obs, next_noise)
            next_q = torch.stack([c(batch.next_obs, action) for c in self.targets]).min(0).values
            y = batch.reward + batch.discount * (next_q - alpha * log_prob)
        td = sum(nn.functional.mse_loss(c(batch.obs, batch.action), y) for c in self.critics)
        diversity = self.diversity(batch.obs, batch.action)
        descend(self.optimizers["critic"], td + self.h["eta"] * diversity)
        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for t, p in zip(target.parameters(), critic.parameters(), strict=True):
                    t.copy_((1 - self.h["tau"]) * t + self.h["tau"] * p)
        values = {"critic_loss": td, "diversity": diversity, "actor_loss": actor_loss, "alpha": alpha}
        return {name: float(value.detach()) for name, value in values.items()}


@pytest.mark.parametrize("eta", [1.0, 30.0, 0.0])
def test_updates_equal_an_independent_implementation(eta: float) -> None:
    config = edac.Config(eta=eta, actor_lr=1e-3, critic_lr=2e-3, alpha_lr=3e-3, tau=0.1, **TINY)
    net = edac.build_net(SPEC, config)
    state = cast(edac.init(net, config, rng.key(1, "init")), torch.float64)
    plain = PlainEdac(state)
    for t in range(8):
        batch, key = batch_of(32, t, torch.float64), keys(t)[0]
        noise = [rng.normal(k, (32, 2), torch.float64) for k in rng.split(key, 2)]
        theirs = plain.update(batch, *noise)
        state, metrics, aux = edac.update(net, config, state, batch, key)
        assert aux == ()
        for name in theirs.keys() & metrics.keys():
            assert float(metrics[name]) == pytest.approx(theirs[name], rel=1e-8, abs=1e-9), (t, name)
    assert ("diversity" in metrics) == (eta > 0)
    for name, p in plain.actor.named_parameters():
        torch.testing.assert_close(state.actor[name], p.detach(), rtol=1e-8, atol=1e-9)
    for ours, critics in ((state.critic, plain.critics), (state.target_critic, plain.targets)):
        expected = [[p.detach() for p in c.parameters()] for c in critics]
        for e, values in enumerate(expected):
            for layer in range(3):
                for kind, value in (("weight", values[2 * layer].T), ("bias", values[2 * layer + 1])):
                    torch.testing.assert_close(ours[f"layers.{layer}.{kind}"][e], value, rtol=1e-8, atol=1e-9)


def test_eta_turns_the_slopes_of_critics_apart() -> None:
    # ES is 4 where four critics agree, and -4 / 3 at the least: unit vectors that cancel.
    config = edac.Config(seeds=(3, 3), eta=(0.0, 1.0), critic_lr=3e-3, **TINY)
    state = learned(edac, config, Execution("vmap"), updates=30)
    net, batch = edac.build_net(SPEC, config), batch_of(64)
    agree, differ = (edac.alignment(edac.action_slopes(member(state, i).critic, net, batch)[0]) for i in range(2))
    assert float(agree) > 0.3
    assert -4 / 3 < float(differ) < -0.7


# --- state and acting ---


def test_facts_of_the_dataset_change_what_an_update_sees() -> None:
    config = edac.Config(**TINY)
    net = edac.build_net(SPEC, config)
    state = edac.init(net, config, KEY)
    batch = batch_of(32)
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 1.0])
    seen = state._replace(facts=Facts(mean, std, torch.tensor(2.0), torch.tensor(-1.0)))
    raw = batch._replace(
        obs=batch.obs * std + mean, next_obs=batch.next_obs * std + mean, reward=(batch.reward + 1.0) / 2.0
    )
    ours, theirs = edac.update(net, config, seen, raw, KEY)[0], edac.update(net, config, state, batch, KEY)[0]
    assert_close_states(ours._replace(facts=state.facts), theirs)


def test_update_leaves_its_arguments_unchanged_and_counts() -> None:
    config = edac.Config(**TINY)
    net = edac.build_net(SPEC, config)
    state, other = (edac.init(net, config, KEY) for _ in range(2))
    new, metrics, _ = edac.update(net, config, state, batch_of(32), KEY)
    assert_equal(state, other)
    assert int(new.step) == 1
    assert all(bool(m.isfinite()) for m in metrics.values())


def test_initial_state_is_that_of_the_authors() -> None:
    config = edac.Config(eta=0.5)
    net = edac.build_net(SPEC, config)
    state = edac.init(net, config, rng.key(3, "init"))
    assert_equal(state.critic, state.target_critic)
    assert state.critic["layers.1.weight"].shape == (10, 256, 256)
    assert len(state.critic) == 8  # three hidden layers
    assert bool((state.critic["layers.2.bias"] == 0.1).all())
    assert 0.0025 < float(state.critic["layers.3.weight"].abs().max()) <= 0.003
    assert bool((state.actor["trunk.4.bias"] == 0.1).all())
    assert float(state.actor["trunk.6.weight"].abs().max()) <= 0.003
    assert float(state.log_alpha) == 0.0
    expected = {"eta": 0.5, "actor_lr": 3e-4, "critic_lr": 3e-4, "alpha_lr": 3e-4, "discount": 0.99, "tau": 0.005}
    assert {k: float(v) for k, v in state.hparams.items()} == pytest.approx(expected | {"target_entropy": -2.0})
    assert config.steps == 3_000_000


def test_acting_is_the_mode_or_a_sample() -> None:
    config = edac.Config(**TINY)
    net = edac.build_net(SPEC, config)
    state, obs, first = edac.init(net, config, KEY), batch_of(9).obs, torch.zeros(9, dtype=torch.bool)
    act = functools.partial(edac.act, net, config, state, (), obs, first)
    mean, log_std = torch.func.functional_call(net.actor, state.actor, (obs,))
    torch.testing.assert_close(act(KEY, explore=False)[0], torch.tanh(mean))
    sampled = torch.tanh(mean + log_std.exp() * rng.normal(KEY, (9, 2)))
    torch.testing.assert_close(act(KEY, explore=True)[0], sampled)


# --- populations ---

CONFIG = edac.Config(
    seeds=(0, 1, 1), eta=(0.5, 1.0, 5.0), critic_lr=(3e-4, 1e-3, 1e-3), target_entropy=(-2.0, -1.0, -2.0), **TINY
)


def test_population_equals_single() -> None:
    assert_population_equals_single(edac, CONFIG)
    assert_population_equals_single(edac, dataclasses.replace(CONFIG, eta=0.0, normalize_obs="obs"))


def test_eta_of_zero_beside_others_is_sac_n() -> None:
    together = learned(edac, dataclasses.replace(CONFIG, eta=(0.0, 1.0, 0.0)), Execution("vmap"))
    for i, eta in ((0, 0.0), (1, 1.0), (2, 0.0)):
        alone = learned(edac, dataclasses.replace(CONFIG, eta=eta).member(i), Execution("vmap"))
        assert_close_states(member(together, i), member(alone, 0))


@pytest.mark.compiled
def test_compiled_equals_eager() -> None:
    assert_compiled_equals_eager(edac, CONFIG)


# --- own networks, settings ---


def test_own_networks_must_take_a_batch_for_each_critic() -> None:
    class OneBatch(nn.Linear):
        def forward(self, obs: Tensor, action: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(torch.cat([obs, action], -1)).movedim(-1, 0)

    class Deaf(OneBatch):
        def forward(self, obs: Tensor, action: Tensor, per_critic: bool = False) -> Tensor:  # type: ignore[override]
            return super().forward(obs, action)

    def own(kind: type[nn.Linear]) -> Any:
        return lambda spec, config: (edac.make_net(spec, config)[0], kind(5, 4))

    both = edac.Config(eta=(0.0, 1.0), seeds=(0, 1))
    assert edac.build_net(SPEC, edac.Config(eta=0.0), own(OneBatch)).critics == 4
    with pytest.raises(DeeprlError, match=r"^net: .* unexpected keyword argument 'per_critic'"):
        edac.build_net(SPEC, both, own(OneBatch))
    with pytest.raises(DeeprlError, match=r"^net: the critic .* for inputs of each critic"):
        edac.build_net(SPEC, both, own(Deaf))


def test_own_actor_of_wrong_shape_raises() -> None:
    def own(spec: Any, config: edac.Config) -> tuple[nn.Module, nn.Module]:
        return nets.TanhActor(3, 2), edac.make_net(spec, config)[1]

    with pytest.raises(DeeprlError, match=r"^net: the actor must return mean and log_std"):
        edac.build_net(SPEC, edac.Config(**TINY), own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critics": 0}, "critics: must be positive"),
        ({"critics": 1}, "critics: at least 2 can differ"),
        ({"eta": -1.0}, "eta: must be in 0"),
        ({"eta": math.nan}, "eta: must be a finite number"),
        ({"tau": 1.5}, "tau: must be in 0 .. 1"),
        ({"target_entropy": math.inf}, "target_entropy"),
        ({"hidden": (0,)}, "hidden: layers need"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeeprlError, match=f"^{message}"):
        edac.Config(**settings)


def test_one_critic_is_enough_for_sac_n() -> None:
    config = edac.Config(**TINY | {"critics": 1, "eta": 0.0})
    net = edac.build_net(SPEC, config)
    agents = stack(agents_of(edac, config, made_dataset()))
    new, _, _ = edac.update(net, config, member(agents, 0), batch_of(8), KEY)
    assert int(new.step) == 1
