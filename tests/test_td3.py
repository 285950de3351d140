"""TD3: every loss against numbers worked out by hand, and twenty updates against a plain independent implementation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
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
    compiling_nothing,
    keys,
    plain_critics,
)
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import build
from deeprl.core import rng
from deeprl.core.population import Agents, Execution, freezing, member, new_agents, over_agents, stack
from deeprl.core.spec import Batch, EnvSpec
from deeprl.core.tree import tree_leaves, tree_map
from deeprl.errors import DeeprlError
from deeprl.online import td3
from deeprl.replay import Stored
from deeprl.run import checkpoint
from deeprl.run.learning import sampled

LINEAR = td3.Config(hidden=())
LINEAR_NET = td3.build_net(ONE, LINEAR)
KEY = rng.key(0, "update")
CRITIC_METRICS = ("critic_loss", "critic_grad_norm", "q")
POLICY_METRICS = ("actor_loss", "actor_grad_norm")
POLICY_PARTS = ("actor", "actor_moments", "target_actor", "target_critic")

# Every member has its own value of every per-agent setting, so that a mixed-up axis shows.
PER_AGENT = {
    "seeds": (0, 0, 5),
    "actor_lr": (1e-3, 1e-4, 3e-3),
    "critic_lr": (1e-3, 3e-3, 1e-4),
    "discount": (0.9, 0.99, 0.5),
    "tau": (0.005, 0.5, 1.0),
    "exploration_noise": (0.1, 0.0, 0.5),
    "target_noise": (0.2, 0.05, 1.0),
    "target_noise_clip": (0.5, 1.0, 0.1),
}


def constant_actor(action: float) -> dict[str, Tensor]:
    """pi = `action`, whatever the observation."""
    return {"trunk.0.weight": torch.zeros(1, 1), "trunk.0.bias": torch.tensor([math.atanh(action)])}


def linear_state(**settings: Any) -> td3.State:
    """pi = pi' = 0.5, Q = Q' as in CRITIC."""
    state = td3.init(LINEAR_NET, td3.Config(hidden=(), **settings), rng.key(0, "init"))
    critic, target = cast((CRITIC, CRITIC), torch.float32)
    return state._replace(
        actor=constant_actor(0.5), target_actor=constant_actor(0.5), critic=critic, target_critic=target
    )


def update(state: td3.State, batch: Batch = BATCH, *, policy: bool) -> tuple[td3.State, dict[str, Tensor]]:
    new, metrics, aux = td3.update(LINEAR_NET, LINEAR, state, batch, KEY, policy=policy)
    assert aux == ()
    return new, metrics


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """noise(x, ...): these are the normal numbers that rng draws; one of them stands for all."""

    def draw(*values: float) -> None:
        numbers = torch.tensor(values)[:, None]
        monkeypatch.setattr(rng, "normal", lambda key, shape, dtype=torch.float32: numbers.to(dtype).expand(shape))

    return draw


# --- losses by hand ---


def test_critic_loss_by_hand() -> None:
    # Target (1, 2). Q_1 - target = 1, -1: mean square 1. Q_2 - target = 0.5, -1.5: mean square 1.25. The sum is 2.25.
    loss, q = td3.critic_loss(CRITIC, LINEAR_NET, BATCH, torch.tensor([1.0, 2.0]))
    assert float(loss) == pytest.approx(2.25)
    assert float(q) == pytest.approx(1.5)


def test_actor_loss_by_hand() -> None:
    # pi = 0.5: Q_1 = o + 1 = 2, 3; its mean is 2.5. (Q_2 = 1.5, 1.5 would be the minimum.)
    assert float(td3.actor_loss(constant_actor(0.5), LINEAR_NET, CRITIC, BATCH.obs)) == pytest.approx(-2.5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_smoothed_target_action_by_hand(sign: float, noise: Callable[..., None]) -> None:
    # pi' = 0.8, sigma 0.2, clip 0.5. Noise 0.2 * (-10, -1, 0, 0.5, 2, 10) = -2, -0.2, 0, 0.1, 0.4, 2, clipped to
    # -0.5, -0.2, 0, 0.1, 0.4, 0.5; the actions 0.3, 0.6, 0.8, 0.9, 1.2, 1.3 are clipped to 1.
    noise(*(sign * x for x in (-10.0, -1.0, 0.0, 0.5, 2.0, 10.0)))
    state = linear_state()._replace(actor=constant_actor(-0.1), target_actor=constant_actor(sign * 0.8))
    actions = td3.smoothed_target_action(LINEAR_NET, state, torch.zeros(6, 1), KEY)
    assert (sign * actions).flatten().tolist() == pytest.approx([0.3, 0.6, 0.8, 0.9, 1.0, 1.0])


@pytest.mark.parametrize("policy", [False, True])
def test_td_target_by_hand(policy: bool, noise: Callable[..., None]) -> None:
    # Next action 0.5 + 0.2 * 1 = 0.7: Q'_1 = 2.4, 3.4 and Q'_2 = 1.7. Targets: 1 + 0.9 * 1.7 = 2.53 and 1 (terminated).
    # Errors: Q_1 = 2, 1: -0.53, 0; Q_2 = 1.5, 0.5: -1.03, -0.5.
    # Loss: (0.2809 + 0) / 2 + (1.0609 + 0.25) / 2 = 0.7959
    noise(1.0)
    _, metrics = update(linear_state(), policy=policy)
    assert float(metrics["critic_loss"]) == pytest.approx(0.7959)
    assert float(metrics["q"]) == pytest.approx(1.5)
    # dLoss/dQ = error. Gradients of (w_obs, w_action, bias): Q_1 (-0.53, -0.265, -0.53),
    # Q_2 (-1.03 - 1, -0.515 + 0.25, -1.53); squares sum to 0.632025 + 6.532025
    assert float(metrics["critic_grad_norm"]) == pytest.approx(7.16405**0.5)
    assert tuple(metrics) == CRITIC_METRICS + POLICY_METRICS * policy


@pytest.mark.parametrize(
    ("changed", "loss"),
    [
        ({"actor": constant_actor(-0.9)}, 0.7959),  # as above
        # pi' = -0.5, action -0.3: Q'_1 = o - 0.6 = 0.4, Q'_2 = 0.7. Target 1 + 0.9 * 0.4 = 1.36 in row 1: errors
        # 0.64, 0 and 0.14, -0.5: 0.4096 / 2 + (0.0196 + 0.25) / 2
        ({"target_actor": constant_actor(-0.5)}, 0.3396),
        # Q' = Q + 10: target 1 + 0.9 * 11.7 = 11.53 in row 1: errors -9.53, 0 and -10.03, -0.5
        ({"target_critic": CRITIC | {"layers.0.bias": torch.tensor([[10.0], [11.0]])}}, 0.5 * (90.8209 + 100.8509)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_td_target_uses_both_target_networks(changed: dict[str, Any], loss: float, noise: Callable[..., None]) -> None:
    noise(1.0)
    assert float(update(linear_state()._replace(**changed), policy=False)[1]["critic_loss"]) == pytest.approx(loss)


# --- what an update touches ---


def test_terminated_row_ignores_what_follows() -> None:
    state = linear_state()
    other = BATCH._replace(next_obs=torch.tensor([[1.0], [-77.0]]))
    assert_equal(update(state, policy=True), update(state, other, policy=True))
    # while the first row bootstraps
    other = BATCH._replace(next_obs=torch.tensor([[-1.0], [2.0]]))
    losses = [float(update(state, b, policy=True)[1]["critic_loss"]) for b in (BATCH, other)]
    assert losses[0] != losses[1]


def test_policy_update_by_hand(noise: Callable[..., None]) -> None:
    # critic_lr 0.5: Adam's first step is 0.5 * sign, and all gradients (see above) are negative: Q_1 = 1.5 o + 2.5 a +
    # 0.5 and Q_2 = 0.5 o + 1.5 a + 1.5. At a = 0.5 Q_1 = 3.25, 4.75: loss -4. (Q_2 = 2.75, 3.25 would be the minimum.)
    # dLoss/dbias = -2.5 * (1 - a^2) = -1.875, dLoss/dweight = mean(o) * that = -2.8125: a step of 0.1 upwards.
    # Targets move by a quarter of the way: 0.5 / 4 for the critics, 0.1 / 4 for the actor.
    noise(1.0)
    state = linear_state(critic_lr=0.5, actor_lr=0.1, tau=0.25)
    new, metrics = update(state, policy=True)
    assert float(metrics["actor_loss"]) == pytest.approx(-4.0, abs=1e-4)
    assert float(metrics["actor_grad_norm"]) == pytest.approx(math.hypot(1.875, 2.8125), abs=1e-4)
    for name, steps in {"critic": 0.5, "target_critic": 0.125, "actor": 0.1, "target_actor": 0.025}.items():
        for k, old in getattr(state, name).items():
            torch.testing.assert_close(getattr(new, name)[k], old + steps, rtol=0, atol=2e-5, msg=f"{name}.{k}")


def test_update_without_policy_moves_the_critic_alone() -> None:
    # Target networks apart from the online ones, so that they would have somewhere to go.
    state = linear_state(tau=0.5)._replace(target_actor=constant_actor(-0.3))
    state.target_critic["layers.0.bias"].add_(1.0)
    new, _ = update(state, policy=False)
    for name in (*POLICY_PARTS, "hparams"):
        assert_equal(getattr(new, name), getattr(state, name))
    for name in ("critic", "critic_moments"):
        pairs = zip(tree_leaves(getattr(new, name)), tree_leaves(getattr(state, name)), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs), name
    # The critic learns the same whether or not the policy follows.
    with_policy, _ = update(state, policy=True)
    assert_equal((new.critic, new.critic_moments), (with_policy.critic, with_policy.critic_moments))


@pytest.mark.parametrize("policy", [False, True])
def test_update_counts_and_leaves_its_arguments_unchanged(policy: bool) -> None:
    state, batch = linear_state(), cast(BATCH, torch.float32)
    before = tree_map(torch.clone, state)
    new, _ = update(state, batch, policy=policy)
    assert_equal((state, batch), (before, BATCH))
    assert int(new.step) == 1
    assert int(update(new, policy=policy)[0].step) == 2
    assert_equal(new.hparams, state.hparams)


# --- initial state and acting ---


def test_initial_state_by_hand() -> None:
    config = td3.Config(hidden=(8,), tau=0.25)
    net = td3.build_net(SPEC, config)
    state, other = (td3.init(net, config, rng.key(seed, "init")) for seed in (3, 4))
    assert_equal((state.actor, state.critic), (state.target_actor, state.target_critic))
    places = [leaf.data_ptr() for leaf in tree_leaves(state)]
    assert len(set(places)) == len(places)  # no two leaves share their memory
    assert not any(leaf.requires_grad for leaf in tree_leaves(state))
    assert int(state.step) == 0
    expected = {"actor_lr": 3e-4, "critic_lr": 3e-4, "discount": 0.99, "tau": 0.25}
    expected |= {"exploration_noise": 0.1, "target_noise": 0.2, "target_noise_clip": 0.5}
    assert {k: float(v) for k, v in state.hparams.items()} == pytest.approx(expected)
    assert not torch.equal(state.actor["trunk.0.weight"], other.actor["trunk.0.weight"])
    assert not torch.equal(state.critic["layers.0.weight"], other.critic["layers.0.weight"])


def act(state: td3.State, rows: int, key: rng.Key, *, explore: bool) -> Tensor:
    obs, first = torch.zeros(rows, 1), torch.zeros(rows, dtype=torch.bool)
    action, carry = td3.act(LINEAR_NET, LINEAR, state, (), obs, first, key, explore=explore)
    assert carry == ()
    return action


def test_acting_without_exploration_is_deterministic() -> None:
    state = linear_state(exploration_noise=5.0)._replace(target_actor=constant_actor(-0.5))
    actions = [act(state, 6, rng.key(seed, "eval"), explore=False) for seed in (0, 1)]
    assert_equal(*actions)
    torch.testing.assert_close(actions[0], torch.full((6, 1), 0.5))


def test_exploration_adds_clipped_gaussian_noise() -> None:
    key = rng.key(0, "explore")
    # Noise of 0.1 around 0.5 stays inside: 20 000 draws know their standard deviation to 0.1 / sqrt(40 000).
    actions = act(linear_state(), 20_000, key, explore=True)
    torch.testing.assert_close(actions, 0.5 + 0.1 * rng.normal(key, (20_000, 1)))
    assert float(actions.std()) == pytest.approx(0.1, abs=0.002)
    assert float(actions.mean()) == pytest.approx(0.5, abs=0.003)
    # Noise of 0.5 leaves [-1, 1] upwards beyond one, downwards beyond three standard deviations: 15.9 and 0.135 %.
    actions = act(linear_state(exploration_noise=0.5), 20_000, key, explore=True)
    assert float((actions == 1.0).float().mean()) == pytest.approx(0.159, abs=0.01)
    assert float((actions == -1.0).float().mean()) == pytest.approx(0.00135, abs=0.001)
    assert float(actions.abs().max()) == 1.0
    assert not torch.equal(actions, act(linear_state(exploration_noise=0.5), 20_000, KEY, explore=True))


# --- populations ---


def test_per_agent_settings_equal_single_runs() -> None:
    config = td3.Config(hidden=(8, 8), **PER_AGENT)
    net = td3.build_net(SPEC, config)
    states = [
        cast(td3.init(net, config.member(i), rng.key(s, "init")), torch.float64) for i, s in enumerate(config.seeds)
    ]
    together = stack(states)
    for t in range(10):
        learn = torch.vmap(lambda *args, t=t: td3.update(net, config, *args, policy=t % 2 == 1)[0])
        together = learn(together, stack([batch_of(16, t, torch.float64)] * 3), keys(t, config.seeds))
    obs, first = batch_of(16, 0, torch.float64).obs, torch.zeros(16, dtype=torch.bool)
    explore = torch.vmap(lambda state, key: td3.act(net, config, state, (), obs, first, key, explore=True)[0])
    actions = explore(together, keys(10, config.seeds))
    for i, seed in enumerate(config.seeds):
        alone, own = states[i], config.member(i)
        for t in range(10):
            batch, key = batch_of(16, t, torch.float64), keys(t, (seed,))[0]
            alone, _, _ = td3.update(net, own, alone, batch, key, policy=t % 2 == 1)
        for ours, theirs in zip(tree_leaves(member(together, i)), tree_leaves(alone), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        action, _ = td3.act(net, own, alone, (), obs, first, keys(10, (seed,))[0], explore=True)
        torch.testing.assert_close(actions[i], action, rtol=1e-9, atol=1e-9)


def test_learner_discounts_by_the_agents_own_setting() -> None:
    # One row, o = o' = 1, a = pi' = 0.5: Q_1 = 2, Q_2 = 1.5 = min Q'. Target 1 + 0.5 * 1.5 = 1.75: errors 0.25, -0.25.
    one = torch.ones(1, 1)
    data = Stored(one, one / 2, one[0], one[0] == 0, one[0] == 0, one)
    config = td3.Config(hidden=(), discount=0.5, target_noise=0.0, batch_size=4)
    learn = sampled(td3.update, LINEAR_NET, config, policy=False)
    _, metrics, _ = learn(linear_state(discount=0.5, target_noise=0.0), data, torch.tensor(1), KEY, KEY)
    assert float(metrics["critic_loss"]) == pytest.approx(2 * 0.25**2)


# 60 steps in episodes of 25; updates 0 .. 29 from step 31 on.
TINY = {
    "env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 25}, "steps": 60, "learning_starts": 30,
    "hidden": (16, 16), "batch_size": 16, "compile": "off", "tensorboard": False, "threads": 1, "precision": "strict",
    "eval_episodes": 0, "log_every": 7,
}  # fmt: skip


def trained(config: td3.Config, out: Path, **stop: Any) -> dict[str, Any]:
    """The checkpoint of a run, or of a part of it."""
    run = td3.train(dataclasses.replace(config, out=str(out)), **stop)
    loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert loaded is not None
    return loaded[1]


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_run_of_three_equals_three_runs(backend: str, tmp_path: Path) -> None:
    config = build(td3.Config, TINY | PER_AGENT | {"backend": backend})
    together = trained(config, tmp_path / "three")["agents"]
    for i in range(3):
        for name, alone in trained(config.member(i), tmp_path / str(i))["agents"].items():
            if backend == "loop":
                assert torch.equal(together[name][i], alone[0]), name
            else:  # 30 updates of rounding errors, and the actions that they change
                torch.testing.assert_close(together[name][i], alone[0], rtol=1e-3, atol=1e-4, msg=name)


def test_policy_of_a_run_moves_at_every_third_update_if_so_set(tmp_path: Path) -> None:
    config = build(td3.Config, TINY | {"policy_delay": 3, "learning_starts": 31, "log_every": 1})
    before: dict[str, Tensor] = {}
    for step in range(31, 39):  # with 0, 1, .. 7 updates done
        agents = trained(config, tmp_path, callback=lambda run, step=step: run.step == step)["agents"]
        moved = {name.split(".")[1] for name in before if not torch.equal(before[name], agents[name])}
        policy = set(POLICY_PARTS) if step in (34, 37) else set()
        assert moved == ({"critic", "critic_moments", "step"} | policy if before else set())
        assert agents["state.step"].tolist() == [step - 31]
        before = agents
    # The first row of metrics is the first that has the policy's.
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows[0].endswith(",".join(f"train/{name}" for name in CRITIC_METRICS + POLICY_METRICS))
    assert [row.split(",")[0] for row in rows[1:]] == ["34", "35", "36", "37", "38"]


# --- against an independent implementation ---


class PlainActor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
        self.trunk = nn.Sequential(*layers)

    def forward(self, obs: Tensor) -> Tensor:
        return self.trunk(obs).tanh()


class PlainTd3:
    """The usual script: modules, torch.optim, backward. Takes its noise and its first weights from outside."""

    def __init__(self, state: td3.State, dtype: torch.dtype):
        self.h = {name: value.item() for name, value in state.hparams.items()}  # as they are in the state: rounded
        self.actor, self.target_actor = PlainActor().to(dtype), PlainActor().to(dtype)
        for actor in (self.actor, self.target_actor):
            actor.load_state_dict(state.actor)
        self.critics, self.target_critics = (plain_critics(state.critic, dtype) for _ in range(2))
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.h["actor_lr"])
        critic_params = [p for c in self.critics for p in c.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic_params, lr=self.h["critic_lr"])
        self.updates = 0

    def update(self, batch: Batch, noise: Tensor) -> dict[str, float]:
        self.updates += 1
        with torch.no_grad():
            limit = self.h["target_noise_clip"]
            offset = torch.clip(self.h["target_noise"] * noise, -limit, limit)
            next_action = torch.clip(self.target_actor(batch.next_obs) + offset, -1, 1)
            next_q = torch.min(*(c(batch.next_obs, next_action) for c in self.target_critics))
            target = batch.reward + batch.discount * next_q
        critic_loss = sum(nn.functional.mse_loss(c(batch.obs, batch.action), target) for c in self.critics)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if self.updates % 2 == 1:
            return {"critic_loss": critic_loss.item()}

        actor_loss = -self.critics[0](batch.obs, self.actor(batch.obs)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        pairs = [(self.target_actor, self.actor), *zip(self.target_critics, self.critics, strict=True)]
        with torch.no_grad():
            for target_net, net in pairs:
                for t, p in zip(target_net.parameters(), net.parameters(), strict=True):
                    t.copy_((1 - self.h["tau"]) * t + self.h["tau"] * p)
        return {"critic_loss": critic_loss.item(), "actor_loss": actor_loss.item()}


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_twenty_updates_equal_a_plain_implementation(dtype: torch.dtype, bar: float) -> None:
    # float32: rounding of 1e-7 per update, amplified by Adam where a gradient is near zero.
    config = td3.Config(hidden=(16, 16), actor_lr=1e-3, critic_lr=2e-3, tau=0.1, target_noise=0.5)
    net = td3.build_net(SPEC, config)
    state = cast(td3.init(net, config, rng.key(1, "init")), dtype)
    plain = PlainTd3(state, dtype)
    for i in range(20):
        batch, key = batch_of(32, i, dtype), keys(i)[0]
        theirs = plain.update(batch, rng.normal(key, (32, 2), dtype))
        state, metrics, _ = td3.update(net, config, state, batch, key, policy=(i + 1) % config.policy_delay == 0)
        assert ("actor_loss" in metrics) == ("actor_loss" in theirs)
        for name, value in theirs.items():
            assert float(metrics[name]) == pytest.approx(value, rel=bar, abs=bar), (i, name)
    for ours, actor in ((state.actor, plain.actor), (state.target_actor, plain.target_actor)):
        for name, p in actor.named_parameters():
            torch.testing.assert_close(ours[name], p.detach(), rtol=bar, atol=bar)
    assert_close_critics(state.critic, plain.critics, bar)
    assert_close_critics(state.target_critic, plain.target_critics, bar)


# --- compiled, and in bf16 ---


def learned(config: td3.Config, execution: Execution, updates: int) -> tuple[Agents, dict[str, Tensor]]:
    """A population after so many updates on a fixed replay buffer, every second one with the policy."""
    net = td3.build_net(SPEC, config)
    agents = new_agents([td3.init(net, config.member(i), rng.key(s, "init")) for i, s in enumerate(config.seeds)])
    batch = batch_of(50)
    flags = batch.discount == 0, torch.zeros(50, dtype=torch.bool)
    data = stack([Stored(batch.obs, batch.action, batch.reward, *flags, batch.next_obs)] * len(config.seeds))
    learners = [freezing(sampled(td3.update, net, config, policy=policy)) for policy in (False, True)]
    learn = [over_agents(learner, execution, shared=(2,), donate=True) for learner in learners]  # as in `train`
    streams, metrics = rng.Streams(config.seeds), {}
    for i in range(updates):
        with compiling_nothing(strict=i >= 2):
            new, _ = learn[i % 2](agents, data, torch.tensor(50), streams("sample", i), streams("update", i))
        metrics |= new
    return agents, metrics


@pytest.mark.compiled
def test_compiled_updates_equal_eager_ones() -> None:
    # Ten updates of rounding errors that Adam makes larger (see test_population.py): 1e-4, relative to the norm.
    config = td3.Config(hidden=(16, 16), batch_size=16, **PER_AGENT)
    (eager, slow), (compiled, fast) = (learned(config, Execution(compile=on), 10) for on in (False, True))
    assert compiled.state.step.tolist() == [10] * 3
    assert tuple(fast) == CRITIC_METRICS + POLICY_METRICS
    for name in ("actor", "critic", "target_actor", "target_critic"):
        for ours, theirs in zip(
            tree_leaves(getattr(compiled.state, name)), tree_leaves(getattr(eager.state, name)), strict=True
        ):
            assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm()), name
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_bf16_products_keep_float32_weights_and_finite_losses(backend: Any) -> None:
    config = td3.Config(hidden=(16, 16), batch_size=16, **PER_AGENT)
    agents, metrics = learned(config, Execution(backend=backend, precision="bf16"), 4)
    learned_leaves = tree_leaves(agents.state._replace(obs_stats={}))  # statistics are float64
    assert {x.dtype for x in learned_leaves if x.is_floating_point()} == {torch.float32}
    assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) for m in metrics.values())
    exact, _ = learned(config, Execution(backend=backend), 4)
    assert not torch.equal(agents.state.critic["layers.0.weight"], exact.state.critic["layers.0.weight"])


# --- own networks, settings ---


class Plain(nn.Module):
    """A module of one linear layer; `after` makes its result from the layer's."""

    def __init__(self, out: int, after: Callable[[Tensor], Any], inputs: int = 3):
        super().__init__()
        self.layer, self.after = nn.Linear(inputs, out), after

    def forward(self, *inputs: Tensor) -> Any:
        return self.after(self.layer(torch.cat(inputs, -1)))


def test_own_networks_replace_the_papers() -> None:
    def own(spec: EnvSpec, config: td3.Config) -> tuple[nn.Module, nn.Module]:
        return Plain(2, torch.sin), Plain(3, lambda x: x.T, 5)

    net = td3.build_net(SPEC, td3.Config(), own)
    state = td3.init(net, td3.Config(), rng.key(0, "init"))
    assert state.critic["layer.weight"].shape == (3, 5)
    new, metrics, _ = td3.update(net, td3.Config(), state, batch_of(16), KEY, policy=True)
    assert not torch.equal(new.actor["layer.weight"], state.actor["layer.weight"])
    assert all(bool(m.isfinite()) for m in metrics.values())


@pytest.mark.parametrize(
    ("actor", "critic", "message"),
    [
        (Plain(3, torch.tanh), None, r"the actor must return actions \(3, 2\), not \(3, 3\)"),
        (Plain(2, lambda x: x[:, 0]), None, r"the actor must return actions \(3, 2\), not \(3,\)"),
        (nets.TanhGaussianActor(3, 2), None, r"the actor must return actions \(3, 2\), not \[\(3, 2\), \(3, 2\)\]"),
        (None, Plain(1, lambda x: x[:, 0], 5), r"the critic must return values .*, not \(3,\)"),
        (None, Plain(2, lambda x: x, 5), r"the critic must return values .*, not \(3, 2\)"),
        (None, nn.Sequential(nn.Dropout()), "Dropout keeps state"),
    ],
)
def test_own_networks_of_wrong_shapes_raise(actor: nn.Module | None, critic: nn.Module | None, message: str) -> None:
    def own(spec: EnvSpec, config: td3.Config) -> tuple[nn.Module, nn.Module]:
        usual = td3.make_net(spec, config)
        return actor or usual[0], critic or usual[1]

    with pytest.raises(DeeprlError, match=f"^net: .*{message}"):
        td3.build_net(SPEC, td3.Config(), own)


def test_discrete_actions_raise() -> None:
    with pytest.raises(DeeprlError, match=r"^td3"):
        td3.build_net(EnvSpec((3,), 0, (), (), actions=4), td3.Config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[({name: 0}, "must be positive") for name in ("batch_size", "buffer_size", "learning_starts", "steps")],
        *[({name: 0}, "must be positive") for name in ("policy_delay", "critics")],
        ({"utd": 0.0}, "must be positive"),
        *[({name: -0.1}, "must be in 0 .. 1, not -0.1") for name in ("actor_lr", "critic_lr", "discount", "tau")],
        ({"discount": 1.5}, "must be in 0 .. 1, not 1.5"),
        ({"tau": math.nan}, "must be a finite number, not nan"),
        *[({name: -1.0}, "must be in 0 .. 10") for name in ("exploration_noise", "target_noise", "target_noise_clip")],
        ({"tau": (0.1, 2.0), "seeds": (0, 1)}, "must be in 0 .. 1, not 2"),
        ({"target_noise": (0.1,), "seeds": (0, 1)}, "1 values for 2 seeds"),
        ({"learning_starts": 100, "steps": 100}, "100 random steps leave none of 100 to learn"),
        ({"hidden": (8, 0)}, "layers need at least one unit"),
    ],
    ids=str,
)
def test_wrong_settings_raise_with_their_name_first(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeeprlError, match=rf"^{next(iter(settings))}: .*{message}"):
        td3.Config(**settings)


@pytest.mark.parametrize("values", [{"policy_delay": 1.5}, {"policy_dely": 2}, {"hidden": "wide"}, {"critics": "two"}])
def test_wrong_plain_values_raise_with_their_name_first(values: dict[str, Any]) -> None:
    with pytest.raises(DeeprlError, match=f"^{next(iter(values))}"):
        build(td3.Config, values)
