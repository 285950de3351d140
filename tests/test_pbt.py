"""Population-based training: who goes on from whom, with which settings, and that an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import SMALL, assert_same_run, final
from torch import Tensor

import deeprl
from deeprl.commands.main import main
from deeprl.config import RunConfig
from deeprl.config.schedules import read_schedule, schedule_text
from deeprl.core.population import cause_code, new_agents
from deeprl.core.spec import EnvSpec
from deeprl.envs.vector import Episode
from deeprl.errors import DeeprlError
from deeprl.offline import cql
from deeprl.online import dqn, sac
from deeprl.replay import make_replay
from deeprl.replay.samplers import Priorities
from deeprl.run.loop import Run
from deeprl.run.selection import Standing, Succession, apply_succession, standings_of
from deeprl.tuning import pbt
from deeprl.tuning.pbt import PbtPlan, PbtResult, exploit, lineage_of, perturbed, read_rounds, schedule_of, train_pbt
from deeprl.tuning.spaces import Space, space_of

TABLES: dict[str, Any] = {
    "lr": {"settings": ["actor_lr", "critic_lr"], "low": 1e-4, "high": 1e-2, "scale": "log"},
    "discount": {"low": 0.9, "high": 0.999, "scale": "complement"},
    "tau": {"low": 0.0, "high": 0.2},
    "alpha_lr": {"choices": [0.0, 1e-4, 1e-3]},
}
SPACE = space_of(TABLES, sac.Config, "here")
# Updates at steps 32, 34, ..; rounds after the evaluations of steps 40 and 60.
RUN: dict[str, Any] = SMALL | {"steps": 80, "eval_every": 20, "eval_episodes": 1, "hidden": (8,), "batch_size": 8}
RUN |= {"utd": 0.5}


def plan_of(out: Any = "", members: int = 4, space: Space = SPACE, **choice: Any) -> PbtPlan:
    own = {"interval": 20, "seed": 1} | {k: v for k, v in choice.items() if k in PbtPlan.__dataclass_fields__}
    more = {k: v for k, v in choice.items() if k not in own}
    config = sac.Config(**(RUN | {"seeds": tuple(range(10, 10 + members)), "out": str(out)} | more))
    return PbtPlan("sac", config, space, **own)


def drawing(monkeypatch: pytest.MonkeyPatch, *numbers: float) -> None:
    """All draws are these."""
    monkeypatch.setattr(pbt, "_numbers", lambda plan, number, member: list(numbers))


# --- who goes on from whom ---


def well(*scores: float) -> list[Standing]:
    return [Standing(score, "", True) for score in scores]


def test_the_worst_share_goes_on_from_one_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(members=8)
    standings = well(5.0, 1.0, 3.0, 8.0, math.nan, 2.0, 7.0, 4.0)  # two are a quarter of eight: best 3, 6; worst 1, 4
    drawing(monkeypatch, 0.49)
    assert exploit(plan, 1, standings) == {1: 3, 4: 3}
    drawing(monkeypatch, 0.51)
    assert exploit(plan, 1, standings) == {1: 6, 4: 6}
    half = dataclasses.replace(plan, share=0.5)  # best 3, 6, 0, 7
    drawing(monkeypatch, 0.99)
    assert exploit(half, 1, standings) == {1: 7, 2: 7, 4: 7, 5: 7}


def test_members_with_equal_scores_rank_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0.0)
    assert exploit(plan_of(), 1, well(1.0, 1.0, 1.0, 1.0)) == {3: 0}
    assert exploit(plan_of(members=2), 1, well(1.0, 2.0)) == {0: 1}  # one at least


def test_all_that_diverged_go_on_from_others_and_none_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0.0)
    frozen = Standing(9.0, "critic_loss", True)  # the best, by what it was before
    assert exploit(plan_of(), 1, [frozen, *well(1.0, 2.0), frozen]) == {0: 2, 3: 2}
    assert exploit(plan_of(members=3), 1, [frozen, frozen, frozen]) == {}
    assert exploit(plan_of(), 1, well(math.nan, math.nan, math.inf, 1.0)) == {0: 3, 1: 3, 2: 3}


def test_one_whose_replay_is_not_finite_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0.0)
    lost = Standing(9.0, "reward", False)
    assert exploit(plan_of(), 1, [lost, *well(1.0, 2.0, 3.0)]) == {1: 3}
    assert exploit(plan_of(members=2), 1, [lost, *well(1.0)]) == {}


# --- with which settings ---

POINT: dict[str, float | str] = {"lr": 1e-3, "discount": 0.05, "tau": 0.1, "alpha_lr": "0.0001"}


def test_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    # a number for the parent, then two for each parameter: below 0.25 it is drawn anew; below 0.5 it goes down
    drawing(monkeypatch, 0.0, 0.25, 0.0, 0.9, 0.5, 0.9, 0.49, 0.9, 0.7)
    found = perturbed(plan, 1, 0, POINT)
    assert found == pytest.approx({"lr": 8e-4, "discount": 0.06, "tau": 0.08, "alpha_lr": "0.001"})
    assert plan.settings(found) == pytest.approx(
        {"actor_lr": 8e-4, "critic_lr": 8e-4, "discount": 0.94, "tau": 0.08, "alpha_lr": 1e-3}
    )
    drawing(monkeypatch, 0.0, 0.24, 0.5, 0.0, 0.5, 0.1, 0.5, 0.2, 0.0)
    # halfway by logarithms between 1e-4 and 1e-2, and between 1 - 0.9 and 1 - 0.999; halfway; the first
    assert perturbed(plan, 1, 0, POINT) == pytest.approx({"lr": 1e-3, "discount": 1e-2, "tau": 0.1, "alpha_lr": "0.0"})
    drawing(monkeypatch, 0.0, *[0.9, 0.9] * 4)
    upper = {"lr": 9e-3, "discount": 0.09, "tau": 0.19, "alpha_lr": "0.001"}
    assert perturbed(plan, 1, 0, upper) == pytest.approx({"lr": 1e-2, "discount": 0.1, "tau": 0.2, "alpha_lr": "0.001"})


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.0, 1.0))
def test_settings_never_leave_their_bounds(seed: int, rounds: int, resample: float) -> None:
    plan = dataclasses.replace(plan_of(), seed=seed, resample=resample)
    for member, point in enumerate(plan.first_points()):
        now = point
        for number in range(1, rounds):
            found = plan.settings(now)
            now = perturbed(plan, number, member, now)
            assert found["actor_lr"] == found["critic_lr"]
            assert 1e-4 <= found["actor_lr"] <= 1e-2
            assert 0.9 <= found["discount"] <= 0.999
            assert 0.0 <= found["tau"] <= 0.2
            assert found["alpha_lr"] in (0.0, 1e-4, 1e-3)


def test_draws_follow_from_seed_round_and_member_alone() -> None:
    places = [(seed, number, member) for seed in (0, 1) for number in (1, 2) for member in (0, 1, 2)]
    drawn = [
        tuple(perturbed(dataclasses.replace(plan_of(), seed=seed, resample=1.0), number, member, POINT).values())
        for seed, number, member in [*places, *places]
    ]
    assert drawn[: len(places)] == drawn[len(places) :]
    assert len(set(drawn)) == len(places)


def test_member_0_begins_with_the_settings_of_the_run_where_they_lie_in_the_space() -> None:
    inside = plan_of(alpha_lr=1e-3).population()
    assert isinstance(inside, sac.Config)
    assert [inside.member(0).actor_lr, inside.member(0).discount] == pytest.approx([3e-4, 0.99])
    assert len(set(inside.actor_lr)) == len(set(inside.tau)) == 4
    outside = plan_of(discount=0.5).population()
    assert isinstance(outside, sac.Config)
    assert 0.9 <= outside.member(0).discount <= 0.999


# --- what a member gets of its parent ---


class Learner(NamedTuple):
    weights: dict[str, Tensor]
    hparams: dict[str, Tensor]
    step: Tensor


def learners(*values: float) -> Any:
    return new_agents(
        [Learner({"w": torch.full((2,), v)}, {"lr": torch.tensor(v / 8)}, torch.tensor(int(v))) for v in values]
    )


def test_a_member_gets_all_but_the_settings_and_is_well_again() -> None:
    agents = learners(1.0, 2.0, 3.0)
    agents.frozen_at[0], agents.cause[0] = 7, cause_code("loss")
    priorities = Priorities(3, 4)
    priorities.values[0, 1] = priorities.largest[0] = math.nan
    apply_succession(agents, Succession({0: 2}, {0: {"lr": 0.5}}, []), {"priorities": priorities})
    assert agents.state.weights["w"].tolist() == [[3.0, 3.0], [2.0, 2.0], [3.0, 3.0]]
    assert agents.state.step.tolist() == [3, 2, 3]
    assert agents.state.hparams["lr"].tolist() == [0.5, 0.25, 0.375]
    assert agents.frozen_at.tolist() == agents.cause.tolist() == [-1, -1, -1]
    assert priorities.values.isfinite().all()
    assert priorities.largest.tolist() == [1.0, 1.0, 1.0]
    apply_succession(agents, Succession({1: 0}, {}, []), {})
    assert agents.state.hparams["lr"].tolist() == [0.5, 0.25, 0.375]  # its own


def test_how_members_stand() -> None:
    agents = learners(1.0, 2.0, 3.0)
    for member in (1, 2):
        agents.frozen_at[member], agents.cause[member] = 7, cause_code("loss")
    replay = make_replay(3, 4, EnvSpec((1,), 1, (-1.0,), (1.0,)))
    replay.data.reward[2, 0] = math.inf
    episodes = [Episode(m, e, float(m + e), 1) for m in range(3) for e in range(2)]
    assert standings_of(agents, episodes, {"replay": replay}) == [
        Standing(0.5, "", True), Standing(1.5, "loss", True), Standing(2.5, "loss", False)
    ]  # fmt: skip


# --- whole runs ---


@pytest.fixture(scope="module")
def bred(tmp_path_factory: pytest.TempPathFactory) -> PbtResult:
    return train_pbt(plan_of(tmp_path_factory.mktemp("bred") / "run", backend="loop"))


def test_what_comes_of_it(bred: PbtResult) -> None:
    rows = read_rounds(bred.directory / "pbt.csv")
    assert [(row["step"], row["member"], row["seed"]) for row in rows] == [
        (step, member, 10 + member) for step in (0, 40, 60) for member in range(4)
    ]
    assert [row["parent"] for row in rows[:4]] == [0, 1, 2, 3]
    for step in (40, 60):
        scores = {row["member"]: row["score"] for row in rows if row["step"] == step}
        parents = {row["member"]: row["parent"] for row in rows if row["step"] == step}
        best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
        assert parents == {member: best if member == worst else member for member in range(4)}
    assert bred.finished
    assert (bred.steps, bred.episodes) == (4 * 80, 4 * 4)
    assert bred.scores.keys() == {0, 1, 2, 3}
    assert bred.scores[bred.best or 0] == max(bred.scores.values())
    assert bred.lineage == lineage_of(rows, bred.best or 0)
    assert bred.schedule is not None
    assert list(read_schedule(bred.schedule)) == schedule_of(bred.lineage)
    hparams = final(bred.directory)[1]
    for member, row in enumerate(rows[-4:]):
        for name in ("actor_lr", "critic_lr", "alpha_lr", "discount", "tau"):
            assert hparams[f"state.hparams.{name}"][member] == torch.tensor(row[name])


def test_called_again_it_reads_what_it_has_come_to(bred: PbtResult) -> None:
    assert train_pbt(plan_of(bred.directory, backend="loop")) == bred


def test_the_settings_of_a_member_that_never_went_on_from_another_replay_it(bred: PbtResult, tmp_path: Path) -> None:
    rows = read_rounds(bred.directory / "pbt.csv")
    moved = {row["member"] for row in rows if row["parent"] != row["member"]}
    member = min({0, 1, 2, 3} - moved)
    file = tmp_path / "schedule.toml"
    file.write_text(schedule_text(schedule_of(lineage_of(rows, member))), encoding="utf-8")
    own = {"seeds": [10 + member], "schedule": file, "out": str(tmp_path / "run"), "backend": "loop"}
    run = deeprl.train("sac", **RUN | own)
    alone, together = final(run.directory)[1], final(bred.directory)[1]
    assert [name for name in alone if not torch.equal(alone[name][0], together[name][member])] == []


DEVICE = {"env_backend": "device", "envs_per_agent": 2, "env_kwargs": {"max_episode_steps": 9}, "utd": 0.25}


def stops(step: int) -> Any:
    return lambda run: run.step >= step  # on the device some steps are done together


@pytest.mark.parametrize("where", [{}, DEVICE], ids=["gymnasium", "device"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(where: dict[str, Any], tmp_path: Path) -> None:
    def asked(out: str) -> PbtPlan:
        return plan_of(tmp_path / out, checkpoint_minutes=0.0, **where)

    def stop_while_evaluating(run: Run) -> None:
        if run.step == 50:  # the next look of the evaluation at step 60 says so
            run._to_stop = lambda: run.step >= 60

    whole = train_pbt(asked("a"))
    parts = train_pbt(asked("b"), callback=stops(40))  # after a round
    assert (parts.finished, parts.lineage, parts.schedule, parts.steps) == (False, [], None, 160)
    train_pbt(asked("b"), callback=stops(44))
    # killed: the records are ahead of the newest checkpoint that is whole
    train_pbt(asked("b"), callback=stops(60))
    newest = sorted((tmp_path / "b" / "checkpoints").iterdir())[-1]
    (newest / "state.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="is broken"):
        stopped = train_pbt(asked("b"), callback=stop_while_evaluating)
    assert not stopped.finished
    assert read_rounds(tmp_path / "b" / "pbt.csv")[-1]["step"] == 40  # the round of step 60 is yet to come
    resumed = train_pbt(asked("b"))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    for name in ("pbt.csv", "schedule.toml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert resumed._replace(directory=whole.directory, schedule=whole.schedule) == whole


def agents_of(run: Run) -> Any:
    return run._attached["agents"].tree


def test_a_member_that_diverged_goes_on_from_another(tmp_path: Path) -> None:
    states: dict[str, Any] = {}

    def spoil(run: Run) -> None:
        if run.step == 32:
            agents_of(run).state.critic["layers.0.bias"][1] = math.nan
        if run.step == 39:
            states["frozen"] = agents_of(run).frozen_at.tolist()
        if run.step == 40:
            states["after"] = agents_of(run).frozen_at.tolist(), list(run.frozen)
            states["actor"] = {k: v.clone() for k, v in agents_of(run).state.actor.items()}

    result = train_pbt(plan_of(tmp_path / "run"), callback=spoil)
    assert states["frozen"] == [-1, 1, -1, -1]
    assert states["after"] == ([-1] * 4, [])
    row = read_rounds(tmp_path / "run" / "pbt.csv")[5]
    assert (row["step"], row["member"], row["cause"] != "", row["parent"] != 1) == (40, 1, True, True)
    assert all(torch.equal(v[1], v[row["parent"]]) for v in states["actor"].values())
    end = final(tmp_path / "run")[1]
    assert end["frozen_at"].tolist() == [-1] * 4
    assert not torch.equal(end["state.actor.trunk.0.weight"][1], states["actor"]["trunk.0.weight"][1])  # it learns
    assert result.scores.keys() == {0, 1, 2, 3}


def test_one_whose_replay_is_not_finite_stays_frozen(tmp_path: Path) -> None:
    def spoil(run: Run) -> None:
        if run.step == 32:
            run._attached["replay"].data.reward[1, :30] = math.nan

    result = train_pbt(plan_of(tmp_path / "run"), callback=spoil)
    rows = read_rounds(tmp_path / "run" / "pbt.csv")
    assert [row["parent"] for row in rows if row["member"] == 1] == [1, 1, 1]
    assert all(row["parent"] != 1 for row in rows if row["member"] != 1)
    assert result.scores.keys() == {0, 2, 3}
    assert int(final(tmp_path / "run")[1]["frozen_at"][1]) >= 0


def test_selection_alone_keeps_all_settings(tmp_path: Path) -> None:
    result = train_pbt(plan_of(tmp_path / "run", explore=False, steps=60, interval=40))
    rows = read_rounds(tmp_path / "run" / "pbt.csv")
    assert {(row["actor_lr"], row["discount"], row["tau"]) for row in rows} == {(3e-4, 0.99, 0.005)}
    assert sum(row["parent"] != row["member"] for row in rows) == 1
    assert [entry["step"] for entry in schedule_of(result.lineage)] == [0]


def test_a_lineage_by_hand() -> None:
    parents = {0: [0, 1, 2], 10: [0, 0, 2], 20: [1, 1, 1]}  # 2 came from 1 at 20, 1 from 0 at 10
    rows = [
        {"step": step, "member": m, "seed": m, "parent": parent, "score": 0.0, "cause": "", "lr": (step + m) / 100}
        for step, own in parents.items()
        for m, parent in enumerate(own)
    ]
    assert lineage_of(rows, 2) == [(0, 0, {"lr": 0.0}), (10, 1, {"lr": 0.11}), (20, 2, {"lr": 0.22})]
    assert schedule_of([*lineage_of(rows, 2), pbt.Ancestor(30, 1, {"lr": 0.22})]) == [
        {"step": 0, "lr": 0.0}, {"step": 10, "lr": 0.11}, {"step": 20, "lr": 0.22}
    ]  # fmt: skip


# --- bad input ---


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"interval": 30}, r"^interval: must be a multiple of eval_every \(20\) below steps \(80\), not 30$"),
        ({"interval": 80}, "^interval: must be a multiple"),
        ({"members": 1}, "^seeds: population-based training needs two"),
        ({"seeds": (1, 1), "actor_lr": (0.1, 0.2)}, "^actor_lr: one value is needed"),
        ({"eval_episodes": 0}, "^eval_every, eval_episodes: members are ranked"),
        ({"share": 0.6}, "^share: must be above 0, and at most 0.5, not 0.6$"),
        ({"resample": 1.5}, "^resample: must be in 0 .. 1, not 1.5$"),
        ({"seed": -1}, r"^seed: must be in 0 .. 2\^32 - 1, not -1$"),
        ({"schedule": ({"step": 0, "tau": 0.1},)}, "^schedule: population-based training makes one"),
        ({"space": {"init_alpha": {"low": 0.1, "high": 1.0}}}, "^init_alpha: init_alpha: is only how an agent starts"),
        ({"space": {"size": {"settings": ["batch_size"], "low": 8, "high": 16}}}, "^size: batch_size: is shared"),
        ({"space": {"target_entropy": {"choices": ["auto", -1.0]}}}, "^target_entropy: population-based .* numbers"),
        ({"space": {"tau": {"low": 0.5, "high": 2.0}}}, "^tau: 2.0 cannot be tried: tau: must be in 0 .. 1, not 2"),
    ],
)
def test_plans_that_cannot_be_done(choice: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "space" in choice:
        choice = choice | {"space": space_of(choice["space"], sac.Config, "here")}
    with pytest.raises(DeeprlError, match=message):
        train_pbt(plan_of(tmp_path / "run", **choice))
    assert not (tmp_path / "run").exists()


def test_settings_that_data_are_prepared_with_cannot_change() -> None:
    config = cql.Config(dataset="none.npz", env="Pendulum-v1", calibrated=True, seeds=(0, 1), steps=50_000)
    space = space_of({"discount": {"low": 0.9, "high": 0.95}}, cql.Config, "here")
    with pytest.raises(DeeprlError, match=r"^discount: discount: data are prepared with it"):
        PbtPlan("cql", config, space, 5000).require()


def test_its_directory_is_refused_to_other_runs(bred: PbtResult, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeeprlError, match="holds another run"):
        train_pbt(plan_of(bred.directory, backend="loop", share=0.5))
    plain: RunConfig = plan_of(bred.directory, backend="loop").population()
    with pytest.raises(DeeprlError, match="is of population-based training, and goes on by the call that began it"):
        sac.train(plain)
    assert main(["resume", str(bred.directory)]) == 2
    assert "population-based training" in capsys.readouterr().err


def test_schedules_of_dqn_can_be_searched() -> None:
    tables = {"epsilon_steps": {"low": 0.1, "high": 0.5, "times_steps": True}}
    config = dqn.Config(steps=1000, learning_starts=100, seeds=(0, 1), eval_every=100)
    plan = PbtPlan("dqn", config, space_of(tables, dqn.Config, "here"), 200)
    plan.require()
    assert all(100.0 <= plan.settings(point)["epsilon_steps"] <= 500.0 for point in plan.first_points())
