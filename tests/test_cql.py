"""CQL: the conservative term and its variants by hand, and whole updates against a plain independent implementation."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    compiling_nothing,
    keys,
    plain_critics,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deeprl.config import build
from deeprl.core import rng
from deeprl.core.population import Agents, Execution, freezing, member, new_agents, over_agents, stack
from deeprl.core.spec import Batch
from deeprl.core.tree import tree_leaves, tree_map
from deeprl.data.datasets import Dataset
from deeprl.data.offline import OfflineData, facts_of, no_facts, returns_to_go
from deeprl.errors import DeeprlError
from deeprl.offline import cql
from deeprl.replay import Stored
from deeprl.run import checkpoint

METRICS = {"td_loss", "gap", "q", "cql_factor", "critic_grad_norm", "actor_loss", "actor_grad_norm", "entropy", "alpha"}
KEY = rng.key(0, "update")

# Every member has its own value of every per-agent setting, so that a mixed-up axis shows.
PER_AGENT = {
    "seeds": (0, 0, 5),
    "cql_alpha": (5.0, 0.0, 1.0),
    "lagrange": (-1.0, 2.0, 0.0),
    "init_lagrange": (1.0, math.e, 0.5),
    "cql_temp": (1.0, 2.0, 0.5),
    "gap_floor": (-1e9, 1.0, -200.0),
    "actor_lr": (1e-3, 1e-4, 3e-3),
    "critic_lr": (1e-3, 3e-3, 1e-4),
    "discount": (0.9, 0.99, 0.5),
    "tau": (0.005, 0.5, 1.0),
    "target_entropy": (-2.0, 1.0, -0.5),
}


def settings(**own: Any) -> cql.Config:
    """Small networks; the policy learns from the critics from the first step on."""
    small = {"dataset": "d.npz", "actor_hidden": (16, 16), "critic_hidden": (16, 16), "sampled_actions": 3}
    return build(cql.Config, small | {"bc_steps": 0, "batch_size": 16} | own)


def linear(**own: Any) -> tuple[cql.Net, cql.Config, cql.State]:
    """Q = Q' as in CRITIC, and a policy of mean 0 and sigma 1 whatever the observation; one action of each source."""
    config = settings(**({"actor_hidden": (), "critic_hidden": (), "sampled_actions": 1} | own))
    net = cql.build_net(ONE, config)
    actor = {"trunk.0.weight": torch.zeros(2, 1), "trunk.0.bias": torch.zeros(2)}
    critic, target = cast((CRITIC, CRITIC), torch.float32)
    return net, config, cql.init(net, config, KEY)._replace(actor=actor, critic=critic, target_critic=target)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """draws(u, z, ...): every uniform number is u, the normal ones are the z, by the number of an action."""

    def fix(uniform: float, *normal: float) -> None:
        number = torch.tensor(normal)[:, None]
        monkeypatch.setattr(rng, "uniform", lambda key, shape, *a: torch.full(shape, uniform))
        monkeypatch.setattr(rng, "normal", lambda key, shape, dtype: number.to(dtype).expand(shape))

    return fix


# --- the conservative term ---


@pytest.mark.parametrize(
    ("density", "temp", "expected"),
    [
        (0.0, 1.0, math.log(1 + 2 + 6) - 0.5),
        (-math.log(2.0), 1.0, math.log(18) - 0.5),  # divided by a density of 1/2
        (0.0, 2.0, 2 * math.log(1 + 2**0.5 + 6**0.5) - 0.5),
        (-math.log(2.0), 2.0, 2 * math.log(2**0.5 + 2 + 12**0.5) - 0.5),  # the density's power is 1/T, too
        (None, 1.0, math.log(1 + 2 + 6 + math.exp(0.5)) - 0.5),  # the data's action is in the sum
    ],
)
def test_gap_by_hand(density: float | None, temp: float, expected: float) -> None:
    qs, q_data = torch.tensor([[[1.0, 2.0, 6.0]]]).log(), torch.tensor([[0.5]])
    log_density = None if density is None else torch.full((1, 3), density)
    gap = cql.conservative_gap(qs, q_data, log_density, torch.tensor(temp))
    assert gap.item() == pytest.approx(expected, abs=1e-6)


def test_sum_over_drawn_actions_estimates_the_integral_over_all() -> None:
    # Each of the three sources estimates the integral of exp(Q) over [-1, 1] by n actions: the sum has 3 n terms.
    n = 20_000
    net, config, state = linear(sampled_actions=n)
    state.actor["trunk.0.bias"].copy_(torch.tensor([0.3, -0.2]))
    one = BATCH._replace(**{k: v[:1] for k, v in BATCH._asdict().items()})
    action, log_density = cql.other_actions(net, config, state.actor, one, KEY)
    a = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    for q in (lambda a: torch.sin(3 * a) + a, lambda a: -4 * a.square()):
        exact = float(torch.trapezoid(q(a).exp(), a).log())
        for source in ((0, 3), (0, 1), (1, 2), (2, 3)):
            part = slice(source[0] * n, source[1] * n)
            qs, zero = q(action[..., 0])[None, :, part], torch.zeros(1, 1)
            gap = cql.conservative_gap(qs, zero, log_density[:, part], torch.tensor(1.0))
            assert gap.item() - math.log(qs.numel()) == pytest.approx(exact, abs=0.03)


def test_drawn_critics_alone_are_pushed_and_give_the_targets() -> None:
    """Of two critics one is drawn for the target and one for the term, each by itself, which then counts for both."""
    net, config, state = linear(target_critics=1, sampled_actions=3)
    terms, targets = set(), set()

    def slope(alpha: float, key: rng.Key) -> Tensor:
        agent = state._replace(hparams=state.hparams | {"cql_alpha": torch.tensor(alpha)})
        loss = torch.func.grad(lambda c: cql.critic_loss(c, net, config, agent, BATCH, None, key)[0])
        return loss(state.critic)["layers.0.weight"]

    for number in range(24):
        key = rng.key(number, "update")
        with_term, without = slope(1.0, key), slope(0.0, key)
        pushed = (with_term - without).flatten(1).abs().amax(1) > 1e-6
        assert int(pushed.sum()) == 1
        terms.add(int(pushed.int().argmax()))
        # E times the drawn one stands for the sum over E.
        only = state._replace(hparams=state.hparams | {"cql_alpha": torch.tensor(1.0)})
        loss, parts = cql.critic_loss(state.critic, net, config, only, BATCH, None, key)
        assert float(loss - parts["td_loss"]) == pytest.approx(2 * float(parts["gap"]), rel=1e-5)
        targets.add(round(float(parts["td_loss"]), 5))
    assert terms == {0, 1}
    assert len(targets) > 1
    with pytest.raises(DeeprlError, match="target_critics: 3 of 2 critics cannot be drawn"):
        settings(target_critics=3)


def test_critic_loss_by_hand(draws: Callable[..., None]) -> None:
    # The policy's actions are 0 with log pi = -0.9189385, the uniform one is 0.5 with -log 2.
    # Target: min Q'(o', 0) = 1: 1 + 0.9 = 1.9, and 1 (terminated); no entropy. Q_1 = 2, 1: errors 0.1, 0;
    # Q_2 = 1.5, 0.5: errors -0.4, -0.5. TD loss 0.01 / 2 + (0.16 + 0.25) / 2 = 0.21.
    draws(0.5, 0.0)
    net, config, state = linear(cql_alpha=3.0)
    loss, parts = cql.critic_loss(state.critic, net, config, state, BATCH, None, KEY)
    root = math.sqrt(2 * math.pi)
    # exp(Q) / density at 0.5, 0, 0: Q_1 = 2, 1, 1 and 3, 2, 2; Q_2 = 1.5, 1, 1 in both rows.
    terms = [
        [2 * math.exp(q[0]) + 2 * root * math.exp(q[1]) for q in rows] for rows in ([(2, 1), (3, 2)], [(1.5, 1)] * 2)
    ]
    gaps = [sum(map(math.log, row)) / 2 - data for row, data in zip(terms, (1.5, 1.0), strict=True)]
    assert float(parts["td_loss"]) == pytest.approx(0.21)
    assert float(parts["gap"]) == pytest.approx(sum(gaps) / 2, rel=1e-6)
    assert float(parts["q"]) == pytest.approx(1.25)
    assert float(parts["cql_factor"]) == 1.0
    assert float(loss) == pytest.approx(0.21 + 3.0 * sum(gaps), rel=1e-6)


def test_calibration_raises_the_policys_values_alone(draws: Callable[..., None]) -> None:
    # G = 3, 0. Row 1: the policy's 1, 1 become 3, 3, the uniform 2 or 1.5 stays, though below, as does the data's;
    # row 2 is above 0. Below: both actions of both critics in one of two rows.
    draws(0.5, 0.0)
    net, config, state = linear(calibrated=True)
    _, parts = cql.critic_loss(state.critic, net, config, state, BATCH, torch.tensor([3.0, 0.0]), KEY)
    root = math.sqrt(2 * math.pi)
    raised = [[(2, 3), (3, 2)], [(1.5, 3), (1.5, 1)]]
    terms = [[2 * math.exp(q[0]) + 2 * root * math.exp(q[1]) for q in rows] for rows in raised]
    gaps = [sum(map(math.log, row)) / 2 - data for row, data in zip(terms, (1.5, 1.0), strict=True)]
    assert float(parts["gap"]) == pytest.approx(sum(gaps) / 2, rel=1e-6)
    assert float(parts["below_return"]) == pytest.approx(0.5)
    # Where everything of the policy's lies below, only uniform actions are pushed down, and the data's pushed up.
    grad = torch.func.grad(
        lambda c: cql.critic_loss(c, net, config, state, BATCH, torch.full((2,), 99.0), KEY)[1]["gap"]
    )
    slope = grad(state.critic)["layers.0.bias"].flatten()
    torch.testing.assert_close(slope, torch.full((2,), -0.5), atol=1e-6, rtol=0)


def test_gaps_below_the_floor_push_no_further(draws: Callable[..., None]) -> None:
    draws(0.5, 0.0)
    net, config, state = linear(gap_floor=50.0)

    def gap(critic: dict[str, Tensor]) -> Tensor:
        return cql.critic_loss(critic, net, config, state, BATCH, None, KEY)[1]["gap"]

    grads, value = torch.func.grad_and_value(gap)(state.critic)
    assert float(value) == 50.0
    assert all(bool((g == 0).all()) for g in grads.values())


@pytest.mark.parametrize(
    ("backup", "entropy", "expected"),
    [
        # One action, tanh 0.5: min(Q_1, Q_2) = min(a, -a).
        ("sample", False, -math.tanh(0.5)),
        # Two actions +-tanh 0.5: each critic has tanh 0.5 somewhere, no action has it in both.
        ("max-then-min", False, math.tanh(0.5)),
        ("min-then-max", False, -math.tanh(0.5)),
        # log pi = -0.125 - 0.9189385 - log(1 - tanh(0.5)^2) = -0.8037096, alpha = 1
        ("sample", True, -math.tanh(0.5) + 0.8037096),
        ("min-then-max", True, -math.tanh(0.5) + 0.8037096),
    ],
)
def test_backups_by_hand(backup: str, entropy: bool, expected: float, draws: Callable[..., None]) -> None:
    draws(0.0, *((0.5,) if backup == "sample" else (0.5, -0.5)))
    net, config, state = linear(backup=backup, backup_entropy=entropy, sampled_actions=2)
    state.target_critic["layers.0.weight"].copy_(torch.tensor([[[0.0], [1.0]], [[0.0], [-1.0]]]))
    state.target_critic["layers.0.bias"].zero_()
    targets = cql.td_targets(net, config, state, BATCH, KEY)
    assert targets.tolist() == pytest.approx([1.0 + 0.9 * expected, 1.0], abs=1e-6)


# --- returns-to-go ---


def test_returns_to_go_by_hand() -> None:
    # Two episodes, one terminated, one cut: behind both ends nothing is added.
    # 3; 2 + 3 / 2 = 3.5; 1 + 3.5 / 2 = 2.75; and 5; 4 + 5 / 2 = 6.5
    reward, ends = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([3, 5])
    assert returns_to_go(reward, ends, 0.5).tolist() == [2.75, 3.5, 3.0, 6.5, 5.0]
    assert returns_to_go(reward, ends, 0.0).tolist() == reward.tolist()
    assert returns_to_go(reward, ends, 1.0).tolist() == [6.0, 5.0, 3.0, 9.0, 5.0]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), discount=st.sampled_from([0.0, 0.3, 0.99, 1.0]))
def test_returns_to_go_are_those_of_a_plain_loop(lengths: list[int], discount: float) -> None:
    reward = torch.randn(sum(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(len(lengths)))
    ends, before = torch.tensor(lengths).cumsum(0), reward.clone()
    last, expected, following = set((ends - 1).tolist()), [0.0] * len(reward), 0.0
    for t in reversed(range(len(reward))):
        following = expected[t] = float(reward[t]) + (0.0 if t in last else discount * following)
    found = returns_to_go(reward, ends, discount)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert torch.equal(reward, before)


def test_returns_to_go_make_no_python_number_of_each_row() -> None:
    """A loop over the rows takes seconds and 0.6 GB for ten million of them."""
    reward, ends = torch.ones(200_000), torch.tensor([100_000, *range(100_100, 200_001, 100)])
    tracemalloc.start()
    try:
        found = returns_to_go(reward, ends, 1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6
    assert found[[0, 99_999, 100_000, 199_999]].tolist() == [100_000, 1, 100, 1]


def test_returns_of_failed_episodes_of_sparse_rewards() -> None:
    # The second episode never gets more than -5: -5 / (1 - 0.5) = -10. The first: 5; -5 + 2.5; -5 - 1.25.
    reward, ends = torch.tensor([-5.0, -5.0, 5.0, -5.0, -5.0]), torch.tensor([3, 5])
    assert returns_to_go(reward, ends, 0.5, sparse=True).tolist() == [-6.25, -2.5, 5.0, -10.0, -10.0]
    assert returns_to_go(reward, ends, 0.5).tolist() == [-6.25, -2.5, 5.0, -7.5, -5.0]


def dataset(rows: int, seed: int, episode: int = 7) -> Dataset:
    """Episodes of 7 rows, in turn terminated and cut; the first number of an observation is that of its row."""
    data = batch_of(rows, seed)
    data.obs[:, 0] = torch.arange(rows)
    ends = torch.tensor([*range(episode, rows, episode), rows])
    last = torch.zeros(rows, dtype=torch.bool).index_fill(0, ends - 1, True)
    terminated = last & (torch.arange(rows) // episode % 2 == 0)
    stored = Stored(data.obs, data.action, data.reward, terminated, last & ~terminated, data.next_obs)
    returns = torch.tensor([float(p.sum()) for p in data.reward.tensor_split(ends[:-1])], dtype=torch.float64)
    return Dataset(f"d{seed}", stored, ends, returns, SPEC)


def test_agents_with_one_dataset_and_discount_share_their_returns() -> None:
    parts = {"a": dataset(20, 0), "b": dataset(30, 1)}
    names, discounts = ("a", "b", "a", "b"), (0.9, 0.9, 0.5, 0.9)
    config = settings(seeds=(0, 1, 2, 3), dataset=names, discount=discounts, rewards="calql-antmaze")
    data = OfflineData(parts.items(), sum(map(len, parts.values())), config, "cpu")
    values, first = data.returns_to_go(discounts)
    assert first.tolist() == [0, 20, 50, 20]
    assert len(values) == 20 + 30 + 20
    for i, (name, discount) in enumerate(zip(names, discounts, strict=True)):
        own = parts[name]
        expected = returns_to_go(10.0 * own.data.reward - 5.0, own.ends, discount)
        torch.testing.assert_close(values[first[i] :][: len(own)], expected)
    none, first = data.returns_to_go(())
    assert (none.shape, first.tolist()) == ((0,), [0] * 4)


def test_learner_gives_each_row_its_own_return(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"a": dataset(20, 0), "b": dataset(30, 1)}
    config = settings(seeds=(0, 1), dataset=("a", "b"), discount=(0.9, 0.5), calibrated=True)
    net = cql.build_net(SPEC, config)
    data = OfflineData(parts.items(), sum(map(len, parts.values())), config, "cpu")
    values, first = data.returns_to_go((0.9, 0.5))
    monkeypatch.setattr(
        cql, "update", lambda net, config, state, batch, key, g: (state, batch._asdict() | {"g": g}, ())
    )
    for i, (own, discount) in enumerate(zip(parts.values(), (0.9, 0.5), strict=True)):
        rows = data.first[i], data.size[i], first[i]
        state = cql.init(net, config.member(i), KEY)
        _, batch, _ = cql.learner(net, config)(state, data.arrays, values, rows, rng.key(i, "sample"), KEY)
        row = batch["obs"][:, 0].long()
        assert len(row.unique()) > 5
        torch.testing.assert_close(batch["g"], returns_to_go(own.data.reward, own.ends, discount)[row])
        torch.testing.assert_close(batch["action"], own.data.action[row])
        torch.testing.assert_close(batch["discount"], discount * (~own.data.terminated[row]).float())


# --- what an update does ---


def test_metrics_step_and_arguments() -> None:
    config = settings()
    net = cql.build_net(SPEC, config)
    state, batch = cql.init(net, config, KEY), batch_of(16)
    before = tree_map(torch.clone, (state, batch))
    new, metrics, aux = cql.update(net, config, state, batch, KEY)
    assert_equal((state, batch), before)
    assert (set(metrics), aux, int(new.step)) == (METRICS, (), 1)
    assert_equal((new.hparams, new.facts, new.log_lagrange), (state.hparams, state.facts, state.log_lagrange))
    calibrated = cql.update(net, config, state, batch, KEY, torch.zeros(16))[1]
    assert set(calibrated) == METRICS | {"below_return"}


@pytest.mark.parametrize(
    ("off", "still", "moving"),
    [
        ("actor_lr", ("actor", "log_alpha"), ("critic", "log_lagrange")),
        ("critic_lr", ("critic", "log_lagrange"), ("actor", "log_alpha")),
        ("tau", ("target_critic",), ("actor", "critic")),
    ],
)
def test_each_loss_moves_its_own_parameters_only(off: str, still: tuple[str, ...], moving: tuple[str, ...]) -> None:
    config = settings(lagrange=1.0, **{off: 0.0})
    net = cql.build_net(SPEC, config)
    state = cql.init(net, config, KEY)
    new, _, _ = cql.update(net, config, state, batch_of(16), KEY)
    for name in still:
        assert_equal(getattr(new, name), getattr(state, name))
    for name in moving:
        pairs = zip(tree_leaves(getattr(new, name)), tree_leaves(getattr(state, name)), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs), name


@pytest.mark.parametrize(("threshold", "sign"), [(1e6, -1.0), (0.0, 1.0), (-1.0, 0.0)])
def test_multiplier_rises_above_the_threshold_and_falls_below(threshold: float, sign: float) -> None:
    # Adam's first step is the learning rate, 0.1, in the direction that the loss asks for; log 2 at first.
    config = settings(lagrange=threshold, init_lagrange=2.0, critic_lr=0.1)
    net = cql.build_net(SPEC, config)
    new, metrics, _ = cql.update(net, config, cql.init(net, config, KEY), batch_of(16), KEY)
    assert float(metrics["gap"]) > 0.0
    assert float(new.log_lagrange) == pytest.approx(math.log(2.0) + 0.1 * sign, rel=1e-4)
    assert float(metrics["cql_factor"]) == pytest.approx(2.0 if sign else 1.0)


def test_policy_clones_the_data_in_its_first_steps_and_then_looks_at_the_critics() -> None:
    config = settings(bc_steps=1, steps=2)
    net = cql.build_net(SPEC, config)
    state, batch = cql.init(net, config, KEY), batch_of(16)
    upside_down = state._replace(critic={k: -p for k, p in state.critic.items()})
    for step, same in ((0, True), (1, False)):
        at = [s._replace(step=torch.tensor(step)) for s in (state, upside_down)]
        actors = [cql.update(net, config, s, batch, KEY)[0].actor for s in at]
        assert torch.equal(actors[0]["trunk.0.weight"], actors[1]["trunk.0.weight"]) == same


def test_cloning_stands_actions_at_the_bounds() -> None:
    config = settings(bc_steps=1, steps=2)
    net = cql.build_net(SPEC, config)
    batch = batch_of(16)
    _, metrics, _ = cql.update(net, config, cql.init(net, config, KEY), batch._replace(action=batch.action.sign()), KEY)
    assert all(bool(m.isfinite()) for m in metrics.values())


def test_agent_sees_observations_and_rewards_by_the_facts_of_its_dataset() -> None:
    data = dataset(40, 3)
    config = settings()
    net = cql.build_net(SPEC, config)
    facts = facts_of(data, "obs", "cql-antmaze")
    state = cql.init(net, config, KEY, facts)
    raw = batch_of(16)
    seen = raw._replace(obs=facts.see(raw.obs), next_obs=facts.see(raw.next_obs), reward=4.0 * raw.reward - 2.0)
    ours, theirs = (
        cql.update(net, config, s, b, KEY) for s, b in ((state, raw), (state._replace(facts=no_facts(SPEC)), seen))
    )
    assert_equal((ours[0].actor, ours[0].critic, ours[1]), (theirs[0].actor, theirs[0].critic, theirs[1]))


def test_acting_samples_or_takes_the_mode() -> None:
    # mean 0.5, sigma 1: the mode is tanh(0.5); a sample is tanh(0.5 + noise).
    net, config, state = linear()
    state.actor["trunk.0.bias"][0] = 0.5
    first, obs = torch.zeros(6, dtype=torch.bool), torch.zeros(6, 1)
    mode, carry = cql.act(net, config, state, (), obs, first, KEY, explore=False)
    torch.testing.assert_close(mode, torch.full((6, 1), math.tanh(0.5)))
    sampled, _ = cql.act(net, config, state, (), obs, first, KEY, explore=True)
    torch.testing.assert_close(sampled, torch.tanh(0.5 + rng.normal(KEY, (6, 1))))
    assert carry == ()


# --- against an independent implementation ---


class PlainActor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def normal(self, obs: Tensor) -> torch.distributions.Normal:
        out = self.trunk(obs)
        return torch.distributions.Normal(out[:, :2], out[:, 2:].clamp(-5, 2).exp())

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        normal = self.normal(obs)
        u = normal.mean + normal.stddev * noise
        action = torch.tanh(u)
        return action, (normal.log_prob(u) - torch.log(1 - action**2)).sum(1)


class PlainCql:
    """The usual script: modules, torch.optim, backward, a loop over actions. Takes noise and weights from outside."""

    def __init__(self, state: cql.State, config: cql.Config):
        dtype, self.config = torch.float64, config
        self.h = {name: value.item() for name, value in state.hparams.items()}
        self.actor = PlainActor().to(dtype)
        self.actor.load_state_dict(state.actor)
        self.critics, self.targets = (plain_critics(state.critic, dtype) for _ in range(2))
        self.log_alpha, self.log_lagrange = (x.clone().requires_grad_() for x in (state.log_alpha, state.log_lagrange))
        critics = [p for c in self.critics for p in c.parameters()]
        policy = [*self.actor.parameters(), self.log_alpha]
        self.critic_optimizer = torch.optim.Adam([*critics, self.log_lagrange], lr=self.h["critic_lr"])
        self.actor_optimizer = torch.optim.Adam(policy, lr=self.h["actor_lr"])

    def update(self, batch: Batch, key: rng.Key, returns: Tensor | None, cloning: bool) -> dict[str, float]:
        h, n = self.h, self.config.sampled_actions
        critic_key, actor_key = rng.split(key, 2)
        target_key, others_key = rng.split(critic_key, 2)
        count = 1 if self.config.backup == "sample" else n
        next_noise = rng.normal(target_key, (16, count, 2), torch.float64)
        gaps, td_losses, values = [], [], []
        with torch.no_grad():
            target = self.target(batch, next_noise)
            others = self.others(batch, others_key)
        for critic in self.critics:
            q_data = critic(batch.obs, batch.action)
            terms = []
            for k, (action, log_density) in enumerate(others):
                q = critic(batch.obs, action)
                if returns is not None and k >= n:
                    q = torch.where(q < returns, returns, q)
                terms.append((q - log_density if self.config.importance_sampling else q) / h["cql_temp"])
            if not self.config.importance_sampling:
                terms.append(q_data / h["cql_temp"])
            gap = torch.stack(terms).exp().sum(0).log() * h["cql_temp"] - q_data
            gaps.append(gap.clamp(min=h["gap_floor"]).mean())
            td_losses.append(nn.functional.mse_loss(q_data, target))
            values.append(q_data.mean())
        factor = self.log_lagrange.exp() if h["lagrange"] >= 0 else torch.ones(())
        critic_loss = sum(td_losses) + factor.detach() * h["cql_alpha"] * sum(gaps)
        lagrange_loss = -factor * h["cql_alpha"] * (sum(gaps).detach() / 2 - h["lagrange"])

        action, log_prob = self.actor(batch.obs, rng.normal(actor_key, (16, 1, 2), torch.float64).squeeze(1))
        wanted = torch.min(*(c(batch.obs, action) for c in self.critics))
        if cloning:
            u = 0.5 * torch.log((1 + batch.action) / (1 - batch.action))
            wanted = (self.actor.normal(batch.obs).log_prob(u) - torch.log(1 - batch.action**2)).sum(1)
        actor_loss = (self.log_alpha.exp().detach() * log_prob - wanted).mean()
        alpha_loss = -(self.log_alpha * (log_prob + h["target_entropy"]).detach()).mean()

        self.actor_optimizer.zero_grad()
        (actor_loss + alpha_loss).backward()
        self.critic_optimizer.zero_grad()  # of the policy's loss, too
        (critic_loss + (lagrange_loss if h["lagrange"] >= 0 else 0.0)).backward()
        found = {"td_loss": sum(td_losses), "gap": sum(gaps) / 2, "q": sum(values) / 2, "actor_loss": actor_loss}
        found = {k: v.item() for k, v in found.items()} | {
            "cql_factor": factor.item(),
            "entropy": -log_prob.mean().item(),
        }
        self.actor_optimizer.step()
        self.critic_optimizer.step()
        with torch.no_grad():
            for target_net, critic in zip(self.targets, self.critics, strict=True):
                for t, p in zip(target_net.parameters(), critic.parameters(), strict=True):
                    t.mul_(1 - h["tau"]).add_(h["tau"] * p)
        return found

    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        actions = [self.actor(batch.next_obs, noise[:, k]) for k in range(noise.shape[1])]
        q1, q2 = (torch.stack([t(batch.next_obs, a) for a, _ in actions], 1) for t in self.targets)
        if self.config.backup == "max-then-min":
            best = torch.min(q1.max(1)[0], q2.max(1)[0])
        else:
            best, k = torch.min(q1, q2).max(1)
            log_prob = torch.stack([p for _, p in actions], 1)[torch.arange(16), k]
            best = best - self.config.backup_entropy * self.log_alpha.exp() * log_prob
        return batch.reward + batch.discount * best

    def others(self, batch: Batch, key: rng.Key) -> list[tuple[Tensor, Tensor]]:
        n = self.config.sampled_actions
        random_key, *own = rng.split(key, 3)
        random = rng.uniform(random_key, (16, n, 2), -1.0, 1.0, torch.float64)
        found = [(random[:, k], torch.full((16,), math.log(0.25), dtype=torch.float64)) for k in range(n)]
        for obs, k in zip((batch.obs, batch.next_obs), own, strict=True):
            noise = rng.normal(k, (16, n, 2), torch.float64)
            found += [self.actor(obs, noise[:, j]) for j in range(n)]
        return found


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"importance_sampling": False, "cql_temp": 0.5},
        {"lagrange": 0.5, "init_lagrange": math.e, "cql_temp": 2.0},
        {"calibrated": True, "backup": "min-then-max", "backup_entropy": True, "lagrange": 3.0},
        {"backup": "max-then-min", "gap_floor": 4.5, "target_entropy": -0.5},
        {"bc_steps": 2, "backup_entropy": True, "cql_alpha": 0.5},
        {"importance_sampling": False, "calibrated": True},
    ],
    ids=lambda own: "-".join(own) or "defaults",
)
def test_four_updates_equal_a_plain_implementation(own: dict[str, Any]) -> None:
    config = settings(actor_lr=1e-3, critic_lr=2e-3, tau=0.1, **own)
    net = cql.build_net(SPEC, config)
    state = cast(cql.init(net, config, rng.key(1, "init")), torch.float64)
    # Heads large enough that all actions differ in value.
    state = state._replace(
        **{
            name: {
                k: p * 100 if k.startswith(("layers.2.w", "trunk.4.w")) else p for k, p in getattr(state, name).items()
            }
            for name in ("actor", "critic", "target_critic")
        }
    )
    plain = PlainCql(state, config)
    for t in range(4):
        batch, key = batch_of(16, t, torch.float64), keys(t)[0]
        returns = batch.obs[:, 0] if config.calibrated else None
        theirs = plain.update(batch, key, returns, cloning=t < config.bc_steps)
        state, metrics, _ = cql.update(net, config, state, batch, key, returns)
        for name, value in theirs.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-10, abs=1e-10), (t, name)
        if config.calibrated:
            assert 0.02 < float(metrics["below_return"]) < 0.98
    close = {"rtol": 1e-9, "atol": 1e-10}
    for name, p in plain.actor.named_parameters():
        torch.testing.assert_close(state.actor[name], p.detach(), **close)
    assert_close_critics(state.critic, plain.critics, 1e-9)
    assert_close_critics(state.target_critic, plain.targets, 1e-9)
    torch.testing.assert_close(state.log_alpha, plain.log_alpha.detach(), **close)
    torch.testing.assert_close(state.log_lagrange, plain.log_lagrange.detach(), **close)


# --- populations ---


def test_per_agent_settings_equal_single_runs() -> None:
    config = settings(**PER_AGENT)
    net = cql.build_net(SPEC, config)
    states = [
        cast(cql.init(net, config.member(i), rng.key(s, "init")), torch.float64) for i, s in enumerate(config.seeds)
    ]
    together = stack(states)
    learn = torch.vmap(lambda *args: cql.update(net, config, *args)[0])
    for t in range(2):
        batch = batch_of(16, t, torch.float64)
        together = learn(together, stack([batch] * 3), keys(t, config.seeds), stack([batch.reward] * 3))
    for i, seed in enumerate(config.seeds):
        alone = states[i]
        for t in range(2):
            batch = batch_of(16, t, torch.float64)
            alone, _, _ = cql.update(net, config.member(i), alone, batch, keys(t, (seed,))[0], batch.reward)
        for ours, theirs in zip(tree_leaves(member(together, i)), tree_leaves(alone), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    # and the settings matter: agents 0 and 1 have one seed and part ways
    assert not torch.equal(together.critic["layers.0.weight"][0], together.critic["layers.0.weight"][1])


def test_larger_alpha_makes_a_smaller_gap() -> None:
    config = settings(seeds=(0, 0), cql_alpha=(0.0, 10.0), critic_lr=3e-2)
    net = cql.build_net(SPEC, config)
    together = stack([cql.init(net, config.member(i), KEY) for i in range(2)])
    learn = torch.vmap(lambda *args: cql.update(net, config, *args)[:2])
    for t in range(12):
        together, metrics = learn(together, stack([batch_of(16)] * 2), keys(t, (0, 0)))
    assert float(metrics["gap"][1]) < float(metrics["gap"][0]) - 0.2


def write_npz(path: Path, data: Dataset) -> str:
    columns = {"observations": "obs", "actions": "action", "rewards": "reward", "terminals": "terminated"}
    columns |= {"timeouts": "truncated", "next_observations": "next_obs"}
    np.savez(path, **{key: getattr(data.data, name).numpy() for key, name in columns.items()})
    return str(path)


TINY = {
    "steps": 6, "compile": "off", "tensorboard": False, "threads": 1, "precision": "strict", "eval_episodes": 0,
    "log_every": 4,
}  # fmt: skip


def trained(config: cql.Config, out: Path) -> dict[str, Tensor]:
    run = cql.train(dataclasses.replace(config, out=str(out)))
    loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert loaded is not None
    assert (run.updates, run.frozen) == (6, [])
    return loaded[1]["agents"]


def test_run_of_three_equals_three_runs(tmp_path: Path) -> None:
    a, b = (write_npz(tmp_path / f"{i}.npz", dataset(40 + i, i)) for i in range(2))
    own = PER_AGENT | {"dataset": (a, b, b), "calibrated": True, "bc_steps": 3, "normalize_obs": "obs"}
    config = settings(**(own | TINY))
    looped, mapped = (
        trained(dataclasses.replace(config, backend=backend), tmp_path / backend) for backend in ("loop", "vmap")
    )
    for i in range(3):
        for name, alone in trained(config.member(i), tmp_path / str(i)).items():
            assert torch.equal(looped[name][i], alone[0]), name
            torch.testing.assert_close(mapped[name][i], alone[0], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("calibrated", "sparse"), [(False, False), (True, False), (True, True)])
def test_run_asks_for_the_returns_of_its_agents(
    calibrated: bool, sparse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    find = OfflineData.returns_to_go
    monkeypatch.setattr(OfflineData, "returns_to_go", lambda self, *args: asked.append(args) or find(self, *args))
    own = {"seeds": (0, 1), "discount": (0.9, 0.5), "calibrated": calibrated, "sparse_rewards": sparse}
    own |= {"dataset": write_npz(tmp_path / "a.npz", dataset(40, 0))}
    trained(settings(**(own | TINY)), tmp_path / "run")
    assert asked == [(pytest.approx([0.9, 0.5]) if calibrated else [], sparse)]


def learned(config: cql.Config, execution: Execution, updates: int) -> tuple[Agents, dict[str, Tensor]]:
    """A population after so many updates, as in `train`."""
    net = cql.build_net(SPEC, config)
    data = OfflineData([("d.npz", dataset(50, 0))], 0, config, "cpu")
    returns, first = data.returns_to_go([config.member(i).discount for i in range(len(config.seeds))])
    agents = new_agents([cql.init(net, config.member(i), rng.key(s, "init")) for i, s in enumerate(config.seeds)])
    learn = over_agents(freezing(cql.learner(net, config)), execution, shared=(1, 2), donate=True)
    streams, metrics, rows = rng.Streams(config.seeds), {}, (data.first, data.size, first)
    for i in range(updates):
        with compiling_nothing(strict=i > 0):
            metrics, _ = learn(agents, data.arrays, returns, rows, streams("sample", i), streams("update", i))
    return agents, metrics


@pytest.mark.compiled
def test_compiled_updates_equal_eager_ones() -> None:
    # Ten updates of rounding errors that Adam makes larger (see test_population.py): 1e-4, relative to the norm.
    config = settings(calibrated=True, backup="min-then-max", backup_entropy=True, bc_steps=5, **PER_AGENT)
    (eager, slow), (compiled, fast) = (learned(config, Execution(compile=on), 10) for on in (False, True))
    assert compiled.state.step.tolist() == [10] * 3
    assert set(fast) == METRICS | {"below_return"}
    for name in ("actor", "critic", "target_critic", "log_alpha", "log_lagrange"):
        pairs = zip(tree_leaves(getattr(compiled.state, name)), tree_leaves(getattr(eager.state, name)), strict=True)
        for ours, theirs in pairs:
            assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm()), name
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_bf16_products_keep_float32_weights_and_finite_losses(backend: Any) -> None:
    config = settings(calibrated=True, bc_steps=1, steps=2, **PER_AGENT)
    agents, metrics = learned(config, Execution(backend=backend, precision="bf16"), 2)
    assert {x.dtype for x in tree_leaves(agents.state) if x.is_floating_point()} == {torch.float32}
    assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) for m in metrics.values())


# --- first state, networks, settings ---


def test_initial_state_by_hand() -> None:
    config = settings(init_lagrange=math.e)
    net = cql.build_net(SPEC, config)
    state, other = (cql.init(net, config, rng.key(seed, "init")) for seed in (3, 4))
    assert_equal(state.critic, state.target_critic)
    places = [leaf.data_ptr() for leaf in tree_leaves(state)]
    assert len(set(places)) == len(places)  # no two leaves share their memory
    assert (float(state.log_alpha), float(state.log_lagrange), int(state.step)) == (0.0, 1.0, 0)
    assert float(state.hparams["target_entropy"]) == -2.0  # -A
    assert not torch.equal(state.actor["trunk.0.weight"], other.actor["trunk.0.weight"])
    assert not torch.equal(state.critic["layers.0.weight"], other.critic["layers.0.weight"])
    # `small-head`
    for head in ("layers.2.weight", "layers.2.bias"):
        assert 0.0 < float(state.critic[head].abs().max()) <= 3e-3
    assert float(state.actor["trunk.4.weight"].abs().max()) <= 3e-3
    assert state.actor["trunk.0.bias"].tolist() == pytest.approx([0.1] * 16)


def test_orthogonal_networks_with_small_heads() -> None:
    config = settings(start="orthogonal-small-head")
    state = cql.init(cql.build_net(SPEC, config), config, KEY)
    for name, gain in (("trunk.2.weight", 2**0.5), ("trunk.4.weight", 0.01)):
        sizes = torch.linalg.svdvals(state.actor[name])
        torch.testing.assert_close(sizes, torch.full_like(sizes, gain))
    sizes = torch.linalg.svdvals(state.critic["layers.2.weight"])
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.01))
    assert all(bool((p == 0).all()) for k, p in {**state.actor, **state.critic}.items() if k.endswith("bias"))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        *[({name: 0}, "must be positive") for name in ("batch_size", "sampled_actions", "critics")],
        *[({name: -0.1}, "must be in 0 .. 1, not -0.1") for name in ("actor_lr", "critic_lr", "discount", "tau")],
        ({"cql_alpha": -1.0}, "must be in 0"),
        ({"cql_temp": 0.0}, "must be in 1e-06"),
        ({"init_lagrange": 0.0}, "must be in 1e-06"),
        ({"lagrange": (1.0, math.nan), "seeds": (0, 1)}, "not nan"),
        ({"bc_steps": 100, "steps": 100}, "100 steps of cloning leave none of 100"),
        ({"bc_steps": -1}, "-1 steps"),
        ({"backup_entropy": True, "backup": "max-then-min"}, "no single next action"),
        ({"discount": 1.0, "calibrated": True, "sparse_rewards": True}, "must be in 0 .. 0.999999"),
        ({"sparse_rewards": True}, "add --calibrated"),
        ({"critic_hidden": (8, 0)}, "at least one unit"),
        ({"backup": "max"}, "expected sample, max-then-min, min-then-max"),
    ],
    ids=str,
)
def test_wrong_settings_raise_with_their_name_first(own: dict[str, Any], message: str) -> None:
    with pytest.raises(DeeprlError, match=rf"^{next(iter(own))}: .*{message}"):
        settings(**own)


@pytest.mark.parametrize("which", ["actor", "critic"])
def test_own_networks_of_other_shapes_are_refused(which: str) -> None:
    def own(spec: Any, config: cql.Config) -> tuple[nn.Module, nn.Module]:
        usual = cql.make_net(spec, config)
        return (nn.Linear(3, 2), usual[1]) if which == "actor" else (usual[0], nn.Bilinear(3, 2, 1))

    with pytest.raises(DeeprlError, match=f"^net: the {which} must return"):
        cql.build_net(SPEC, settings(), own)
