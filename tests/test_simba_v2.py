"""SimbaV2: losses and targets by hand, and twenty updates against a plain independent implementation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import ONE, SPEC, batch_of, cast, keys
from torch import Tensor, nn
from torch.nn.functional import normalize

from deeprl.core import rng
from deeprl.core.spec import Batch, Params, Seen
from deeprl.nets import ReturnScale, RSNorm
from deeprl.online import simba_v2

SMALL: dict[str, Any] = {
    "actor_width": 8,
    "critic_width": 16,
    "batch_size": 16,
    "lr_horizon": 32,
    "utd": 0.5,  # rates fall over 16 updates
    "actor_lr": 1e-2,
    "critic_lr": 2e-2,
    "alpha_lr": 3e-2,
    "tau": 0.05,
}
LOG_PI = -0.9189385  # of a standard normal at its mean, whose tanh has the slope 1


def small(**settings: Any) -> tuple[simba_v2.Net, simba_v2.Config, simba_v2.State]:
    """A small agent whose statistics have seen some data."""
    config = simba_v2.Config(**(SMALL | settings))
    net = simba_v2.build_net(SPEC, config)
    return net, config, seasoned(net, config, simba_v2.init(net, config.member(0), rng.key(1, "init")))


def seasoned(net: simba_v2.Net, config: simba_v2.Config, state: simba_v2.State) -> simba_v2.State:
    for t in range(8):
        data = batch_of(config.envs_per_agent, t)
        ended = torch.full((config.envs_per_agent,), t % 5 == 4)
        state = simba_v2.observe(net, config, state, Seen(3 + 2 * data.obs, ended, 5 * data.reward))[0]
    return state


# --- targets and losses by hand ---


class Table(nn.Module):
    """Gives its parameters, whatever it is asked."""

    def __init__(self, *tables: Tensor):
        super().__init__()
        self.tables = nn.ParameterList(tables)

    def forward(self, *inputs: Tensor) -> Any:
        return tuple(self.tables) if len(self.tables) > 1 else self.tables[0]


def by_hand(probs: list[list[list[float]]]) -> tuple[simba_v2.Net, simba_v2.Config, simba_v2.State]:
    """Critics with these probabilities [E, B, 5] of -2 .. 2, and a standard normal policy."""
    rows = len(probs[0])
    config = simba_v2.Config(bins=5, value_bound=2.0)
    actor, critic = Table(torch.zeros(rows, 1), torch.zeros(rows, 1)), Table(torch.tensor(probs).log())
    net = simba_v2.Net(actor, critic, RSNorm(1), ReturnScale(1, 2.0), ONE)
    state = small()[2]
    params = [dict(m.named_parameters()) for m in (actor, critic, critic)]
    return net, config, state._replace(actor=params[0], critic=params[1], target_critic=params[2])


@pytest.fixture
def zero_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every normal number is 0: the policy acts by its mean."""
    monkeypatch.setattr(rng, "normal", lambda key, shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype))


def target(net: Any, config: Any, state: Any, reward: list[float], discount: list[float], alpha: float) -> Tensor:
    zeros = torch.zeros(len(reward), 1)
    batch = Batch(zeros, zeros, torch.tensor(reward), torch.tensor(discount), zeros)
    key = rng.key(0, "update")
    return simba_v2.critic_target(net, config, state, state.actor, torch.tensor(alpha), batch, key)


@pytest.mark.usefixtures("zero_noise")
def test_target_distribution_by_hand() -> None:
    # z = -2 .. 2. The rows, without entropy:
    # reward 0, discount 1: nothing moves, and no mass is lost where atoms fall on atoms
    # terminated, reward 0.25: all at 0.25, three quarters to 0 and one to 1
    # reward 10: all beyond the end, at 2
    # reward 0.5, discount 0.5: -2 -> -0.5, half to -1 and 0; 2 -> 1.5, half to 1 and 2
    one = [0.3, 0.2, 0.1, 0.2, 0.2]
    net, config, state = by_hand([[one, one, one, [0.5, 0, 0, 0, 0.5]]])
    out = target(net, config, state, [0.0, 0.25, 10.0, 0.5], [1.0, 0.0, 1.0, 0.5], alpha=0.0)
    expected = [one, [0, 0, 0.75, 0.25, 0], [0, 0, 0, 0, 1], [0, 0.25, 0.25, 0.25, 0.25]]
    torch.testing.assert_close(out, torch.tensor(expected))
    torch.testing.assert_close(out.sum(-1), torch.ones(4))


@pytest.mark.usefixtures("zero_noise")
def test_entropy_shifts_every_atom_of_the_target() -> None:
    # alpha 0.5: z + 0.5 * 0.9189385 = z + 0.4594693; times 0.5: from 0 to 0.2297346; a terminated row has none of it.
    net, config, state = by_hand([[[0, 0, 1, 0, 0]] * 2])
    out = target(net, config, state, [0.0, 0.0], [0.5, 0.0], alpha=0.5)
    share = 0.5 * 0.5 * -LOG_PI
    torch.testing.assert_close(out, torch.tensor([[0, 0, 1 - share, share, 0], [0, 0, 1, 0, 0]]))


@pytest.mark.usefixtures("zero_noise")
def test_target_takes_the_whole_distribution_of_the_smaller_critic_in_each_row() -> None:
    # Means: row 1 0 and -0.2, row 2 1 and 2, row 3 -1 and -1.4. Neither a mixture nor the minimum of probabilities.
    first = [[0.5, 0, 0, 0, 0.5], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    second = [[0, 0.2, 0.8, 0, 0], [0, 0, 0, 0, 1], [0.4, 0.6, 0, 0, 0]]
    net, config, state = by_hand([first, second])
    out = target(net, config, state, [0.0] * 3, [1.0] * 3, alpha=0.0)
    torch.testing.assert_close(out, torch.tensor([second[0], first[1], second[2]]))


def test_target_sums_to_one_with_the_bins_of_the_paper() -> None:
    net, config, state = small(bins=101, critics=2)
    batch = batch_of(256)._replace(reward=torch.linspace(-7, 7, 256).round(decimals=1))
    batch.reward[:4] = torch.tensor([0.0, 5.0, -5.0, 0.1])
    out = simba_v2.critic_target(net, config, state, state.actor, torch.tensor(0.1), batch, keys(0)[0])
    assert float(out.min()) >= 0
    torch.testing.assert_close(out.sum(-1), torch.ones(256), rtol=0, atol=2e-5)


def test_critic_loss_by_hand() -> None:
    # Critic 1 has log 5 of cross entropy in both rows; critic 2 puts 0.5 on the target's atom in row 1, and in row 2
    # 0.25 and 0.5 on two halves: (log 2 + (log 4 + log 2) / 2) / 2. Mean of critic 1: 0.
    even = [0.2] * 5
    net, config, state = by_hand([[even, even], [[0.5, 0.125, 0.125, 0.125, 0.125], [0.25, 0.5, 0.05, 0.1, 0.1]]])
    goal = torch.tensor([[1.0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0]])
    loss, q = simba_v2.critic_loss(state.critic, net, config, batch_of(2), goal)
    assert loss.item() == pytest.approx(math.log(5) + (math.log(2) + 1.5 * math.log(2)) / 2)
    assert q.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.usefixtures("zero_noise")
def test_actor_loss_by_hand() -> None:
    # Means: 2 and 0 in row 1, -1 and 1 in row 2: min 0 and -1. 0.5 * -0.9189385 + 0.5
    net, config, state = by_hand([[[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]], [[0.5, 0, 0, 0, 0.5], [0, 0, 0, 1, 0]]])
    args = (net, config, state.critic, torch.tensor(0.5), torch.zeros(2, 1), rng.key(0, "update"))
    loss, log_prob = simba_v2.actor_loss(state.actor, *args)
    assert log_prob.item() == pytest.approx(LOG_PI)
    assert loss.item() == pytest.approx(0.5 * LOG_PI + 0.5)


@pytest.mark.parametrize(("log_prob", "loss"), [(0.5, 0.0), (2.5, -4.0), (-1.5, 4.0)])
def test_alpha_loss_by_hand(log_prob: float, loss: float) -> None:
    # alpha = 2, target entropy -0.5: 2 (entropy + 0.5); its derivative by log alpha is itself.
    args = (torch.tensor(math.log(2.0)), torch.tensor(log_prob), torch.tensor(-0.5))
    slope, value = torch.func.grad_and_value(simba_v2.alpha_loss)(*args)
    assert (value.item(), slope.item()) == (pytest.approx(loss), pytest.approx(loss))


# --- against an independent implementation ---


def plain_features(p: Params, x: Tensor, blocks: int, width: int) -> Tensor:
    x = normalize(torch.cat([x, torch.full_like(x[:, :1], 3.0)], 1), eps=1e-8)
    h = normalize(p["0.scaler.weight"] * (x @ p["0.linear.weight"].T), eps=1e-8)
    for b in range(1, blocks + 1):
        inner = torch.relu(p[f"{b}.scaler.weight"] * (h @ p[f"{b}.expand.weight"].T)) + 1e-8
        m = normalize(inner @ p[f"{b}.contract.weight"].T, eps=1e-8)
        alpha = p[f"{b}.lerp.alpha.weight"] * math.sqrt(width) / (blocks + 1)
        h = normalize(h + alpha * (m - h), eps=1e-8)
    return h


def plain_head(p: Params, h: Tensor) -> Tensor:
    return (p["scaler.weight"] * (h @ p["hidden.weight"].T)) @ p["out.weight"].T + p["bias"]


def under(params: Params, prefix: str) -> Params:
    return {k.removeprefix(prefix): p for k, p in params.items() if k.startswith(prefix)}


class PlainSimbaV2:
    """The usual script: autograd, torch.optim, masses moved by index. Its noise and first weights come from outside."""

    def __init__(self, state: simba_v2.State, config: simba_v2.Config):
        def leaves(params: Params) -> Params:
            return {k: p.clone().requires_grad_() for k, p in params.items()}

        self.config, self.h = config, {k: float(v) for k, v in state.hparams.items()}
        self.actor, self.critic, self.target = leaves(state.actor), leaves(state.critic), leaves(state.target_critic)
        self.log_alpha = state.log_alpha.clone().requires_grad_()
        self.stats = (state.obs_stats["mean"], state.obs_stats["var"])
        spread = float((state.return_stats["var"] + 1e-8).sqrt())
        self.reward_scale = max(spread, float(state.return_stats["peak"]) / config.value_bound)
        groups = {"actor": self.actor.values(), "critic": self.critic.values(), "alpha": [self.log_alpha]}
        self.optimizers = {k: torch.optim.Adam(list(v), lr=self.h[f"{k}_lr"]) for k, v in groups.items()}
        horizon = config.lr_horizon * config.utd
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 - (1 - self.h["final_lr_share"]) * min(1.0, t / horizon))
            for o in self.optimizers.values()
        ]

    def policy(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        h = plain_features(under(self.actor, "encoder."), obs, 1, self.config.actor_width)
        mean, raw = (plain_head(under(self.actor, f"{name}."), h) for name in ("mean", "log_std"))
        normal = torch.distributions.Normal(mean, (-10 + 0.5 * 12 * (1 + torch.tanh(raw))).exp())
        u = mean + normal.stddev * noise
        return torch.tanh(u), (normal.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(1)

    def log_probs(self, params: Params, obs: Tensor, action: Tensor) -> list[Tensor]:
        """log p [B, K] of each critic."""
        found = []
        for e in range(self.config.critics):
            own = under(params, f"critics.{e}.")
            x = torch.cat([obs, action], 1)
            h = plain_features(under(own, "0."), x, self.config.critic_blocks, self.config.critic_width)
            found.append(torch.log_softmax(plain_head(under(own, "1."), h), 1))
        return found

    def step(self, name: str, loss: Tensor) -> None:
        params = {"actor": self.actor, "critic": self.critic, "alpha": {}}[name]
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        with torch.no_grad():
            for p in params.values():
                if p.dim() == 2:
                    p.div_(p.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def bellman(self, batch: Batch, noise: Tensor) -> Tensor:
        k, bound = self.config.bins, self.config.value_bound
        z = torch.linspace(-bound, bound, k, dtype=torch.float64)
        action, log_prob = self.policy(batch.next_obs, noise)
        probs = [q.exp() for q in self.log_probs(self.target, batch.next_obs, action)]
        smallest = torch.stack([min((q[i] for q in probs), key=lambda q: float(q @ z)) for i in range(len(action))])
        soft = z - self.log_alpha.exp() * log_prob[:, None]
        place = (batch.reward[:, None] + batch.discount[:, None] * soft).clamp(-bound, bound) + bound
        place *= (k - 1) / (2 * bound)
        low = place.long().clamp(max=k - 2)
        upper = smallest * (place - low)
        return torch.zeros_like(smallest).scatter_add_(1, low, smallest - upper).scatter_add_(1, low + 1, upper)

    def update(self, batch: Batch, noise: Tensor, next_noise: Tensor) -> dict[str, float]:
        z = torch.linspace(-self.config.value_bound, self.config.value_bound, self.config.bins, dtype=torch.float64)
        mean, var = self.stats
        obs, next_obs = ((x - mean) / (var + 1e-8).sqrt() for x in (batch.obs, batch.next_obs))
        batch = batch._replace(obs=obs, next_obs=next_obs, reward=batch.reward / self.reward_scale)
        action, log_prob = self.policy(batch.obs, noise)
        q = torch.stack([(lp.exp() * z).sum(1) for lp in self.log_probs(self.critic, batch.obs, action)]).amin(0)
        actor_loss = (self.log_alpha.exp().detach() * log_prob - q).mean()
        self.step("actor", actor_loss)
        alpha_loss = self.log_alpha.exp() * (-log_prob.detach().mean() - self.h["target_entropy"])
        self.step("alpha", alpha_loss)
        goal = self.bellman(batch, next_noise)
        logs = self.log_probs(self.critic, batch.obs, batch.action)
        critic_loss = sum((-(goal * lp).sum(1).mean() for lp in logs), torch.zeros(()))
        self.step("critic", critic_loss)
        with torch.no_grad():
            for name, t in self.target.items():
                t.mul_(1 - self.h["tau"]).add_(self.h["tau"] * self.critic[name])
        for schedule in self.schedules:
            schedule.step()
        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss}
        return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(("critics", "blocks"), [(1, 2), (2, 1)])
def test_twenty_updates_equal_a_plain_implementation(critics: int, blocks: int) -> None:
    # float64; 21 bins from -5 to 5, half a unit apart: atoms and their distance have no rounding.
    net, config, state = small(bins=21, critics=critics, critic_blocks=blocks, final_lr_share=0.25, init_alpha=0.2)
    state = cast(state, torch.float64)
    plain = PlainSimbaV2(state, config)
    for t in range(20):
        batch, key = batch_of(16, t, torch.float64), keys(t)[0]
        noise, next_noise = (rng.normal(k, (16, 2), torch.float64) for k in rng.split(key, 2))
        theirs = plain.update(batch, noise, next_noise)
        state, metrics, aux = simba_v2.update(net, config, state, batch, key)
        for name, value in theirs.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-9, abs=1e-9), (t, name)
    assert aux == ()
    for name in ("actor", "critic", "target"):
        ours = getattr(state, {"target": "target_critic"}.get(name, name))
        for k, p in getattr(plain, name).items():
            torch.testing.assert_close(ours[k], p.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(state.log_alpha, plain.log_alpha.detach(), rtol=1e-9, atol=1e-9)
