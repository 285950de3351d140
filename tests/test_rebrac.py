"""ReBRAC: losses and targets by hand, the data's next actions, updates against an independent implementation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BATCH, CRITIC, ONE, assert_equal, batch_of, cast
from offline_helpers import SPEC, assert_population_equals_single, descend, made_dataset, write_made
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import build
from deeprl.core import rng
from deeprl.core.optim import polyak
from deeprl.data.datasets import load_dataset
from deeprl.data.offline import OfflineConfig, OfflineData, best_episodes, next_actions
from deeprl.errors import DeeprlError
from deeprl.offline import rebrac
from deeprl.recipes import RECIPES
from deeprl.replay.samplers import transitions
from deeprl.run import checkpoint

TINY: dict[str, Any] = {"hidden": (16, 16), "batch_size": 32, "steps": 100}
NAN = float("nan")


class Scaled(nn.Module):
    """pi(s) = w s, of as many entries as w."""

    def __init__(self, entries: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(entries))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.w)

    def forward(self, obs: Tensor) -> Tensor:
        return obs[:, :1] * self.w


def agent(w: list[float], spec: Any = ONE, **settings: Any) -> tuple[rebrac.Net, rebrac.Config, rebrac.State]:
    """One with linear networks: policy and target policy w s, critics and target critics of `CRITIC` if they fit."""
    config = rebrac.Config(**(TINY | {"target_noise": 0.0} | settings))
    critic = nets.CriticEnsemble(spec.obs_dim, spec.action_dim, ())
    net = rebrac.Net(Scaled(len(w)), critic, spec)
    state = rebrac.init(net, config, rng.key(0, "init"))
    own = {"w": torch.tensor(w)}
    state = state._replace(actor=own, target_actor=own)
    return net, config, state._replace(critic=CRITIC, target_critic=CRITIC) if spec == ONE else state


# --- losses by hand ---


def test_actor_loss_by_hand() -> None:
    """pi = 0.5, 1; Q_1 = s + 2 pi = 2, 4 and Q_2 = pi + 1 = 1.5, 2: the minimum has mean 1.75; distances 0, 1.5^2."""
    net, _, state = agent([0.5])
    loss, distance = rebrac.actor_loss(state.actor, net, CRITIC, BATCH, torch.tensor(0.4))
    assert distance.item() == pytest.approx(1.125)
    assert loss.item() == pytest.approx(0.4 * 1.125 - 1.75 / 1.75)


def test_the_scale_of_the_critics_is_not_differentiated_and_does_not_matter() -> None:
    """d/dw: 0.4 * mean 2 (w s - a) s = 0.4 * 3; minus mean s / 1.75, as the second critic is the smaller one."""
    net, _, state = agent([0.5])
    grad = torch.func.grad(rebrac.actor_loss, has_aux=True)
    for critic in (CRITIC, {name: 10.0 * p for name, p in CRITIC.items()}):
        found, _ = grad(state.actor, net, critic, BATCH, torch.tensor(0.4))
        assert found["w"].item() == pytest.approx(0.4 * 3.0 - 1.5 / 1.75)


def test_critic_target_by_hand() -> None:
    """a~ = 0.5, 1; min Q' = 1.5, 2; squared distances from 0.1, and from an action that is not known: 0.16, 0."""
    net, _, state = agent([0.5], critic_penalty=2.0)
    batch = BATCH._replace(discount=torch.tensor([0.9, 0.9]))
    found = rebrac.critic_target(net, state, batch, torch.tensor([[0.1], [NAN]]), rng.key(0, "update"))
    assert found.tolist() == pytest.approx([1.0 + 0.9 * (1.5 - 2.0 * 0.16), 1.0 + 0.9 * 2.0])
    ended = rebrac.critic_target(net, state, BATCH, torch.tensor([[0.1], [-1.0]]), rng.key(0, "update"))
    assert ended[1].item() == 1.0  # terminated: neither a value nor a penalty


def test_penalties_are_sums_over_the_entries_of_an_action() -> None:
    """At s_0 = 1: a~ = pi = 0.5, -0.5; from a = 0.5, 1 and a' = 1, 0.5: 0 + 2.25 and 0.25 + 1."""
    net, _, state = agent([0.5, -0.5], SPEC, critic_penalty=3.0)
    action, following = torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 0.5]])
    batch = batch_of(1)._replace(obs=torch.ones(1, 3), next_obs=torch.ones(1, 3), action=action)
    batch = batch._replace(reward=torch.zeros(1), discount=torch.ones(1))
    zero = {name: torch.zeros_like(p) for name, p in state.critic.items()}
    target = rebrac.critic_target(net, state._replace(target_critic=zero), batch, following, rng.key(0, "update"))
    assert target.item() == pytest.approx(-3.0 * 1.25)
    _, distance = rebrac.actor_loss(state.actor, net, state.critic, batch, torch.tensor(1.0))
    assert distance.item() == pytest.approx(2.25)


def test_noise_is_in_the_penalty_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 0.2 * 10 and 0.2 * -1, clipped at 0.5: a~ = 1 (of 0.5 + 0.5) and 0.8 (of 1 - 0.2)."""
    drawn = torch.tensor([[10.0], [-1.0]])
    monkeypatch.setattr(rng, "normal", lambda key, shape, dtype=torch.float32: drawn.to(dtype))
    net, _, state = agent([0.5], target_noise=0.2, critic_penalty=1.0)
    batch = BATCH._replace(discount=torch.ones(2))
    found = rebrac.critic_target(net, state, batch, torch.zeros(2, 1), rng.key(0, "update"))
    assert found.tolist() == pytest.approx([1.0 + 2.0 - 1.0, 1.0 + 1.8 - 0.64])


# --- the data's next actions ---

ROWS = 8  # three episodes: rows 0-2 end by termination, 3-5 by a time limit, 6-7 by nothing


def recorded(path: Path, **other: np.ndarray) -> str:
    """A file in which row i does i / 10."""
    steps = np.arange(ROWS)
    obs = np.stack([steps, steps, steps], 1).astype(np.float32)
    action = np.stack([steps / 10.0, -steps / 10.0], 1).astype(np.float32)
    flags = {"terminals": steps == 2, "timeouts": steps == 5}
    np.savez(path, observations=obs, actions=action, rewards=np.ones(ROWS, np.float32), **flags, **other)
    return str(path)


@pytest.mark.parametrize(
    ("successors", "acted", "expected"),
    [
        # Successors are known: every row is there, the last one of each episode without a next action.
        (True, [0, 1, 2, 3, 4, 5, 6, 7], [1, 2, NAN, 4, 5, NAN, 7, NAN]),
        # They are not: rows 5 and 7 are left out, and with them what was done after rows 4 and 6.
        (False, [0, 1, 2, 3, 4, 6], [1, 2, NAN, 4, NAN, NAN]),
    ],
)
def test_next_actions_by_hand(successors: bool, acted: list[int], expected: list[float], tmp_path: Path) -> None:
    after = np.arange(1, ROWS + 1)[:, None].repeat(3, 1).astype(np.float32)
    dataset = load_dataset(recorded(tmp_path / "a.npz", **({"next_observations": after} if successors else {})))
    action = dataset.data.action
    torch.testing.assert_close(10.0 * action[:, 0], torch.tensor(acted, dtype=torch.float32))
    found = next_actions(dataset.data, torch.arange(len(dataset)))
    wanted = torch.tensor(expected) / 10.0
    torch.testing.assert_close(found, torch.stack([wanted, -wanted], 1), equal_nan=True)


def test_next_actions_of_several_datasets_and_of_the_best_episodes_stay_within_their_episodes() -> None:
    datasets = {"a": made_dataset(60, 20), "b": best_episodes(made_dataset(80, 10, seed=1), 0.5)}
    data = OfflineData(datasets.items(), 200, OfflineConfig(dataset=("b", "a"), seeds=(0, 1)), "cpu")
    for i, dataset in enumerate((datasets["b"], datasets["a"])):
        found = next_actions(data.arrays, data.first[i] + torch.arange(len(dataset)))
        wanted = dataset.data.action.roll(-1, 0)
        wanted[dataset.ends - 1] = NAN
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_learner_gives_each_row_the_action_that_followed() -> None:
    config = rebrac.Config(discount=0.3, **TINY)
    dataset, net = made_dataset(length=5), rebrac.build_net(SPEC, config)
    state, key = rebrac.init(net, config, rng.key(0, "init")), rng.key(0, "update")
    first, size = torch.tensor(120), torch.tensor(80)
    row = 120 + rng.randint(rng.key(0, "sample"), (32,), size)
    following = dataset.data.action.roll(-1, 0)
    following[dataset.ends - 1] = NAN
    assert following[row].isnan().any()
    for policy in (True, False):
        learn = rebrac.learner(net, config, policy)
        learned, _, _ = learn(state, dataset.data, size, rng.key(0, "sample"), key, first)
        batch = transitions(dataset.data, row, 0.3)
        assert_equal(learned, rebrac.update(net, config, state, batch, key, following[row], policy=policy)[0])


# --- updates ---


def test_updates_equal_an_independent_implementation() -> None:
    config = rebrac.Config(target_noise=0.0, actor_penalty=0.3, critic_penalty=0.7, **TINY)
    net = rebrac.build_net(SPEC, config)
    state = cast(rebrac.init(net, config, rng.key(3, "init")), torch.float64)
    actor, critic = copy.deepcopy(net.actor).double(), copy.deepcopy(net.critic).double()
    actor.load_state_dict(state.actor)
    critic.load_state_dict(state.critic)
    targets = copy.deepcopy(actor), copy.deepcopy(critic)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (actor, critic)]
    for t in range(10):
        batch, policy = batch_of(32, t, torch.float64), t % 2 == 0
        following = batch_of(32, t + 50, torch.float64).action
        given = torch.where(torch.arange(32)[:, None] % 5 == 0, torch.nan, following)
        state, _, _ = rebrac.update(net, config, state, batch, rng.key(0, "update", t), given, policy=policy)
        with torch.no_grad():
            action = targets[0](batch.next_obs)
            weight = torch.where(torch.arange(32) % 5 == 0, 0.0, 0.7)
            next_q = torch.minimum(*targets[1](batch.next_obs, action)) - weight * ((action - following) ** 2).sum(1)
            y = batch.reward + batch.discount * next_q
        qs = critic(batch.obs, batch.action)
        descend(optimizers[1], nn.functional.mse_loss(qs[0], y) + nn.functional.mse_loss(qs[1], y))
        if policy:
            for target, online in zip(targets, (actor, critic), strict=True):  # the policy has not moved yet
                for old, new in zip(target.parameters(), online.parameters(), strict=True):
                    old.data.lerp_(new.data, 0.005)
            action = actor(batch.obs)
            q = torch.minimum(*critic(batch.obs, action))
            distance = ((action - batch.action) ** 2).sum(1)
            descend(optimizers[0], (0.3 * distance - q / q.abs().mean().detach()).mean())
    pairs = ((actor, state.actor), (critic, state.critic), (targets[0], state.target_actor))
    for module, params in (*pairs, (targets[1], state.target_critic)):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(params[key], value, rtol=1e-6, atol=1e-8)  # rates are float32


def test_targets_follow_the_policy_before_its_step_and_the_critics_after_theirs() -> None:
    config = rebrac.Config(tau=0.5, **TINY)
    net = rebrac.build_net(SPEC, config)
    state = rebrac.init(net, config, rng.key(0, "init"))
    state = state._replace(target_actor={k: p + 1.0 for k, p in state.actor.items()})
    batch, key, following = batch_of(8), rng.key(0, "update"), batch_of(8, 1).action
    both, metrics, _ = rebrac.update(net, config, state, batch, key, following, policy=True)
    assert {"actor_loss", "imitation_loss", "critic_loss"} <= metrics.keys()
    assert_equal(both.target_actor, polyak(state.target_actor, state.actor, torch.tensor(0.5)))
    assert_equal(both.target_critic, polyak(state.target_critic, both.critic, torch.tensor(0.5)))
    assert not torch.equal(both.actor["trunk.0.weight"], state.actor["trunk.0.weight"])
    alone, metrics, _ = rebrac.update(net, config, state, batch, key, following, policy=False)
    assert "actor_loss" not in metrics
    assert_equal(alone.critic, both.critic)
    still = ("actor", "actor_moments", "target_actor", "target_critic")
    assert_equal([getattr(alone, part) for part in still], [getattr(state, part) for part in still])


def test_policy_of_a_run_moves_at_the_first_update_and_every_third_from_there_if_so_set(tmp_path: Path) -> None:
    settings = {"dataset": write_made(tmp_path / "a.npz"), "policy_delay": 3, "log_every": 1, "eval_episodes": 0}
    settings |= TINY | {"compile": "off", "tensorboard": False, "threads": 1, "out": str(tmp_path / "run"), "steps": 5}
    config = build(rebrac.Config, settings)
    net = rebrac.build_net(SPEC, config)
    moved = []
    start = before = dict(rebrac.init(net, config, rng.key(0, "init")).actor)
    for step in range(1, 6):
        run = rebrac.train(config, callback=lambda run, step=step: run.step == step)
        loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
        assert loaded is not None
        now = {name: loaded[1]["agents"][f"state.actor.{name}"][0] for name in start}
        moved.append(any(not torch.equal(before[name], now[name]) for name in start))
        before = now
    assert moved == [True, False, False, True, False]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "train/actor_loss" in rows[0]
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4", "5"]


def test_networks_are_those_of_the_authors() -> None:
    net = rebrac.build_net(SPEC, rebrac.Config())
    linears = [module for module in net.actor.modules() if isinstance(module, nn.Linear)]
    assert [(linear.in_features, linear.out_features) for linear in linears] == [(3, 256), *[(256, 256)] * 2, (256, 2)]
    assert not any(isinstance(module, nn.LayerNorm) for module in net.actor.modules())
    assert isinstance(net.critic, nets.CriticEnsemble)
    assert (net.critic.layer_norm, len(net.critic.norms), len(net.critic.layers)) == ("after", 3, 4)
    for layers, bound in ((linears, 1e-3), (net.critic.layers, 3e-3)):
        first, *_, last = layers
        assert set(first.bias.flatten().tolist()) == {torch.tensor(0.1).item()}
        assert 0.9 * bound < last.weight.abs().max() <= bound


CONFIG = rebrac.Config(
    seeds=(0, 1, 1), actor_penalty=(0.0, 0.1, 1.0), critic_penalty=(0.0, 0.5, 0.01), actor_lr=(1e-3, 3e-4, 3e-4), **TINY
)


def test_population_equals_single() -> None:
    assert_population_equals_single(rebrac, CONFIG)


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"actor_penalty": -1.0}, "actor_penalty"),
        ({"critic_penalty": (0.1, -0.1), "seeds": (0, 1)}, "critic_penalty"),
        ({"policy_delay": 0}, "policy_delay"),
        ({"tau": 2.0}, "tau"),
        ({"hidden": (0,)}, "hidden"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(DeeprlError, match=f"^{text}"):
        rebrac.Config(**settings)


def test_recipes_are_those_of_each_dataset() -> None:
    """Some of them; there are 6 of each locomotion task and of AntMaze, 3 of maze2d and of each task of Adroit."""
    own = RECIPES["rebrac"]
    assert len(own) == 3 * 6 + 6 + 3 + 4 * 3
    locomotion = {"actor_lr": 1e-3, "critic_lr": 1e-3, "batch_size": 1_024, "discount": 0.99, "rewards": "as-is"}
    small = locomotion | {"actor_lr": 3e-4, "critic_lr": 3e-4, "batch_size": 256}
    antmaze = small | {"critic_lr": 5e-5, "discount": 0.999, "rewards": "times-100", "eval_episodes": 100}
    for name, penalties, others in (
        ("halfcheetah-medium-replay", (0.01, 0.001), locomotion),
        ("hopper-medium-replay", (0.05, 0.5), locomotion),
        ("walker2d-random", (0.01, 0.0), locomotion),
        ("antmaze-medium-play", (0.001, 0.0005), antmaze),
        ("pen-cloned", (0.05, 0.5), small),
        ("maze2d-large", (0.003, 0.001), small | {"eval_episodes": 100}),
    ):
        config = build(rebrac.Config, {"dataset": "any.hdf5"} | own[name].settings)
        assert (config.actor_penalty, config.critic_penalty) == penalties, name
        assert {key: getattr(config, key) for key in others} == others, name
