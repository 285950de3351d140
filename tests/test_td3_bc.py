"""TD3+BC: losses by hand, updates against an independent implementation, population = single, compiled = eager."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import BATCH, CRITIC, ONE, assert_equal, batch_of, cast
from offline_helpers import SPEC, assert_compiled_equals_eager, assert_population_equals_single, descend, write_made
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import build
from deeprl.core import rng
from deeprl.errors import DeeprlError
from deeprl.offline import td3_bc
from deeprl.online import td3
from deeprl.run import checkpoint

TINY = {"hidden": (16, 16), "batch_size": 32, "steps": 100}


class Identity(nn.Module):
    """pi(s) = w s."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.w)

    def forward(self, obs: Tensor) -> Tensor:
        return self.w * obs


def test_actor_loss_by_hand() -> None:
    """pi = 0.5 s = 0.5, 1; Q_1 = s + 2 pi = 2, 4, mean 3; imitation of 0.5, -0.5: (0 + 2.25) / 2."""
    net = td3_bc.Net(Identity(), nets.CriticEnsemble(1, 1, ()), ONE)
    actor = {"w": torch.tensor([0.5])}
    loss, imitation = td3_bc.actor_loss(actor, net, CRITIC, BATCH, torch.tensor(2.5))
    assert imitation.item() == pytest.approx(1.125)
    assert loss.item() == pytest.approx(1.125 - 2.5 * 3.0 / 3.0)


def test_the_scale_of_the_critic_is_not_differentiated_and_does_not_matter() -> None:
    net = td3_bc.Net(Identity(), nets.CriticEnsemble(1, 1, ()), ONE)
    tenfold = {k: 10 * p for k, p in CRITIC.items()}
    grads = [
        torch.func.grad(lambda a, c=critic: td3_bc.actor_loss(a, net, c, BATCH, torch.tensor(2.5))[0])(
            {"w": torch.tensor([0.5])}
        )["w"]
        for critic in (CRITIC, tenfold)
    ]
    torch.testing.assert_close(*grads)
    # d/dw: imitation mean 2 (w s - a) s = (0 + 2 * 1.5 * 2) / 2 = 3; Q: 2.5 * mean (2 s) / mean |Q| = 2.5 * 3 / 3
    assert grads[0].item() == pytest.approx(3.0 - 2.5)


def test_updates_equal_an_independent_implementation() -> None:
    config = td3_bc.Config(target_noise=0.0, **TINY)
    net = td3_bc.build_net(SPEC, config)
    state = cast(td3_bc.init(net, config, rng.key(3, "init")), torch.float64)
    actor, critic = copy.deepcopy(net.actor).double(), copy.deepcopy(net.critic).double()
    actor.load_state_dict(state.actor)
    critic.load_state_dict(state.critic)
    targets = copy.deepcopy(actor), copy.deepcopy(critic)
    optimizers = [torch.optim.Adam(m.parameters(), lr=3e-4) for m in (actor, critic)]
    for t in range(10):
        batch, policy = batch_of(32, seed=t, dtype=torch.float64), t % 2 == 1
        state, _, _ = td3_bc.update(net, config, state, batch, rng.key(0, "update", t), policy=policy)
        with torch.no_grad():
            next_q = targets[1](batch.next_obs, targets[0](batch.next_obs)).min(0).values
            y = batch.reward + batch.discount * next_q
        qs = critic(batch.obs, batch.action)
        descend(optimizers[1], nn.functional.mse_loss(qs[0], y) + nn.functional.mse_loss(qs[1], y))
        if policy:
            action = actor(batch.obs)
            q = critic(batch.obs, action)[0]
            lmbda = 2.5 / q.abs().mean().detach()
            descend(optimizers[0], -lmbda * q.mean() + nn.functional.mse_loss(action, batch.action))
            for target, online in zip(targets, (actor, critic), strict=True):
                for old, new in zip(target.parameters(), online.parameters(), strict=True):
                    old.data.lerp_(new.data, 0.005)
    pairs = ((actor, state.actor), (critic, state.critic), (targets[0], state.target_actor))
    for module, params in (*pairs, (targets[1], state.target_critic)):
        for key, value in module.state_dict().items():
            torch.testing.assert_close(params[key], value, rtol=1e-6, atol=1e-9)  # rates are float32


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_smoothed_target_action_by_hand(sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # pi' = 0.8, noise 0.2 * (-10, -1, 0, 0.5, 2, 10), clipped to 0.5: 0.3, 0.6, 0.8, 0.9, 1.2, 1.3; the last two at 1.
    normal = sign * torch.tensor([[-10.0], [-1.0], [0.0], [0.5], [2.0], [10.0]])
    monkeypatch.setattr(rng, "normal", lambda key, shape, dtype=torch.float32: normal.to(dtype))
    net = td3_bc.Net(Identity(), nets.CriticEnsemble(1, 1, ()), ONE)
    state = td3_bc.init(net, td3_bc.Config(**TINY), rng.key(0, "init"))
    state = state._replace(actor={"w": torch.tensor([0.1])}, target_actor={"w": torch.tensor([sign * 0.8])})
    actions = td3.smoothed_target_action(net, state, torch.ones(6, 1), rng.key(0, "update"))
    assert (sign * actions).flatten().tolist() == pytest.approx([0.3, 0.6, 0.8, 0.9, 1.0, 1.0])


def test_policy_of_a_run_moves_at_every_third_update_if_so_set(tmp_path: Path) -> None:
    settings = {"dataset": write_made(tmp_path / "a.npz"), "policy_delay": 3, "log_every": 1, "eval_episodes": 0}
    settings |= TINY | {"compile": "off", "tensorboard": False, "threads": 1, "out": str(tmp_path / "run"), "steps": 7}
    before: dict[str, Tensor] = {}
    for step in range(1, 8):
        run = td3_bc.train(build(td3_bc.Config, settings), callback=lambda run, step=step: run.step == step)
        loaded = checkpoint.load_checkpoint(run.directory / "checkpoints")
        assert loaded is not None
        agents = loaded[1]["agents"]
        moved = {name.split(".")[1] for name in before if not torch.equal(before[name], agents[name])}
        policy = {"actor", "actor_moments", "target_actor", "target_critic"} if step in (3, 6) else set()
        assert moved == ({"critic", "critic_moments", "step"} | policy if before else set())
        before = agents
    # The first row of metrics is the first that has the policy's.
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "train/actor_loss" in rows[0]
    assert [row.split(",")[0] for row in rows[1:]] == ["3", "4", "5", "6", "7"]


def test_the_policy_and_the_targets_move_together_and_only_then() -> None:
    config = td3_bc.Config(**TINY)
    net = td3_bc.build_net(SPEC, config)
    state = td3_bc.init(net, config, rng.key(0, "init"))
    new, metrics, _ = td3_bc.update(net, config, state, batch_of(8), rng.key(0, "update"), policy=False)
    assert_equal(
        (new.actor, new.target_actor, new.target_critic), (state.actor, state.target_actor, state.target_critic)
    )
    assert "actor_loss" not in metrics
    both, metrics, _ = td3_bc.update(net, config, state, batch_of(8), rng.key(0, "update"), policy=True)
    assert_equal(both.critic, new.critic)
    assert {"actor_loss", "imitation_loss", "critic_loss"} <= metrics.keys()


def test_normalized_observations_and_rewards_reach_every_network() -> None:
    config = td3_bc.Config(target_noise=0.0, **TINY)
    net = td3_bc.build_net(SPEC, config)
    facts = td3_bc.Facts(
        torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 3.0, 0.5]), torch.tensor(3.0), torch.tensor(-1.0)
    )
    state = td3_bc.init(net, config, rng.key(0, "init"), facts)
    plain = td3_bc.init(net, config, rng.key(0, "init"))
    batch = batch_of(16)
    seen = batch._replace(obs=facts.see(batch.obs), next_obs=facts.see(batch.next_obs), reward=3.0 * batch.reward - 1.0)
    key = rng.key(0, "update")
    a, b = (td3_bc.update(net, config, s, x, key, policy=True)[0] for s, x in ((state, batch), (plain, seen)))
    assert_equal((a.actor, a.critic), (b.actor, b.critic))
    first = torch.ones(16, dtype=torch.bool)
    acted = [
        td3_bc.act(net, config, s, (), o, first, key, explore=False)[0] for s, o in ((a, batch.obs), (b, seen.obs))
    ]
    assert torch.equal(*acted)


CONFIG = td3_bc.Config(seeds=(0, 1, 1), alpha=(0.0, 2.5, 5.0), critic_lr=(1e-3, 3e-4, 3e-4), **TINY)


def test_population_equals_single() -> None:
    assert_population_equals_single(td3_bc, CONFIG)


@pytest.mark.compiled
def test_compiled_equals_eager() -> None:
    assert_compiled_equals_eager(td3_bc, dataclasses.replace(CONFIG, hidden=(16,)))


@pytest.mark.parametrize(
    ("settings", "text"), [({"alpha": -1.0}, "alpha"), ({"policy_delay": 0}, "policy_delay"), ({"tau": 2.0}, "tau")]
)
def test_wrong_settings(settings: dict, text: str) -> None:
    with pytest.raises(DeeprlError, match=text):
        td3_bc.Config(**settings)
