"""WSRL and RLPD: what is taken over from a run, warm-up, mixed batches, updates by hand, resume, wrong input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import offline_helpers
import pytest
import torch
from helpers import BATCH, CRITIC, ONE, SPEC, assert_equal, batch_of
from offline_helpers import write_made
from run_helpers import assert_same_run, final, rows, status, train_with_stops
from torch import nn

import deeprl
from deeprl import nets
from deeprl.commands.main import main
from deeprl.config import build
from deeprl.core import rng
from deeprl.core.population import member
from deeprl.core.spec import Transition
from deeprl.errors import DeeprlError
from deeprl.offline import rlpd, wsrl
from deeprl.replay import Replay, Stored
from deeprl.replay.returns import ReturnsToGo
from deeprl.replay.samplers import mixed
from deeprl.run import own_losses, pretrained
from deeprl.run.trained import algorithm_module, load_population

ENV = "offline_helpers:MadeLinear-v0"
RUN = {"batch_size": 8, "eval_episodes": 1, "compile": "off", "threads": 1, "tensorboard": False, "log_every": 5}
SMALL = {"actor_hidden": (8,), "critic_hidden": (8,), "critics": 4, "critic_layer_norm": True, "actor_layer_norm": True}
SOURCES: dict[str, dict[str, Any]] = {
    "cql": SMALL
    | {"bc_steps": 0, "sampled_actions": 2, "target_critics": 2, "normalize_obs": "obs", "rewards": "minus-one"},
    "edac": {"hidden": (8,), "critics": 3},
    "iql": {"hidden": (8,)},
    "iql deterministic": {"hidden": (8,), "actor": "deterministic"},
    "td3_bc": {"hidden": (8,)},
    "bc": {"hidden": (8,)},
}
ONLINE = RUN | {"steps": 24, "learning_starts": 10, "utd": 2.0, "policy_delay": 2, "policy_batches": 2}
ONLINE |= {"eval_every": 12, "buffer_size": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_made(tmp_path_factory.mktemp("data") / "made.npz")


@pytest.fixture(scope="module")
def before(data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that learned offline, made when asked for: seeds 0 and 1, snapshots at 8."""
    place = tmp_path_factory.mktemp("before")

    def run(kind: str) -> Path:
        out = place / kind.replace(" ", "_")
        if not out.exists():
            settings = SOURCES[kind] | RUN | {"steps": 12, "eval_every": 12, "snapshot_every": 8, "seeds": (0, 1)}
            deeprl.train(kind.split(maxsplit=1)[0], dataset=data, env=ENV, out=str(out), **settings)
        return out

    return run


def settings_of(out: Path, **settings: Any) -> wsrl.Config:
    return build(wsrl.Config, ONLINE | {"seeds": (0, 1), "out": str(out)} | settings)


def first_state(out: Path, **settings: Any) -> Any:
    """The population of a run that is stopped in its warm-up."""
    deeprl.train("wsrl", callback=lambda run: True, **(ONLINE | {"seeds": (0, 1), "out": str(out)} | settings))
    return load_population(out)


# --- what is taken over ---


@pytest.mark.parametrize("kind", SOURCES)
def test_agents_begin_as_those_of_their_seeds_were(kind: str, before: Any, tmp_path: Path) -> None:
    source = load_population(before(kind))
    found = first_state(tmp_path / "run", init=str(before(kind)), new_critics=kind == "bc")
    obs, first = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.bool)
    for i in range(2):
        ours, theirs = member(found.state, i), member(source.state, i)
        key = rng.key(0, "eval")
        acted = found.act()(ours, (), obs, first, key)[0]
        torch.testing.assert_close(acted, source.act()(theirs, (), obs, first, key)[0], rtol=0, atol=1e-6)
        assert_equal(ours.facts, theirs.facts)
        if kind != "bc":
            assert_equal(
                (ours.critic, ours.target_critic, ours.critic_moments),
                (theirs.critic, theirs.target_critic, theirs.critic_moments),
            )
        if kind in ("cql", "edac"):
            assert_equal((ours.actor_moments, ours.log_alpha), (theirs.actor_moments, theirs.log_alpha))
            (m,), (v,) = ours.alpha_moments.m.values(), ours.alpha_moments.v.values()
            assert [m, v] == [*theirs.alpha_moments.m.values(), *theirs.alpha_moments.v.values()]
            assert float(ours.alpha_moments.beta1_power) == pytest.approx(0.9**12)
        else:  # the temperature of a new agent, and an optimizer that has done nothing
            assert float(ours.log_alpha) == 0.0
            assert float(ours.actor_moments.beta1_power) == 1.0
        if kind == "iql":
            assert torch.equal(ours.actor["raw_log_std"], theirs.actor["raw_log_std"])
        elif kind in ("iql deterministic", "td3_bc", "bc"):
            torch.testing.assert_close(ours.actor["raw_log_std"].exp(), torch.full((2,), 0.1))
    assert not torch.equal(found.state.actor["trunk.0.weight"][0], found.state.actor["trunk.0.weight"][1])


def test_many_agents_begin_from_the_only_one_and_from_a_snapshot(before: Any, data: str, tmp_path: Path) -> None:
    out = tmp_path / "alone"
    settings = SOURCES["td3_bc"] | RUN | {"steps": 12, "eval_every": 12, "snapshot_every": 8, "seeds": (5,)}
    deeprl.train("td3_bc", dataset=data, env=ENV, out=str(out), **settings)
    then, now = load_population(out, step=8), load_population(out)
    for name, step, source in (("then", 8, then), ("now", None, now)):
        init = str(out) if step is None else f"{out}@{step}"
        found = first_state(tmp_path / name, init=init, seeds=(0, 1, 2))
        for i in range(3):
            assert_equal(member(found.state, i).critic, member(source.state, 0).critic)
    assert not torch.equal(then.state.critic["layers.0.weight"], now.state.critic["layers.0.weight"])


def test_agents_begin_from_a_run_each(before: Any, data: str, tmp_path: Path) -> None:
    outs = [str(tmp_path / f"{seed}") for seed in (3, 4)]
    for seed, out in zip((3, 4), outs, strict=True):
        settings = SOURCES["td3_bc"] | RUN | {"steps": 6, "eval_every": 6, "seeds": (seed,)}
        deeprl.train("td3_bc", dataset=data, env=ENV, out=out, **settings)
    found = first_state(tmp_path / "run", init=(outs[1], outs[0]), seeds=(0, 1))
    for i, out in enumerate(reversed(outs)):
        assert_equal(member(found.state, i).critic, member(load_population(out).state, 0).critic)
    with pytest.raises(DeeprlError, match=r"init: .* are of different kinds: algorithm, config"):
        first_state(tmp_path / "other", init=(outs[0], str(before("bc"))), seeds=(0, 1))


def test_a_run_is_complete_without_the_one_it_began_from(before: Any, tmp_path: Path) -> None:
    source = before("cql")
    first_state(tmp_path / "run", init=str(source))
    hidden = source.rename(source.parent / "moved")
    try:
        assert main(["resume", str(tmp_path / "run")]) == 0
    finally:
        hidden.rename(source)
    assert status(tmp_path / "run")["state"] == "finished"
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["config"]["source"]["algorithm"] == "cql"
    assert about["config"]["env"] == ENV


def test_statistics_and_scale_of_rewards_are_those_of_the_source(before: Any, tmp_path: Path) -> None:
    found = first_state(tmp_path / "run", init=str(before("cql")))
    facts = member(found.state, 0).facts
    assert float(facts.value(torch.tensor(3.0))) == 2.0  # minus-one
    assert not torch.equal(facts.obs_mean, torch.zeros(3))


# --- what was recorded before ---


def recorded(out: Path, seeds: tuple[int, ...], env: str = ENV) -> str:
    """A directory with the records of a run of 12 gradient steps, made by hand: all that `records` reads."""
    out.mkdir()
    members = [{"member": i, "seed": seed, "settings": {}} for i, seed in enumerate(seeds)]
    about = {"format": 1, "algorithm": "cql", "config": {}, "members": members}
    about["evaluated_in"] = {"env": env, "env_kwargs": {}, "wrappers": []}
    (out / "config.json").write_text(json.dumps(about))
    (out / "status.json").write_text(json.dumps({"state": "finished", "step": 12}))
    evaluations, metrics = ["step,member,seed,episode,return"], ["step,member,seed,train/q"]
    for i, seed in enumerate(seeds):
        for step in (4, 8, 12):
            evaluations += [f"{step},{i},{seed},{k},{100 * seed + step + k}" for k in (0, 1)]
        metrics += [f"{step},{i},{seed},{seed + step / 10}" for step in (6, 12)]
    for name, lines in (("evaluations.csv", evaluations), ("metrics.csv", metrics)):
        (out / name).write_text("\n".join([*lines, "12,0,0"]))  # the last line is still being written
    return str(out)


def records(**settings: Any) -> list[tuple[Any, ...]]:
    found = pretrained.records(build(wsrl.Config, {"env": ENV} | settings))
    assert all(list(row) == ["step", "member", "seed", "return", "q"] for row in found)
    return [tuple(row.values()) for row in found]


def test_records_of_a_run_are_counted_from_its_end_by_seed(tmp_path: Path) -> None:
    init = recorded(tmp_path / "two", (0, 1))
    of_1 = [(-8, 104.5, ""), (-6, "", 1.6), (-4, 108.5, ""), (0, 112.5, 2.2)]
    of_0 = [(-8, 4.5, ""), (-6, "", 0.6), (-4, 8.5, ""), (0, 12.5, 1.2)]
    expected = [(step, i, 1 - i, ret, q) for i, own in enumerate((of_1, of_0)) for step, ret, q in own]
    assert records(init=init, seeds=(1, 0)) == expected


def test_records_end_at_the_snapshot_and_are_those_of_the_run_of_each_agent(tmp_path: Path) -> None:
    two, one = recorded(tmp_path / "two", (0, 1)), recorded(tmp_path / "one", (3,))
    assert records(init=f"{two}@8", seeds=(0,)) == [(-4, 0, 0, 4.5, ""), (-2, 0, 0, "", 0.6), (0, 0, 0, 8.5, "")]
    of_3 = [(-8, 304.5, ""), (-6, "", 3.6), (-4, 308.5, ""), (0, 312.5, 4.2)]
    many = records(init=one, seeds=(0, 1, 2))
    assert many == [(step, i, i, ret, q) for i in range(3) for step, ret, q in of_3]
    each = records(init=(f"{two}@8", one), seeds=(0, 1))
    assert each == records(init=f"{two}@8", seeds=(0,)) + many[4:8]


def test_records_without_evaluations_in_this_environment_and_without_q(tmp_path: Path) -> None:
    init = recorded(tmp_path / "run", (0,), env="Pendulum-v1")
    assert records(init=init, seeds=(0,)) == [(-6, 0, 0, "", 0.6), (0, 0, 0, "", 1.2)]
    (tmp_path / "run" / "metrics.csv").write_text("step,member,seed,train/loss\n6,0,0,1.0\n")
    assert records(init=init, seeds=(0,)) == []
    (tmp_path / "run" / "metrics.csv").write_text("step,member,seed,train/q\n6,0,0,high\n")
    with pytest.raises(DeeprlError, match=r"metrics\.csv row 2 is broken"):
        records(init=init, seeds=(0,))


def test_agents_from_runs_that_differ_in_their_seed_alone_are_samples_of_one_cell(data: str, tmp_path: Path) -> None:
    """Wherever these lie; another step or setting of the run before makes another cell."""
    offline = SOURCES["bc"] | RUN | {"steps": 12, "snapshot_every": 8, "dataset": data, "env": ENV, "eval_every": 0}
    runs = {}
    for name, own in {"a": {"seeds": (0,)}, "b": {"seeds": (1,)}, "c": {"seeds": (1,), "actor_lr": 0.1}}.items():
        runs[name] = str(deeprl.train("bc", out=str(tmp_path / name), **(offline | own)).directory)

    def cells(name: str, *inits: str) -> list[str]:
        own = {"init": inits, "seeds": (0, 1), "new_critics": True, "out": str(tmp_path / name), "eval_every": 0}
        own |= {"critics": 2, "critic_hidden": (8,), "steps": 12}
        deeprl.train("wsrl", **(ONLINE | own))
        shutil.rmtree(tmp_path / name / "checkpoints")  # what it was is in its record
        return [row["cell"] for row in deeprl.results(tmp_path / name)]

    same = cells("same", runs["a"], runs["b"])
    assert len(set(same)) == 1
    assert len(set(cells("other step", runs["a"], runs["b"] + "@8"))) == 2
    assert len(set(cells("other setting", runs["a"], runs["c"]))) == 2
    (tmp_path / "elsewhere").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert cells("moved", *(str(tmp_path / "elsewhere" / name) for name in ("a", "b"))) == same


def test_records_are_written_when_a_run_begins_and_not_when_it_resumes(before: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first_state(out, init=str(before("cql")))
    file = out / "pretraining.csv"
    written = file.read_bytes()
    assert [(row["step"], row["member"]) for row in rows(file)] == [
        *[("-7", "0"), ("-2", "0"), ("0", "0")],  # metrics at 5, 10 and 12, where there is an evaluation too
        *[("-7", "1"), ("-2", "1"), ("0", "1")],
    ]
    (before_it,) = (row for row in rows(before("cql") / "evaluations.csv") if row["member"] == "1")
    assert rows(file)[-1]["return"] == before_it["return"]
    file.write_text("mine\n")
    shutil.copytree(out, tmp_path / "resumed")
    settings = ONLINE | {"seeds": (0, 1), "init": str(before("cql"))}
    deeprl.train("wsrl", callback=lambda run: True, **settings, out=str(tmp_path / "resumed"))
    assert (tmp_path / "resumed" / "pretraining.csv").read_text() == "mine\n"
    shutil.rmtree(out / "checkpoints")
    deeprl.train("wsrl", callback=lambda run: True, **settings, out=str(out))
    assert file.read_bytes() == written


# --- warm-up and schedule ---


def test_the_policy_warms_up_then_learns_once_for_utd_updates_of_the_critics(before: Any, tmp_path: Path) -> None:
    before_it = load_population(before("cql"))
    at: dict[int, Any] = {}

    def look(run: Any) -> None:
        if run.step in (10, 11, 14):
            run.save()
            at[run.step] = final(run.directory)[1]

    deeprl.train(
        "wsrl", callback=look, **(ONLINE | {"seeds": (0, 1), "out": str(tmp_path), "init": str(before("cql"))})
    )
    power = {step: agents["state.actor_moments.beta1_power"][0] for step, agents in at.items()}
    critics = {step: agents["state.critic_moments.beta1_power"][0] for step, agents in at.items()}
    assert torch.equal(at[10]["state.critic.layers.0.weight"], before_it.state.critic["layers.0.weight"])
    for step, updates in ((10, 0), (11, 1), (14, 4)):
        assert float(power[step]) == pytest.approx(0.9 ** (12 + updates), rel=1e-4)
        assert float(critics[step]) == pytest.approx(0.9 ** (12 + 2 * updates), rel=1e-4)


def test_the_replay_begins_with_the_policy_and_holds_nothing_else(before: Any, data: str, tmp_path: Path) -> None:
    for name, more in (("warm", {"init": str(before("td3_bc")), "init_std": 1e-6}), ("scratch", SMALL)):
        replay: dict[str, Any] = {}

        def look(run: Any, replay: dict[str, Any] = replay) -> None:
            replay["data"], replay["size"] = run._attached["replay"].data, run._attached["replay"].size

        deeprl.train("wsrl", env=ENV, callback=look, **(ONLINE | {"seeds": (0,), "out": str(tmp_path / name)} | more))
        assert int(replay["size"]) == 24  # steps of its own, and no row of a dataset
        rows_ = Stored(*(array[0, :10] for array in replay["data"]))
        policy = deeprl.load(before("td3_bc"), seed=0)
        same = np.allclose(policy(rows_.obs.numpy()), rows_.action.numpy(), atol=1e-4)
        assert same == (name == "warm")


# --- batches ---


def test_mixed_batches_hold_the_share_that_is_asked_for() -> None:
    def table(first: float, count: int) -> Stored:
        number = torch.arange(first, first + count)
        flags = torch.zeros(count, dtype=torch.bool)
        return Stored(number[:, None], number[:, None], number, flags, flags, number[:, None])

    online, offline = table(0.0, 50), table(100.0, 50)
    drawn = [
        mixed(
            (online, torch.tensor(7)),
            (offline, torch.tensor(10), torch.tensor(5)),
            share,
            rng.key(0, "sample", i),
            8,
            0.9,
        )[0]
        for share in (0.25, 1.0, 0.0)
        for i in range(60)
    ]
    few, all_, none = (torch.stack([batch.reward for batch in drawn[60 * k : 60 * k + 60]]) for k in range(3))
    assert set(few[:, :2].flatten().tolist()) == {110.0, 111.0, 112.0, 113.0, 114.0}
    assert set(few[:, 2:].flatten().tolist()) == set(map(float, range(7)))
    assert float(all_.min()) >= 110.0
    assert float(none.max()) < 7.0
    # The parts have keys of their own: rows of one do not tell those of the other.
    assert len({tuple(row) for row in (few[:, :2].long() % 5).tolist()}) > 5
    alone = mixed((online, torch.tensor(7)), None, 0.5, rng.key(0, "sample", 0), 8, 0.9)[0]
    assert alone.reward.shape == (8,)
    assert float(alone.reward.max()) < 7.0


def test_drawn_critics_with_and_without_repetition() -> None:
    twice = torch.stack([nets.drawn_critics(rng.key(s, "update"), 10, 2) for s in range(2000)])
    once = torch.stack([nets.drawn_critics(rng.key(s, "update"), 10, 2, twice=False) for s in range(2000)])
    same = (twice[:, 0] == twice[:, 1]).float().mean()
    assert 0.075 < float(same) < 0.125  # 1 / 10, standard error 0.0067
    assert not (once[:, 0] == once[:, 1]).any()
    for drawn in (twice, once):
        counts = torch.bincount(drawn.flatten(), minlength=10)
        assert counts.min() > 300  # 400 expected, deviation 19
        assert counts.max() < 500


def test_some_critics_are_those_of_their_numbers_also_of_networks_that_cannot_leave_any_out() -> None:
    class Plain(nn.Module):
        def __init__(self, inner: nets.CriticEnsemble):
            super().__init__()
            self.inner = inner

        def forward(self, obs: torch.Tensor, action: torch.Tensor) -> Any:
            return self.inner(obs, action)

    critic = nets.CriticEnsemble(3, 2, (8, 8), 5, layer_norm="before")
    batch, which = batch_of(7), torch.tensor([4, 1, 4])
    params = dict(critic.named_parameters())
    whole = critic(batch.obs, batch.action)
    some = nets.some_qs(critic, params, batch.obs, batch.action, which)
    torch.testing.assert_close(some, whole[which], rtol=1e-5, atol=1e-6)
    plain = {f"inner.{name}": p for name, p in params.items()}
    assert torch.equal(nets.some_qs(Plain(critic), plain, batch.obs, batch.action, which), whole[which])


# --- updates ---


class Still(nn.Module):
    """A policy that does nothing, for certain."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.w)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.w * obs, torch.full_like(obs, -30.0)


def by_hand(**settings: Any) -> tuple[wsrl.Net, wsrl.Config, wsrl.State]:
    """The linear critics of `helpers`, whose values at a = 0 are Q_1 = 1, 2 and Q_2 = 1, 1 on the rows of BATCH."""
    config = wsrl.Config(critics=2, tau=0.5, critic_lr=0.1, init_alpha=0.5, **settings)
    net = wsrl.Net(Still(), nets.CriticEnsemble(1, 1, (), 2), ONE, None, 2)
    state = wsrl.init(net, config, rng.key(0, "init"))
    return net, config, state._replace(critic=CRITIC, target_critic=CRITIC)


def test_critic_update_by_hand() -> None:
    # Row 2 has discount 0. Row 1: both targets are 1, so that it does not matter which are drawn: 1 + 0.9 * 1 = 1.9.
    net, config, state = by_hand(target_critics=1)
    new, metrics, _ = wsrl.update(net, config, state, BATCH, rng.key(0, "update"))
    assert float(metrics["td_target"]) == pytest.approx((1.9 + 1.0) / 2)
    # Q_1 = 2, 1 and Q_2 = 1.5, 0.5: squares 0.01, 0 and 0.16, 0.25, means over rows, summed over critics
    assert float(metrics["critic_loss"]) == pytest.approx((0.01 + 0.0) / 2 + (0.16 + 0.25) / 2)
    assert float(metrics["q"]) == pytest.approx((2 + 1 + 1.5 + 0.5) / 4)
    # Adam's first step is lr * sign: Q_1's bias has slope 2 * mean(0.1, 0) > 0, Q_2's 2 * mean(-0.4, -0.5) < 0.
    torch.testing.assert_close(new.critic["layers.0.bias"], torch.tensor([[-0.1], [1.1]]))
    torch.testing.assert_close(new.target_critic["layers.0.bias"], torch.tensor([[-0.05], [1.05]]))
    assert int(new.step) == int(state.step) + 1
    assert_equal((new.actor, new.log_alpha), (state.actor, state.log_alpha))


def test_targets_are_of_the_critics_drawn_and_count_entropy_if_asked() -> None:
    high = {
        k: torch.where(torch.tensor([[[1.0]], [[0.0]]]).reshape(-1, *[1] * (v.dim() - 1)) > 0, v, v)
        for k, v in CRITIC.items()
    }
    high["layers.0.bias"] = torch.tensor([[10.0], [1.0]])  # Q'_1 = 11, Q'_2 = 1 on row 1
    found = set()
    for number in range(30):
        net, config, state = by_hand(target_critics=1)
        batch = BATCH._replace(discount=torch.tensor([0.9, 0.9]))
        metrics = wsrl.update(net, config, state._replace(target_critic=high), batch, rng.key(0, "update", number))[1]
        found.add(round(float(metrics["td_target"]), 4))
    # (1 + 0.9 * 11 + 1 + 0.9 * 12) / 2 of the first, (1 + 0.9 + 1 + 0.9) / 2 of the second
    assert found == {round((10.9 + 11.8) / 2, 4), 1.9}
    net, config, state = by_hand(target_critics=2, drawn_twice=False)
    plain = wsrl.update(net, config, state, BATCH, rng.key(0, "update"))[1]["td_target"]
    net, config, state = by_hand(target_critics=2, drawn_twice=False, backup_entropy=True)
    lower = wsrl.update(net, config, state, BATCH, rng.key(0, "update"))[1]["td_target"]
    # alpha = 0.5, discounts 0.9 and 0, and log pi of a policy with log sigma = -30 is far above 20.
    assert float(lower) < float(plain) - 0.9 * 0.5 * 20 / 2


def test_policy_climbs_the_minimum_or_the_mean() -> None:
    slopes = {}
    for value in ("min", "mean"):
        net, config, state = by_hand(policy_value=value)
        state = state._replace(log_alpha=torch.tensor(-100.0))  # alpha = 0
        # On obs 1: action a = tanh(w), Q_1 = 1 + 2 a, Q_2 = 1 + a - 0.5 with this bias: the minimum is Q_2.
        critic = CRITIC | {"layers.0.bias": torch.tensor([[0.0], [0.5]])}
        state = state._replace(critic=critic)
        obs = torch.tensor([[1.0]])
        slope = torch.func.grad(
            lambda a, n=net, c=config, s=state, o=obs: wsrl.actor_loss(a, n, c, s, o, rng.key(0, "update"))[0]
        )(state.actor)
        slopes[value] = float(slope["w"])
    assert slopes["min"] == pytest.approx(-1.0, abs=1e-4)
    assert slopes["mean"] == pytest.approx(-1.5, abs=1e-4)


def test_temperature_moves_towards_the_target_entropy() -> None:
    net, config, state = by_hand()
    new, metrics, _ = wsrl.update_policy(net, config, state, BATCH, rng.key(0, "update"))
    assert float(metrics["entropy"]) < -20.0  # far below the target, -1
    assert float(metrics["alpha"]) == pytest.approx(0.5)
    assert float(new.log_alpha) == pytest.approx(float(state.log_alpha) + 1e-4, abs=1e-7)
    assert int(new.step) == int(state.step)


def test_rlpd_is_the_same_loop_under_other_settings() -> None:
    config = rlpd.Config(seeds=(0,))
    net = rlpd.build_net(SPEC, config)
    state = rlpd.init(net, config, rng.key(0, "init"))
    assert float(state.hparams["target_entropy"]) == -1.0  # -A / 2
    assert float(wsrl.init(net, wsrl.Config(), rng.key(0, "init")).hparams["target_entropy"]) == -2.0
    kinds = [type(layer).__name__ for layer in net.actor.trunk]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert len(net.critic.norms) == 2
    assert not torch.stack(
        [p.abs().max() for n, p in state.critic.items() if n.startswith("layers") and "bias" in n]
    ).any()


# --- runs ---


def test_rlpd_learns_from_its_dataset_and_its_replay(data: str, tmp_path: Path) -> None:
    settings = ONLINE | {"seeds": (0, 1), "env": ENV, "dataset": data} | SMALL
    deeprl.train("rlpd", out=str(tmp_path), **settings)
    assert status(tmp_path)["state"] == "finished"
    last = rows(tmp_path / "metrics.csv")[-1]
    assert {f"train/{name}" for name in ("critic_loss", "q", "td_target", "actor_loss", "entropy", "alpha")} <= set(
        last
    )
    assert deeprl.load(tmp_path, seed=1)(np.zeros(3)).shape == (2,)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_stopped_run_goes_on_exactly(keep: float, before: Any, data: str, tmp_path: Path) -> None:
    more = {"init": str(before("cql")), "keep_data": keep, "dataset": data if keep else ""}
    train_with_stops(settings_of(tmp_path / "whole", **more), [], wsrl)
    train_with_stops(settings_of(tmp_path / "stopped", **more), [6, 13, 20], wsrl)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_agent_alone_equals_agent_in_a_loop_population(before: Any, data: str, tmp_path: Path) -> None:
    more = {"init": str(before("cql")), "keep_data": 0.5, "dataset": data, "backend": "loop", "critic_lr": (1e-3, 1e-2)}
    train_with_stops(settings_of(tmp_path / "both", **more), [], wsrl)
    train_with_stops(settings_of(tmp_path / "alone", **(more | {"seeds": (1,), "critic_lr": 1e-2})), [], wsrl)
    both, alone = (final(tmp_path / name)[1] for name in ("both", "alone"))
    assert not [name for name in alone if not torch.equal(both[name][1], alone[name][0])]


@pytest.mark.compiled
def test_compiled_equals_eager(before: Any, data: str, tmp_path: Path) -> None:
    more = {"init": str(before("cql")), "keep_data": 0.5, "dataset": data}
    for compiled in ("on", "off"):
        train_with_stops(settings_of(tmp_path / compiled, compile=compiled, **more), [], wsrl)
    on, off = (final(tmp_path / name)[1] for name in ("on", "off"))
    for name in (n for n in on if ".critic." in n or ".actor." in n):
        torch.testing.assert_close(on[name], off[name], rtol=1e-3, atol=1e-4)


def test_the_command_line_takes_it_from_a_run(before: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "wsrl", "--from", f"{before('cql')}@8", "--seeds", "0-1", "--out", str(tmp_path / "run")]
    words += [
        "--steps",
        "12",
        "--learning-starts",
        "10",
        "--batch-size",
        "8",
        "--eval-episodes",
        "1",
        "--no-tensorboard",
    ]
    assert main(words) == 0
    assert "finished at step 12" in capsys.readouterr().out
    assert main([*words, "--dry-run"]) == 0
    assert "2 agents" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1"]) == 0


# --- the losses of the algorithm before ---

OWN = RUN | {"steps": 24, "learning_starts": 10, "utd": 2.0, "eval_every": 12, "buffer_size": 100, "loss": "own"}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_algorithm_before_goes_on_with_its_own_losses(kind: str, before: Any, data: str, tmp_path: Path) -> None:
    more = {"init": str(before(kind)), "keep_data": 0.5, "seeds": (0, 1)}  # of the dataset that it had
    run = deeprl.train("wsrl", out=str(tmp_path), **(OWN | more))
    assert run.updates == 28
    found, source = load_population(tmp_path), load_population(before(kind))
    assert type(found.state) is type(source.state)
    assert found.state.step.tolist() == [12 + 28] * 2
    assert_equal(found.state.hparams, source.state.hparams)
    assert not torch.equal(found.state.actor["trunk.0.weight"], source.state.actor["trunk.0.weight"])
    assert json.loads((tmp_path / "config.json").read_text())["config"]["dataset"] == data


def test_penalties_fall_in_a_line(before: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 steps offline, then 24 * 2 updates: at step 12 + 24 half of the way to 0.5 is done, so they count 0.75."""
    seen: dict[str, Any] = {}
    for name, hparam, expected in (("td3_bc", "alpha", 2.5 / 0.75), ("cql", "cql_alpha", 5.0 * 0.75)):
        config = build(wsrl.Config, OWN | {"init": str(before(name)), "penalty_end": 0.5})
        config = pretrained.with_source(config, wsrl.SOURCES)
        net, state = pretrained.source_net(SPEC, config, None, "cpu"), member(load_population(before(name)).state, 0)

        def update(net: Any, settings: Any, state: Any, *rest: Any, **choice: bool) -> Any:
            seen["hparams"] = state.hparams
            return state, {}, ()

        with monkeypatch.context() as patch:
            patch.setattr(algorithm_module(name), "update", update)
            turns = own_losses.updates(net, config)
            for step in (12, 36, 60, 99):
                at = state._replace(step=torch.tensor(step))
                new = turns[-1](at, batch_of(4), rng.key(0, "update"), None)[0]
                if step == 36:
                    assert float(seen["hparams"][hparam]) == pytest.approx(expected)
                assert_equal(new.hparams, state.hparams)
        weight = {"td3_bc": 1 / 0.5, "cql": 0.5}[name]
        assert float(seen["hparams"][hparam]) == pytest.approx(float(state.hparams[hparam]) * weight)


def test_deterministic_policies_explore_with_noise(before: Any, tmp_path: Path) -> None:
    for name, noise in (("none", 0.0), ("some", 0.3)):
        more = {"init": str(before("td3_bc")), "exploration_noise": noise, "steps": 12, "seeds": (0,)}
        replay: dict[str, Any] = {}

        def look(run: Any, replay: dict[str, Any] = replay) -> None:
            replay["data"] = run._attached["replay"].data

        deeprl.train("wsrl", out=str(tmp_path / name), callback=look, **(OWN | more))
        seen = Stored(*(array[0, :10] for array in replay["data"]))
        policy = deeprl.load(before("td3_bc"), seed=0)
        apart = np.abs(policy(seen.obs.numpy()) - seen.action.numpy())
        assert (apart.max() < 1e-5) == (noise == 0.0)
        assert apart.max() < 5 * max(noise, 1e-5)


def test_cal_ql_goes_on_exactly_and_knows_its_own_returns(data: str, tmp_path: Path) -> None:
    out = tmp_path / "before"
    offline = SOURCES["cql"] | RUN | {"steps": 12, "eval_every": 12, "seeds": (0, 1), "calibrated": True}
    deeprl.train("cql", dataset=data, env=ENV, out=str(out), discount=(0.9, 0.5), **offline)
    more = {
        "init": str(out),
        "keep_data": 0.5,
        "learning_starts": 16,
        "utd": 1.0,
        "steps": 34,
        "seeds": (0, 1),
        "buffer_size": 30,
    }
    seen: dict[str, Any] = {}

    def look(run: Any) -> bool:
        if run.step == 29:  # one whole episode of 20 steps, and 9 steps of the next
            seen["reward"] = run._attached["replay"].data.reward.clone()
            seen["returns"] = run._attached["returns"].values.clone()
        return False

    wsrl.train(build(wsrl.Config, OWN | more | {"out": str(tmp_path / "whole")}), callback=look)
    for agent, discount in ((0, 0.9), (1, 0.5)):
        reward = seen["reward"][agent, :20] - 1.0  # minus-one, as the critics learn them
        expected = [float((reward[t:] * discount ** torch.arange(20.0 - t)).sum()) for t in range(20)]
        torch.testing.assert_close(seen["returns"][agent, :20], torch.tensor(expected), rtol=1e-5, atol=1e-5)
        assert seen["returns"][agent, 20:].tolist() == [-float("inf")] * 10
    train_with_stops(build(wsrl.Config, OWN | more | {"out": str(tmp_path / "stopped")}), [13, 31], wsrl)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert "train/below_return" in rows(tmp_path / "whole" / "metrics.csv")[-1]


def test_returns_of_episodes_that_all_fail_alike() -> None:
    replay = Replay(1, 6, ONE, 2)
    scaled = torch.ones(1), torch.zeros(1), torch.tensor([0.5])
    dense, sparse = ReturnsToGo(replay, *scaled), ReturnsToGo(replay, *scaled, sparse=True)
    ends = [(False, False), (True, False), (False, True), (False, False)]
    for number, ended in enumerate(ends):
        end = np.array([ended])
        reward = np.array([[-1.0, float(number)]])
        zeros = np.zeros((1, 2, 1))
        rows_ = replay.add(Transition(zeros, zeros, reward, end, end & False, zeros))
        for returns in (dense, sparse):
            returns.add(rows_)
    # Rows: step 4 took the place of step 1; environment 0 has rows 0, 2, 4: -1 open, -1 alone at its end, -1 open.
    minus = -float("inf")
    assert dense.values[0].tolist() == [minus, minus, -1.0, 1.0 + 0.5 * 2.0, minus, 2.0]
    assert sparse.values[0].tolist() == [minus, minus, -2.0, 2.0, minus, 2.0]
    dense.cut(np.array([[True, False]]))  # the environment began anew: -1 - 0.5 in the step before
    assert dense.values[0].tolist() == [-1.0, minus, -1.0, 2.0, -1.5, 2.0]


# --- wrong input: one line, and nothing is written ---


class Wide(offline_helpers.Linear):
    """The same with other bounds."""

    action_space = offline_helpers.gym.spaces.Box(-2.0, 2.0, (2,), np.float32)


if "MadeWide-v0" not in offline_helpers.gym.registry:
    offline_helpers.gym.register("MadeWide-v0", Wide, max_episode_steps=20)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"init": "cql", "env": "Pendulum-v1"}, r"init: numbers of an action of Pendulum-v1: 1; .* has 2"),
        ({"init": "cql", "env": "MadeWide-v0"}, r"init: lower bounds of actions of MadeWide-v0"),
        ({"init": "bc"}, r"init: a run of bc has no critic; --new-critics begins with others"),
        ({"init": "nowhere"}, r"nowhere is no run directory"),
        ({"init": "cql@7"}, r"has no snapshot of step 7; it has 8"),
        ({"init": "cql", "seeds": (0, 7)}, r"init: 0 agents of .* have seed 7; there are seeds 0, 1"),
        ({"init": "cql", "keep_data": 0.5, "env": "MadeWide-v0", "dataset": "data"}, r"lower bounds of actions"),
        ({"init": "", "keep_data": 0.5, "env": ENV, "dataset": "wide"}, r"actions: bounds .* a dataset of another"),
        ({"init": ""}, r"env: name an environment, or with --from a run that learned offline"),
        ({"init": "", "env": ENV, "dataset": "data"}, r"keep_data: a share above 0 needs a dataset"),
        ({"init": "", "env": ENV, "keep_data": 0.5}, r"keep_data: a share above 0 needs a dataset"),
        ({"init": "cql", "critics": 3}, r"critics: 3 has no effect with the critics of init"),
        ({"init": "", "env": ENV, "new_critics": True}, r"new_critics: without init there is nothing before"),
        ({"init": "cql", "loss": "own", "actor_lr": 1e-3}, r"actor_lr: 0.001 has no effect with loss own"),
        ({"init": "cql", "penalty_end": 0.5}, r"penalty_end: 0.5 has no effect with loss sac"),
        ({"init": "", "env": ENV, "loss": "own"}, r"loss: without init there is nothing before"),
        ({"init": "cql", "policy_batches": 3}, r"policy_batches: 3 are more than policy_delay, 2"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_written(
    settings: dict[str, Any], text: str, before: Any, data: str, tmp_path: Path
) -> None:
    name = settings["init"]
    with h5py.File(tmp_path / "wide.hdf5", "w") as file:
        file.attrs.update({"deeprl": "0.1", "action_low": "[-2.0, -2.0]", "action_high": "[2.0, 2.0]"})
        for column, values in offline_helpers.made().items():
            file[column] = values
    places = {"data": data, "wide": str(tmp_path / "wide.hdf5")}
    settings = settings | {"dataset": places.get(settings.get("dataset", ""), "")}
    if name.partition("@")[0] in SOURCES:
        settings["init"] = str(before(name.partition("@")[0])) + "".join(name.partition("@")[1:])
    usual = OWN if settings.get("loss") == "own" else ONLINE
    with pytest.raises(DeeprlError, match=text):
        deeprl.train("wsrl", **(usual | {"seeds": (0, 1), "out": str(tmp_path / "run")} | settings))
    assert not (tmp_path / "run").exists()


def test_unfinished_and_diverged_agents_are_named(before: Any, data: str, tmp_path: Path) -> None:
    out = tmp_path / "before"
    more = SOURCES["td3_bc"] | RUN | {"steps": 12, "seeds": (0, 1), "critic_lr": (3e-4, 1.0), "snapshot_every": 8}
    deeprl.train("td3_bc", dataset=data, env=ENV, out=str(out), callback=lambda run: run.step == 9, **more)
    with pytest.raises(DeeprlError, match=r"init: .*before is stopped at step 9: resume it until it has finished"):
        first_state(tmp_path / "run", init=str(out))
    first_state(tmp_path / "snapshot", init=f"{out}@8")
    about = json.loads((out / "status.json").read_text())
    frozen = {"member": 1, "seed": 1, "update": 10, "step": 10, "cause": "q"}
    (out / "status.json").write_text(json.dumps(about | {"state": "finished", "frozen": [frozen]}))
    with pytest.raises(DeeprlError, match=r"init: the agent with seed 1 of .*before diverged at step 10"):
        first_state(tmp_path / "run", init=str(out))
    assert not (tmp_path / "run").exists()
    first_state(tmp_path / "healthy", init=str(out), seeds=(0,))


def test_rlpd_does_not_begin_from_a_run() -> None:
    with pytest.raises(DeeprlError, match="init: RLPD begins from scratch"):
        rlpd.Config(init="somewhere")
    assert algorithm_module("rlpd") is rlpd
