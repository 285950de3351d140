"""SimbaV2: what an update moves and what stays on the sphere, rates over time, ablations, populations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import SPEC, assert_equal, batch_of, cast, keys
from test_population import SIZE, data_of, largest_difference, replay
from test_simba_v2 import SMALL, seasoned, small
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import build
from deeprl.core import rng
from deeprl.core.population import Agents, Execution, cause_name, freezing, member, new_agents, over_agents
from deeprl.core.spec import EnvSpec, Params, Seen
from deeprl.core.tree import tree_leaves
from deeprl.errors import DeeprlError
from deeprl.nets import hyper_weights
from deeprl.online import simba_v2
from deeprl.run import learning
from deeprl.run.learning import sampled

# Every member has its own rates, so that a mixed-up axis shows.
PER_AGENT: dict[str, Any] = {
    "actor_lr": (1e-2, 3e-3, 1e-3),
    "critic_lr": (2e-2, 1e-3, 5e-3),
    "alpha_lr": (1e-2, 0.0, 1e-3),
    "final_lr_share": (0.5, 1.0, 0.0),
    "discount": (0.9, 0.99, 0.5),
    "tau": (0.005, 0.5, 1.0),
    "init_alpha": (1.0, 0.1, 0.01),
    "target_entropy": (-2.0, 1.0, -0.5),
}
POPULATION = simba_v2.Config(seeds=(0, 3, 4), bins=11, critic_blocks=1, **(SMALL | PER_AGENT))
NET = simba_v2.build_net(SPEC, POPULATION)
LEARN = sampled(simba_v2.update, NET, POPULATION)


def update(agent: tuple[simba_v2.Net, simba_v2.Config, simba_v2.State], t: int = 0, **changes: Any) -> Any:
    net, config, state = agent
    return simba_v2.update(net, config, state, batch_of(16, t)._replace(**changes), keys(t)[0])


def assert_on_sphere(params: Params, module: nn.Module) -> None:
    """Rows of length 1, of one agent or of each agent of a population."""
    for name in hyper_weights(module):
        rows = params[name].norm(dim=-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), msg=name)


# --- one update ---


def test_weights_are_back_on_the_sphere_after_each_update() -> None:
    net, config, state = small()
    for t in range(3):
        state, _, _ = update((net, config, state), t)
        assert_on_sphere(state.actor, net.actor)
        assert_on_sphere(state.critic, net.critic)


def test_target_critic_is_averaged_and_not_projected() -> None:
    net, config, state = small(tau=0.5, critic_lr=0.1)
    new, _, _ = update((net, config, state))
    for name, old in state.target_critic.items():
        torch.testing.assert_close(new.target_critic[name], 0.5 * old + 0.5 * new.critic[name])
    # the middle of two points of a sphere lies inside
    rows = torch.cat([new.target_critic[k].norm(dim=-1) for k in hyper_weights(net.critic)])
    assert float(rows.max()) < 1.0 + 1e-6
    assert float(rows.min()) < 0.99


@pytest.mark.parametrize(
    ("off", "still", "moving"),
    [
        ("actor_lr", "actor", ("critic", "log_alpha", "target_critic")),
        ("critic_lr", "critic", ("actor", "log_alpha")),
        ("alpha_lr", "log_alpha", ("actor", "critic", "target_critic")),
        ("tau", "target_critic", ("actor", "critic", "log_alpha")),
    ],
)
def test_each_loss_moves_its_own_parameters_only(off: str, still: str, moving: tuple[str, ...]) -> None:
    net, config, state = small(**{off: 0.0})
    new, _, _ = update((net, config, state))
    for a, b in zip(tree_leaves(getattr(new, still)), tree_leaves(getattr(state, still)), strict=True):
        torch.testing.assert_close(a, b)  # projection of what is on the sphere may change a last digit
    for name in moving:
        pairs = zip(tree_leaves(getattr(new, name)), tree_leaves(getattr(state, name)), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs), name


def test_update_is_pure_and_leaves_statistics_alone() -> None:
    net, config, state = small()
    kept = [x.clone() for x in tree_leaves(state)]
    new, metrics, aux = update((net, config, state))
    assert all(torch.equal(a, b) for a, b in zip(kept, tree_leaves(state), strict=True))
    assert (int(new.step), aux) == (1, ())
    assert_equal((new.obs_stats, new.return_stats, new.hparams), (state.obs_stats, state.return_stats, state.hparams))
    assert all(name in (simba_v2.__doc__ or "") for name in metrics)
    assert all(value.shape == () and bool(value.isfinite()) for value in metrics.values())


def test_initial_state() -> None:
    config = simba_v2.Config(**(SMALL | {"init_alpha": 0.25}))
    net = simba_v2.build_net(SPEC, config)
    state = simba_v2.init(net, config, rng.key(3, "init"))
    assert float(state.log_alpha.exp()) == pytest.approx(0.25)
    assert float(state.hparams["target_entropy"]) == -1.0  # -A / 2
    assert_equal(state.critic, state.target_critic)
    assert_on_sphere(state.target_critic, net.critic)
    assert all(state.critic[k] is not state.target_critic[k] for k in state.critic)
    assert not any(leaf.requires_grad for leaf in tree_leaves(state))
    other = simba_v2.init(net, config, rng.key(4, "init"))
    for name in hyper_weights(net.actor):
        assert not torch.equal(state.actor[name], other.actor[name]), name
    plain = simba_v2.Config(target_entropy=-3.0)
    assert float(simba_v2.init(net, plain, rng.key(0, "init")).hparams["target_entropy"]) == -3.0


# --- learning rates over time ---


def relative_rates(step: int, **settings: Any) -> list[float]:
    """Rates of the three optimizers at an update, as shares of the first: Adam's first step is the rate itself."""
    net, config, state = small(**settings)
    new, _, _ = update((net, config, state._replace(step=torch.tensor(step))))
    h = state.hparams
    moves = [
        (new.actor["mean.bias"] - state.actor["mean.bias"], h["actor_lr"]),
        (new.critic["critics.1.1.bias"] - state.critic["critics.1.1.bias"], h["critic_lr"]),
        (new.log_alpha - state.log_alpha, h["alpha_lr"]),
    ]
    return [float(move.abs().max() / rate) for move, rate in moves]


@pytest.mark.parametrize(
    ("step", "final", "share"),
    [
        (0, 0.5, 1.0),
        (10, 0.5, 0.95),
        (50, 0.5, 0.75),
        (100, 0.5, 0.5),
        (10**9, 0.5, 0.5),
        (50, 0.1, 0.55),
        (200, 0.0, 0.0),
        (50, 1.0, 1.0),
    ],
)
def test_rates_fall_linearly_and_stay(step: int, final: float, share: float) -> None:
    # 50 steps of the environment with two updates each: 100 updates.
    rates = relative_rates(step, lr_horizon=50, utd=2.0, final_lr_share=final, steps=10_000)
    assert rates == pytest.approx([share] * 3, rel=1e-3)


@pytest.mark.parametrize("steps", [10_000, 50_000_000])
def test_horizon_is_that_of_the_paper_whatever_the_steps(steps: int) -> None:
    # 10^6 steps at UTD 2, of which 10^6 updates are half: 1 - 0.5 / 2.
    config = {"lr_horizon": simba_v2.Config().lr_horizon, "utd": 2.0, "steps": steps, "final_lr_share": 0.5}
    assert relative_rates(1_000_000, **config) == pytest.approx([0.75] * 3, rel=1e-3)


# --- statistics and ablations ---


def test_observe_takes_in_every_environment_and_touches_nothing_else() -> None:
    net, config, state = small(envs_per_agent=4, discount=0.5)
    state = state._replace(**{k: getattr(simba_v2.init(net, config, rng.key(0, "init")), k) for k in ("obs_stats",)})
    obs, reward, ended = batch_of(4).obs, torch.ones(4), torch.tensor([False, True, False, False])
    new, metrics, aux = simba_v2.observe(net, config, state, Seen(obs, ended, reward))
    torch.testing.assert_close(new.obs_stats["mean"], obs.double().sum(0) / 4.0001)
    assert new.obs_stats["count"].item() == 4.0001
    assert new.return_stats["count"] == state.return_stats["count"] + 4
    expected = torch.where(ended, 0.0, 0.5 * state.return_stats["returns"]) + 1.0
    torch.testing.assert_close(new.return_stats["returns"], expected)
    unchanged = new._replace(obs_stats=state.obs_stats, return_stats=state.return_stats)
    assert_equal(unchanged, state)
    assert aux == ()
    # All statistics: where one of them is not finite, the agent is frozen.
    assert {source: len(stats) for source, stats in metrics.items()} == {"observation": 3, "reward": 5}


def other_statistics(state: simba_v2.State, name: str) -> simba_v2.State:
    stats = getattr(state, name)
    return state._replace(**{name: {k: 2 * v + 1 for k, v in stats.items()}})


@pytest.mark.parametrize(("switch", "stats"), [("normalize_obs", "obs_stats"), ("scale_rewards", "return_stats")])
def test_statistics_count_where_they_are_switched_on_and_not_where_off(switch: str, stats: str) -> None:
    for on in (True, False):
        net, config, state = small(**{switch: on})
        one, other = (update((net, config, s))[1]["critic_loss"] for s in (state, other_statistics(state, stats)))
        assert torch.equal(one, other) != on
        first, obs = torch.zeros(16, dtype=torch.bool), batch_of(16).obs
        actions = [
            simba_v2.act(net, config, s, (), obs, first, keys(0)[0], explore=False)[0]
            for s in (state, other_statistics(state, stats))
        ]
        assert torch.equal(*actions) != (on and switch == "normalize_obs")


def test_normalized_agent_on_raw_data_equals_plain_agent_on_normalized_data() -> None:
    net, config, state = small()
    plain = simba_v2.Config(**SMALL, normalize_obs=False, scale_rewards=False)
    raw = batch_of(16)
    mean, var = state.obs_stats["mean"].float(), state.obs_stats["var"].float()
    scale = max(float(state.return_stats["var"] ** 0.5), float(state.return_stats["peak"]) / 5.0)
    obs, next_obs = ((x - mean) / var.sqrt() for x in (raw.obs, raw.next_obs))
    scaled = raw._replace(obs=obs, next_obs=next_obs, reward=raw.reward / scale)
    ours, theirs = (simba_v2.update(net, c, state, b, keys(0)[0])[1] for c, b in ((config, raw), (plain, scaled)))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_acting_samples_or_takes_the_mode() -> None:
    net, config, state = small()
    obs, first, key = batch_of(6).obs, torch.zeros(6, dtype=torch.bool), rng.key(0, "explore")
    mean, log_std = torch.func.functional_call(net.actor, state.actor, (learning.normalized(net, config, state, obs),))
    mode, carry = simba_v2.act(net, config, state, (), obs, first, key, explore=False)
    sampled, _ = simba_v2.act(net, config, state, (), obs, first, key, explore=True)
    torch.testing.assert_close(mode, torch.tanh(mean))
    torch.testing.assert_close(sampled, torch.tanh(mean + log_std.exp() * rng.normal(key, (6, 2))))
    assert carry == ()


# --- populations ---


def states(dtype: torch.dtype = torch.float32) -> list[simba_v2.State]:
    fresh = [simba_v2.init(NET, POPULATION.member(i), rng.key(s, "init")) for i, s in enumerate(POPULATION.seeds)]
    return [cast_all(seasoned(NET, POPULATION, s), dtype) for s in fresh]


def cast_all(state: simba_v2.State, dtype: torch.dtype) -> simba_v2.State:
    """Another type for all but the statistics, which are float64 anyhow."""
    return cast(state, dtype)._replace(obs_stats=state.obs_stats, return_stats=state.return_stats)


def learn_some(learn: Callable, agents: Agents, data: Any, updates: range) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = {}
    for i in updates:
        streams = (rng.Streams(POPULATION.seeds)(name, i) for name in ("sample", "update"))
        metrics, _ = learn(agents, data, SIZE, *streams)
    return metrics


def alone(state: simba_v2.State, data: Any, index: int, updates: range) -> simba_v2.State:
    for i in updates:
        sample, key = (rng.Streams(POPULATION.seeds)(name, i)[index] for name in ("sample", "update"))
        state, _, _ = LEARN(state, data, SIZE, sample, key)
    return state


def lifted(**execution: Any) -> Callable:
    return over_agents(freezing(LEARN), Execution(**execution), shared=(2,), donate=True)


def test_population_of_three_equals_three_alone() -> None:
    # Other orders of sums under vmap: last digits of float64, amplified by four updates.
    agents = new_agents(states(torch.float64))
    learn_some(lifted(), agents, data_of(3, torch.float64), range(4))
    for i, state in enumerate(states(torch.float64)):
        single = alone(state, replay(torch.float64), i, range(4))
        assert largest_difference(member(agents.state, i), single) < 1e-9
    assert_on_sphere(agents.state.actor, NET.actor)
    assert_on_sphere(agents.state.critic, NET.critic)
    assert agents.frozen_at.tolist() == [-1] * 3


def test_looped_population_is_bit_equal_to_three_alone() -> None:
    agents = new_agents(states())
    learn_some(lifted(backend="loop"), agents, data_of(3), range(2))
    for i, state in enumerate(states()):
        assert_equal(member(agents.state, i), alone(state, replay(), i, range(2)))


def test_poisoned_agent_freezes_and_harms_nobody() -> None:
    healthy, poisoned, bad = new_agents(states()), new_agents(states()), data_of(3)
    bad.reward[1] = torch.nan
    learn = lifted()
    learn_some(learn, healthy, data_of(3), range(2))
    learn_some(learn, poisoned, bad, range(2))
    assert poisoned.frozen_at.tolist() == [-1, 0, -1]
    assert_equal(member(poisoned.state, 1), states()[1])
    for i in (0, 2):
        assert_equal(member(poisoned.state, i), member(healthy.state, i))


@pytest.mark.parametrize("what", ["obs", "reward"])
def test_agent_that_sees_what_is_not_finite_freezes_before_its_statistics_are_spoilt(what: str) -> None:
    agents = new_agents(states())
    before = new_agents(states()).state
    outcome = {"obs": torch.ones(3, 1, 3), "reward": torch.ones(3, 1), "is_first": torch.zeros(3, 1, dtype=torch.bool)}
    outcome[what][2] = torch.inf
    track = freezing(lambda *args: simba_v2.observe(NET, POPULATION, *args))
    over_agents(track, Execution(), donate=True)(agents, Seen(**outcome))
    assert agents.frozen_at.tolist() == [-1, -1, 0]
    assert cause_name(int(agents.cause[2])) == {"obs": "observation", "reward": "reward"}[what]
    assert_equal(member(agents.state, 2), member(before, 2))
    assert (agents.state.obs_stats["count"] - before.obs_stats["count"]).tolist() == pytest.approx([1.0, 1.0, 0.0])


@pytest.mark.inductor
@pytest.mark.compiled
def test_compiled_population_equals_eager_population() -> None:
    config = dataclasses.replace(POPULATION, critics=1)  # of two, compiling takes twice as long
    net = simba_v2.build_net(SPEC, config)
    fresh = [simba_v2.init(net, config.member(i), rng.key(s, "init")) for i, s in enumerate(config.seeds)]
    eager, compiled = (new_agents([seasoned(net, config, s) for s in fresh]) for _ in range(2))
    for agents, execution in ((eager, Execution()), (compiled, Execution(compile=True))):
        learn = over_agents(freezing(sampled(simba_v2.update, net, config)), execution, shared=(2,), donate=True)
        learn_some(learn, agents, data_of(3), range(2))
    for name in ("actor", "critic", "target_critic", "log_alpha"):
        assert largest_difference(getattr(compiled.state, name), getattr(eager.state, name)) < 1e-4, name
    assert_on_sphere(compiled.state.critic, net.critic)
    assert compiled.state.step.tolist() == [2] * 3


# --- settings ---


def test_own_networks_replace_the_papers_and_wrong_ones_are_refused() -> None:
    def tiny(spec: EnvSpec, config: simba_v2.Config) -> tuple[nn.Module, nn.Module]:
        sizes = (spec.obs_dim, spec.action_dim)
        return nets.TanhGaussianActor(*sizes, (8,)), nets.SimbaV2Critic(*sizes, 8, 1, config.bins)

    def values(spec: EnvSpec, config: simba_v2.Config) -> tuple[nn.Module, nn.Module]:
        return tiny(spec, config)[0], nets.CriticEnsemble(spec.obs_dim, spec.action_dim, (8,))

    config = simba_v2.Config(**SMALL)
    net = simba_v2.build_net(SPEC, config, tiny)
    state = simba_v2.init(net, config, rng.key(0, "init"))
    new, metrics, _ = update((net, config, state))
    assert bool(metrics["critic_loss"].isfinite())
    assert not torch.equal(new.actor["trunk.0.weight"], state.actor["trunk.0.weight"])
    with pytest.raises(DeeprlError, match=r"logits \[critics, batch, bins\]"):
        simba_v2.build_net(SPEC, config, values)


@pytest.mark.parametrize(
    "settings",
    [
        {"bins": 1},
        {"critics": 0},
        {"critic_width": 0},
        {"lr_horizon": 0},
        {"final_lr_share": 1.5},
        {"value_bound": -1.0},
        {"init_alpha": 0.0},
        {"tau": (0.1, 2.0), "seeds": (0, 1)},
    ],
)
def test_wrong_settings_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(DeeprlError, match=next(iter(settings))):
        simba_v2.Config(**settings)
    with pytest.raises(DeeprlError, match="critic_with"):
        build(simba_v2.Config, {"critic_with": 8})
