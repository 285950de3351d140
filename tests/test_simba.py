"""SimBa: published sizes, layers by hand, updates against a plain script, DDPG, bodies for TD3 and DQN."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SPEC, assert_equal, batch_of, cast, keys, seen
from run_helpers import assert_same_run, train_with_stops
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm

from deeprl import nets
from deeprl.core import rng
from deeprl.core.population import Execution, freezing, member, new_agents, over_agents
from deeprl.core.spec import Batch, EnvSpec, Params
from deeprl.core.tree import tree_leaves, tree_map
from deeprl.errors import DeeprlError
from deeprl.online import dqn, simba, td3
from deeprl.run import learning

SMALL: dict[str, Any] = {
    "actor_width": 8,
    "critic_width": 16,
    "critic_blocks": 1,
    "batch_size": 16,
    "actor_lr": 1e-2,
    "critic_lr": 2e-2,
    "alpha_lr": 3e-2,
    "weight_decay": 0.1,
    "tau": 0.05,
}
DDPG: dict[str, Any] = {"policy": "ddpg", "exploration_noise": 0.3}
Agent = tuple[simba.Net, simba.Config, simba.State]


def small_config(**settings: Any) -> simba.Config:
    idle = {"alpha_lr"} if settings.get("policy") == "ddpg" else set()
    return simba.Config(**({k: v for k, v in SMALL.items() if k not in idle} | settings))


def small(**settings: Any) -> Agent:
    """A small agent whose normaliser has seen some data."""
    config = small_config(**settings)
    net = simba.build_net(SPEC, config)
    state = simba.init(net, config.member(0), rng.key(1, "init"))
    for t in range(4):
        state = learning.observe(net, config, state, seen(3 + 2 * batch_of(4, t).obs))[0]
    return net, config, state


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- networks ---


@pytest.mark.parametrize(("obs", "actor", "critic"), [(24, 136_972, 4_218_881), (17, 136_076, 4_215_297)])
def test_sizes_are_the_published_ones(obs: int, actor: int, critic: int) -> None:
    assert count(nets.SimbaActor(obs, 6)) == actor
    assert count(nets.SimbaCritic(obs, 6)) == critic
    assert count(nets.SimbaCritic(obs, 6, critics=2)) == 2 * critic


def test_encoder_by_hand() -> None:
    encoder = nets.SimbaEncoder(3, 4, blocks=1)
    x = 1e-3 * torch.randn(5, 3)  # so small that the 1e-6 in the divisor of a layer norm shows
    p = {k: v.detach() for k, v in encoder.named_parameters()}
    h = x @ p["0.weight"].T + p["0.bias"]
    inner = torch.relu(layer_norm(h, (4,), eps=1e-6) @ p["1.expand.weight"].T)
    h = h + inner @ p["1.contract.weight"].T
    torch.testing.assert_close(encoder(x), layer_norm(h, (4,), eps=1e-6))


def test_layers_start_as_published() -> None:
    params = nets.init_params(nets.SimbaCritic(24, 6), 3)
    first = params["critics.0.0.0.weight"]
    torch.testing.assert_close(first.T @ first, torch.eye(30), rtol=0, atol=1e-5)  # orthogonal, gain 1
    for name, fan_in in (("expand", 512), ("contract", 2048)):
        weight = params[f"critics.0.0.1.{name}.weight"]
        std = math.sqrt(2 / fan_in)
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.abs().max().item() <= 2 * std / 0.8796 + 1e-6  # He, cut at two sigma before its correction
    assert all(not p.any() for k, p in params.items() if k.endswith("bias"))


def test_heads_by_hand() -> None:
    # With W = 0 the raw outputs are the biases: log sigma = -10 + 6 (1 + tanh(raw)), the action tanh(raw).
    actor, deterministic, x = nets.SimbaActor(3, 2, 8), nets.SimbaTanhActor(3, 2, 8), torch.randn(4, 3)
    with torch.no_grad():
        for layer, bias in ((actor.mean, [0.5, -3.0]), (actor.log_std, [0.0, 20.0]), (deterministic.mean, [0.5, -3.0])):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))
    mean, log_std = actor(x)
    torch.testing.assert_close(mean, torch.tensor([[0.5, -3.0]]).expand(4, 2))
    torch.testing.assert_close(log_std, torch.tensor([[-4.0, 2.0]]).expand(4, 2))
    torch.testing.assert_close(deterministic(x), torch.tensor([[0.5, -3.0]]).tanh().expand(4, 2))


def test_heads_start_orthogonal_with_gain_1() -> None:
    actor, critic = nets.init_params(nets.SimbaActor(24, 6), 0), nets.init_params(nets.SimbaCritic(24, 6), 0)
    for weight in (actor["mean.weight"], actor["log_std.weight"], critic["critics.0.1.weight"]):
        sizes = torch.linalg.svdvals(weight)
        torch.testing.assert_close(sizes, torch.ones_like(sizes))


def test_initial_state() -> None:
    """As in the authors' agent/sac_simba.yaml."""
    config = simba.Config()
    net = simba.build_net(SPEC, simba.Config(actor_width=8, critic_width=8))
    state = simba.init(net, config, rng.key(3, "init"))
    assert state.log_alpha.exp().item() == pytest.approx(0.01)
    rates = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), 1e-4)
    expected = rates | {"weight_decay": 0.01, "discount": 0.995, "tau": 0.005, "exploration_noise": 0.1}
    assert {k: v.item() for k, v in state.hparams.items()} == pytest.approx(expected | {"target_entropy": -1.0})  # -A/2
    assert_equal(state.critic, state.target_critic)
    assert all(state.critic[k] is not state.target_critic[k] for k in state.critic)
    other = simba.init(net, config, rng.key(4, "init"))
    assert not torch.equal(state.actor["mean.weight"], other.actor["mean.weight"])
    own = simba.Config(target_entropy=-3.0, init_alpha=0.25)
    state = simba.init(net, own, rng.key(0, "init"))
    assert (state.hparams["target_entropy"].item(), state.log_alpha.exp().item()) == pytest.approx((-3.0, 0.25))


def test_encoder_and_norm_inside_somebody_elses_agent() -> None:
    """The documented example: ordinary modules in an ordinary loop."""
    torch.manual_seed(0)
    norm, net = nets.RSNorm(3), nn.Sequential(nets.SimbaEncoder(3, 16, 1), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    x = torch.randn(256, 3) * torch.tensor([1.0, 10.0, 100.0]) + 50
    y = x[:, :1] + 0.1 * x[:, 1:2]
    norm.update(x)
    losses = []
    for _ in range(200):
        loss = (net(norm(x)) - (y - y.mean())).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_example_of_the_readme_runs_as_it_stands() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\nfrom deeprl\.nets.*?)```", readme, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    rows = names["actor"][0][0].linear.weight.norm(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    assert names["norm"].count.item() > 255
    assert all(p.grad is not None for p in names["actor"].parameters())


# --- updates against an independent implementation ---


class Plain:
    """The usual script: modules, autograd, torch.optim. Its noise and first weights come from outside."""

    def __init__(self, net: simba.Net, config: simba.Config, state: simba.State):
        def loaded(module: nn.Module, params: Params) -> nn.Module:
            own = copy.deepcopy(module).double()
            own.load_state_dict(params)
            return own

        self.config, self.stats = config, state.obs_stats
        self.h = {k: float(v) for k, v in state.hparams.items()}
        self.actor, self.critic = loaded(net.actor, state.actor), loaded(net.critic, state.critic)
        self.target = loaded(net.critic, state.target_critic)
        self.log_alpha = state.log_alpha.clone().requires_grad_()
        decay = {"weight_decay": self.h["weight_decay"]}
        self.actor_optimizer = torch.optim.AdamW(self.actor.parameters(), lr=self.h["actor_lr"], **decay)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=self.h["critic_lr"], **decay)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=self.h["alpha_lr"])

    def act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.policy == "ddpg":
            action = (self.actor(obs) + self.h["exploration_noise"] * noise).clamp(-1, 1)
            return action, torch.zeros(len(obs), dtype=obs.dtype)
        mean, log_std = self.actor(obs)
        normal = torch.distributions.Normal(mean, log_std.exp())
        u = mean + normal.stddev * noise
        return torch.tanh(u), (normal.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(1)

    def update(self, batch: Batch, noise: Tensor, next_noise: Tensor) -> None:
        obs, next_obs = (
            (x - self.stats["mean"]) / (self.stats["var"] + 1e-8).sqrt() for x in (batch.obs, batch.next_obs)
        )
        action, log_prob = self.act(obs, noise)
        loss = (self.log_alpha.exp().detach() * log_prob - self.critic(obs, action).amin(0)).mean()
        self.step(self.actor_optimizer, loss)
        if self.config.policy == "sac":
            entropy = -log_prob.detach().mean()
            self.step(self.alpha_optimizer, self.log_alpha.exp() * (entropy - self.h["target_entropy"]))
        with torch.no_grad():
            action, log_prob = self.act(next_obs, next_noise)
            value = self.target(next_obs, action).amin(0) - self.log_alpha.exp() * log_prob
            goal = batch.reward + batch.discount * value
        self.step(self.critic_optimizer, (self.critic(obs, batch.action) - goal).square().mean(1).sum())
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                old.mul_(1 - self.h["tau"]).add_(self.h["tau"] * new)

    @staticmethod
    def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("policy", ["sac", "ddpg"])
@pytest.mark.parametrize("critics", [1, 2])
def test_ten_updates_equal_a_plain_script(policy: str, critics: int) -> None:
    net, config, state = small(critics=critics, **(DDPG if policy == "ddpg" else {}))
    state = cast(state, torch.float64)
    plain = Plain(net, config, state)
    for t in range(10):
        batch, key = batch_of(16, t, torch.float64), keys(t)[0]
        noise, next_noise = (rng.normal(k, (16, 2), torch.float64) for k in rng.split(key, 2))
        plain.update(batch, noise, next_noise)
        state, metrics, _ = simba.update(net, config, state, batch, key)
    for module, params in (
        (plain.actor, state.actor),
        (plain.critic, state.critic),
        (plain.target, state.target_critic),
    ):
        for name, value in module.named_parameters():
            torch.testing.assert_close(params[name], value.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.log_alpha, plain.log_alpha.detach(), rtol=1e-9, atol=1e-9)
    assert ("entropy" in metrics) == (policy == "sac")
    assert all(name in (simba.__doc__ or "") for name in metrics)


@pytest.mark.parametrize("policy", ["sac", "ddpg"])
def test_running_statistics_reach_acting_and_learning(policy: str) -> None:
    """An agent that normalises raw observations does what one without does on normalised ones."""
    net, config, state = small(**(DDPG if policy == "ddpg" else {}))
    plain = dataclasses.replace(config, normalize_obs=False)
    norm = nets.RSNorm(3)
    norm.load_state_dict(state.obs_stats)
    raw, key, first = batch_of(16), keys(0)[0], torch.zeros(16, dtype=torch.bool)
    seen = raw._replace(obs=norm(raw.obs), next_obs=norm(raw.next_obs))
    assert (seen.obs - raw.obs).abs().min() > 0.05
    for explore in (True, False):
        ours, _ = simba.act(net, config, state, (), raw.obs, first, key, explore=explore)
        theirs, _ = simba.act(net, plain, state, (), seen.obs, first, key, explore=explore)
        assert torch.equal(ours, theirs)
    ours, theirs = (simba.update(net, c, state, b, key)[0] for c, b in ((config, raw), (plain, seen)))
    assert_equal(ours, theirs)
    assert_equal(ours.obs_stats, state.obs_stats)  # an update leaves them alone


def test_sac_acts_by_its_mode_or_a_sample() -> None:
    net, config, state = small()
    obs, first, key = batch_of(16).obs, torch.zeros(16, dtype=torch.bool), keys(0)[0]
    mean, log_std = functional_call(net.actor, state.actor, (functional_call(net.obs_norm, state.obs_stats, (obs,)),))
    mode, _ = simba.act(net, config, state, (), obs, first, key, explore=False)
    torch.testing.assert_close(mode, torch.tanh(mean))
    sampled, _ = simba.act(net, config, state, (), obs, first, key, explore=True)
    torch.testing.assert_close(sampled, torch.tanh(mean + log_std.exp() * rng.normal(key, (16, 2))))


def test_ddpg_acts_with_noise_only_to_explore_and_keeps_its_temperature() -> None:
    net, config, state = small(**DDPG)
    obs, first, key = batch_of(16).obs, torch.zeros(16, dtype=torch.bool), keys(0)[0]
    plain, _ = simba.act(net, config, state, (), obs, first, key, explore=False)
    noisy, _ = simba.act(net, config, state, (), obs, first, key, explore=True)
    noise = 0.3 * rng.normal(key, (16, 2))
    torch.testing.assert_close(noisy, (plain + noise).clamp(-1, 1))
    new, _, _ = simba.update(net, config, state, batch_of(16), key)
    assert torch.equal(new.log_alpha, state.log_alpha)


def test_population_equals_each_agent_alone() -> None:
    rates = {"critic_lr": (2e-2, 1e-3, 5e-3), "weight_decay": (0.0, 0.1, 0.01), "target_entropy": (-2.0, 1.0, 0.0)}
    rates |= {"tau": (0.05, 0.5, 1.0), "init_alpha": (0.1, 1.0, 0.01), "alpha_lr": (3e-2, 1e-3, 1e-2)}
    config = simba.Config(seeds=(0, 3, 4), **(SMALL | rates))
    net = simba.build_net(SPEC, config)
    states = [simba.init(net, config.member(i), rng.key(s, "init")) for i, s in enumerate(config.seeds)]
    alone = states[1]
    agents = new_agents(states)
    update = freezing(lambda state, *args: simba.update(net, config, state, *args))
    learn = over_agents(update, Execution(), donate=True)
    for t in range(3):
        batches = [batch_of(16, 10 * t + m) for m in range(3)]
        stacked = Batch(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        learn(agents, stacked, keys(t, config.seeds))
        alone, _, _ = simba.update(net, config, alone, batches[1], keys(t, (3,))[0])
    together = member(agents.state, 1)
    for name in ("actor", "critic", "target_critic", "log_alpha", "hparams"):
        for a, b in zip(tree_leaves(getattr(together, name)), tree_leaves(getattr(alone, name)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert int(agents.frozen_at.max()) == -1


def test_resume_is_exact(tmp_path: Path) -> None:
    settings = SMALL | {"env": "Pendulum-v1", "steps": 24, "learning_starts": 12, "utd": 1.0, "batch_size": 8}
    settings |= {
        "env_kwargs": {"max_episode_steps": 7},
        "compile": "off",
        "precision": "strict",
        "threads": 1,
        "tensorboard": False,
        "eval_episodes": 1,
    }
    whole, parts = (
        simba.Config(**settings, eval_every=12, log_every=7, out=str(tmp_path / name)) for name in ("whole", "parts")
    )
    simba.train(whole)
    train_with_stops(parts, [5, 14], simba)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_wrong_settings_and_networks_are_refused() -> None:
    for settings, text in (
        ({"critics": 0}, "critics"),
        ({"weight_decay": 2.0}, "weight_decay"),
        ({"tau": -1.0}, "tau"),
    ):
        with pytest.raises(DeeprlError, match=text):
            simba.Config(**settings)
    with pytest.raises(DeeprlError, match=r"exploration_noise: 0\.3 has no effect with policy sac"):
        simba.Config(exploration_noise=0.3)
    assert simba.Config(policy="ddpg", seeds=(0, 1), init_alpha=(0.01, 0.01)).policy == "ddpg"
    with pytest.raises(DeeprlError, match=r"init_alpha: 0\.1 has no effect with policy ddpg"):
        simba.Config(policy="ddpg", seeds=(0, 0), init_alpha=(0.1, 1.0))
    config = small_config(**DDPG)
    with pytest.raises(DeeprlError, match="the actor of ddpg must return actions"):
        simba.build_net(SPEC, config, lambda spec, c: (nets.SimbaActor(3, 2), nets.SimbaCritic(3, 2)))


# --- bodies for other algorithms ---


def test_td3_learns_with_simbas_bodies_and_normalised_observations() -> None:
    config = td3.Config(body="simba", normalize_obs=True, critics=1)
    net = td3.build_net(SPEC, config)
    assert (count(net.actor), count(net.critic)) == (count(nets.SimbaTanhActor(3, 2)), count(nets.SimbaCritic(3, 2)))
    state = td3.init(net, config, rng.key(0, "init"))
    for t in range(4):
        state = learning.observe(net, config, state, seen(50 + 9 * batch_of(4, t).obs))[0]
    far = batch_of(16)._replace(obs=50 + 9 * batch_of(16).obs, next_obs=50 + 9 * batch_of(16).next_obs)
    new, metrics, _ = td3.update(net, config, state, far, keys(0)[0], policy=True)
    assert all(not torch.equal(a, b) for a, b in zip(new.actor.values(), state.actor.values(), strict=True))
    assert all(value.isfinite() for value in metrics.values())
    # the same as an agent without the setting that gets the numbers normalised
    norm = nets.RSNorm(3)
    norm.load_state_dict(state.obs_stats)
    near = far._replace(obs=norm(far.obs), next_obs=norm(far.next_obs))
    plain = td3.Config(body="simba", critics=1)
    other = td3.update(net, plain, state, near, keys(0)[0], policy=True)[0]
    assert_equal(tree_map(torch.clone, new.critic), other.critic)
    first = torch.zeros(16, dtype=torch.bool)
    for explore in (True, False):
        ours, theirs = (
            td3.act(net, c, state, (), b.obs, first, keys(0)[0], explore=explore)[0]
            for c, b in ((config, far), (plain, near))
        )
        assert torch.equal(ours, theirs)


def test_td3_refuses_layers_that_simbas_body_has_not() -> None:
    with pytest.raises(DeeprlError, match=r"hidden: .* no meaning with body simba"):
        td3.Config(body="simba", hidden=(64,))


@pytest.mark.parametrize("hidden", [(), (32,)])
def test_dqn_puts_simbas_encoder_above_its_torso(hidden: tuple[int, ...]) -> None:
    config = dqn.Config(env="CartPole-v1", body="simba", hidden=hidden, dueling=True)
    spec = EnvSpec((4,), 0, (), (), actions=3)
    q = dqn.make_net(spec, config)
    assert isinstance(q, nets.QNetwork)
    encoder = q.torso[1]
    assert isinstance(encoder, nets.SimbaEncoder)
    assert (encoder[0].in_features, encoder.features, len(encoder)) == (4, 512, 4)
    assert q(torch.zeros(5, 4)).shape == (5, 3)
    image = EnvSpec((10, 10, 4), 0, (), (), "bool", actions=6)
    assert dqn.make_net(image, config)(torch.zeros(2, 10, 10, 4, dtype=torch.bool)).shape == (2, 6)
