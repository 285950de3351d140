"""Searches: what trains together, what is promoted, that nothing is lost or done twice, that seeds stay apart."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deeprl.commands.main import main
from deeprl.config import build
from deeprl.errors import DeeprlError
from deeprl.online.dqn import Config
from deeprl.recipes import with_recipe
from deeprl.reporting.checklist import search_fact
from deeprl.reporting.read import read_runs
from deeprl.tuning.drawing import sampler_of
from deeprl.tuning.evolve import evolve
from deeprl.tuning.halving import cohort, promoted, rungs_of
from deeprl.tuning.pbt import PbtPlan
from deeprl.tuning.spaces import Space, space_of
from deeprl.tuning.study import Plan, Study, StudyStoppedError, best_of
from deeprl.tuning.trials import Group, Score, Trial, groups
from deeprl.tuning.tune import search

TINY = {
    "env": "CartPole-v1",
    "env_backend": "device",
    "steps": 40,
    "eval_every": 10,
    "eval_episodes": 1,
    "learning_starts": 10,
    "hidden": [4],
    "batch_size": 4,
    "compile": "off",
    "tensorboard": False,
    "log_every": 40,
}
LR = space_of({"lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}}, Config, "a test")


def plan_of(space: Space = LR, **own: Any) -> Plan:
    settings = {"trials": 4, "batch": 2, "tuning_seeds": (0, 1), "test_seeds": (7,), "sampler": "random", "last": 1}
    return Plan("dqn", build(Config, TINY), space, **(settings | own))


# --- what trains together ---


def test_trials_and_seeds_are_one_population_where_only_per_agent_settings_differ(tmp_path: Path) -> None:
    trials = [Trial(3, {"lr": 1e-3}), Trial(5, {"lr": 2e-3}), Trial(6, {"lr": 1e-3})]
    (group,) = groups("dqn", build(Config, TINY), trials, (4, 9), tmp_path)
    assert group.planned.config.seeds == (4, 9, 4, 9)
    assert group.planned.config.lr == (1e-3, 1e-3, 2e-3, 2e-3)
    assert group.members == {3: (0, 1), 5: (2, 3), 6: (0, 1)}  # those that are equal share their agents

    trials = [Trial(0, {"hidden": [4], "lr": 1e-3}), Trial(1, {"hidden": [8], "lr": 1e-3})]
    small, large = groups("dqn", build(Config, TINY), trials, (4,), tmp_path)
    assert (small.planned.config.hidden, large.planned.config.hidden) == ((4,), (8,))
    assert small.planned.directory != large.planned.directory


def test_a_trial_of_which_an_agent_diverged_has_no_value() -> None:
    assert Score((1.0, 2.0, 6.0)).value("mean") == 3.0
    assert Score((1.0, 2.0, 3.0, 50.0)).value("iqm") == 2.5
    assert Score((1.0, None, 6.0)).value("mean") is None


# --- halving ---


def test_rungs_lie_at_evaluations() -> None:
    assert rungs_of(9000, 100, 3, 3) == (1000, 3000, 9000)
    assert rungs_of(10_000, 1000, 4, 3) == (1000, 2000, 10_000)  # 625 and 2500, to the nearest evaluation
    with pytest.raises(DeeprlError, match=r"3 of them, by a factor of 3, have no evaluation each: \[50, 50, 100\]"):
        rungs_of(100, 50, 3, 3)


def test_the_best_of_a_cohort_fill_one_population() -> None:
    assert promoted({0: 1.0, 1: 5.0, 2: None, 3: 5.0, 4: 3.0}, places=2) == ([1, 3], [4, 0])
    assert cohort([0, 1, 2, 3, 4], width=2, eta=2, more=True) == ([0, 1, 2, 3], 2)
    assert cohort([0, 1, 2], width=2, eta=2, more=True) == ([], 0)
    assert cohort([0, 1, 2], width=2, eta=2, more=False) == ([0, 1, 2], 1)
    assert cohort([], width=2, eta=2, more=False) == ([], 0)


# --- studies ---


def trained_steps(monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> list[tuple[str, int]]:
    """Which populations are trained from now on, and to which step; instead of one of them Ctrl-C is pressed."""
    found: list[tuple[str, int]] = []
    train = Group.train

    def counted(self: Group, until: int) -> bool:
        if len(found) == stop_at:
            raise KeyboardInterrupt
        found.append((self.planned.directory.parent.name, until))
        return train(self, until)

    monkeypatch.setattr(Group, "train", counted)
    return found


def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials whose value is their learning rate, from now on."""
    monkeypatch.setattr(Group, "train", lambda self, until: True)
    scores = lambda self, last, until: {t.number: Score((t.settings["lr"],) * 2) for t in self.trials}  # noqa: E731
    monkeypatch.setattr(Group, "scores", scores)


def told_by(study: Study) -> list[Any]:
    return [(t.number, t.settings, t.state, t.value, t.seeds, t.steps) for t in study.told()]


def stopped_and_whole(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Study, list[Any]]:
    """A study that Ctrl-C stops in its second population and one that it does not; what was trained after that."""
    whole = Study(plan, tmp_path / "whole")
    assert whole.run()
    with monkeypatch.context() as patched:
        trained_steps(patched, stop_at=1)
        with pytest.raises(KeyboardInterrupt):
            Study(plan, tmp_path / "stopped").run()
    with monkeypatch.context() as patched:
        done = trained_steps(patched)
        again = Study(plan, tmp_path / "stopped")
        assert again.run()
    assert told_by(again) == told_by(whole)
    assert [t.number for t in whole.told()] == list(range(plan.trials))
    return again, whole, done


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "qmc", "nsga2"])
def test_a_study_that_is_stopped_and_called_again_is_the_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    quick_training(monkeypatch)
    plan = plan_of(sampler=sampler, trials=6)
    again, whole, done = stopped_and_whole(plan, tmp_path, monkeypatch)
    assert done == [("0001", 40), ("0002", 40)]
    assert len({t.value for t in whole.told()}) == 6
    with pytest.raises(DeeprlError, match="holds another study"):
        Study(plan_of(sampler=sampler, seed=1), tmp_path / "whole")
    other = Study(plan_of(sampler=sampler, trials=6, seed=1), tmp_path / "other")
    other.run()
    assert told_by(other) != told_by(again)


def test_halving_trains_the_better_trials_on_from_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(scheduler="halving", eta=2, rungs=2)
    again, whole, done = stopped_and_whole(plan, tmp_path, monkeypatch)
    assert done == [("0001", 20), ("0002", 40)]
    at_first = {n: s.value("mean") for b in whole._batches.all()[:2] for n, s in (b.scores() or {}).items()}
    states = {t.number: (t.state, t.steps) for t in whole.told()}
    order = sorted(at_first, key=lambda number: (-(at_first[number] or 0.0), number))
    assert [states[n] for n in order] == [("complete", 40)] * 2 + [("pruned", 20)] * 2
    # Each of the four trials 20 steps, two of them 20 more, with two seeds each; an evaluation each 10 steps.
    assert whole.cost()[:2] == again.cost()[:2] == ((4 * 20 + 2 * 20) * 2, (4 * 2 + 2 * 2) * 2)


def test_trials_that_were_drawn_as_the_process_was_killed_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_training(monkeypatch)
    whole = Study(plan_of(), tmp_path / "whole")
    whole.run()
    with monkeypatch.context() as patched:
        patched.setattr("deeprl.tuning.study.Batches.add", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Study(plan_of(), tmp_path / "killed").run()
    killed = Study(plan_of(), tmp_path / "killed")
    assert killed.run()
    assert told_by(killed) == told_by(whole)


def test_two_processes_share_a_study_and_none_does_what_the_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_training(monkeypatch)
    one, two = Study(plan_of(), tmp_path / "study"), Study(plan_of(), tmp_path / "study")
    with contextlib.ExitStack() as held, contextlib.ExitStack() as other:
        first, second = one._next(held), two._next(other)
        assert first is not None
        assert second is not None
        assert [t.number for t in first.trials] == [0, 1]
        assert [t.number for t in second.trials] == [2, 3]
        drawn = [json.dumps(dict(t.settings)) for t in (*first.trials, *second.trials)]
        assert len(set(drawn)) == 4
        two._train(second)
        assert not two.run()  # the first batch is with another process
    assert two.run()  # which has ended
    assert [t.state for t in one.told()] == ["complete"] * 4


def test_directories_that_share_a_database_share_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two machines do: each has its own runs, and draws by a sampler of its own."""
    quick_training(monkeypatch)
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    one, two = (Study(plan_of(), tmp_path / name, url) for name in ("one", "two"))
    with contextlib.ExitStack() as held:
        first = one._next(held)
        assert first is not None
        assert [t.number for t in first.trials] == [0, 1]
        assert not two.run()  # draws the other two, and the first two are not its own
    assert one.run()
    assert [(t.number, t.state) for t in two.told()] == [(i, "complete") for i in range(4)]
    assert len({t.settings["lr"] for t in two.told()}) == 4
    assert _sampled(plan_of(), one) != _sampled(plan_of(), two)  # at the same moment


def _sampled(plan: Plan, study: Study) -> float:
    import optuna

    fresh = optuna.create_study(direction="maximize")
    fresh.sampler = sampler_of(plan.sampler, plan.seed, 0, study._home)
    return float(fresh.ask(study._known).params["lr"])


def test_a_study_goes_on_where_the_hours_of_a_run_were_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_training(monkeypatch)
    monkeypatch.setattr(Group, "train", lambda self, until: False)
    with pytest.raises(StudyStoppedError, match="was stopped; the same command goes on"):
        Study(plan_of(), tmp_path / "study").run()
    quick_training(monkeypatch)
    study = Study(plan_of(), tmp_path / "study")
    assert study.run()
    assert [t.number for t in study.told()] == [0, 1, 2, 3]


def test_the_value_of_a_rung_does_not_look_beyond_it(tmp_path: Path) -> None:
    (group,) = groups("dqn", build(Config, TINY), [Trial(0, {"lr": 1e-3})], (4,), tmp_path)
    assert group.train(40)
    (agent,) = read_runs(tmp_path)[0].agents
    returns = [at.mean for at in agent.evaluations]
    assert [at.step for at in agent.evaluations] == [10, 20, 30, 40]
    assert group.scores(2, until=20)[0].seeds == (pytest.approx(sum(returns[:2]) / 2),)
    assert group.scores(3, until=40)[0].seeds == (pytest.approx(sum(returns[1:]) / 3),)


def test_what_is_found_is_tested_on_other_seeds_and_becomes_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items() if k not in ("hidden", "tensorboard")]
    words += ["--hidden", "4", "--no-tensorboard", "--trials=2", "--batch=2", "--tuning-seeds=0-1", "--test-seeds=7,8"]
    (tmp_path / "space.toml").write_text('[lr]\nlow = 1e-4\nhigh = 1e-2\nscale = "log"\n')
    words += ["--last=1", f"--out={tmp_path / 'study'}", f"--space={tmp_path / 'space.toml'}"]
    assert main(["tune", "dqn", *words]) == 0
    told = capsys.readouterr().out
    assert "test: winner" in told
    assert "2 seeds" in told
    fact = search_fact(read_runs(tmp_path / "study/batches"))
    assert "(study: dqn, 2 trials x 2 tuning seeds)" in fact
    settings = with_recipe("dqn", {"recipe": str(tmp_path / "study/winner.toml")})
    again = plan_of(trials=2, test_seeds=(7, 8), sampler="tpe")
    winner = best_of(Study(again, tmp_path / "study").told())
    assert winner is not None
    assert {k: settings[k] for k in winner.settings} == winner.settings
    assert settings["env"] == "CartPole-v1"
    assert build(Config, settings).hidden == (4,)
    seeds = json.loads(next(tmp_path.glob("study/test/*/0/config.json")).read_text())["config"]["seeds"]
    assert set(seeds) == {7, 8}
    with pytest.raises(DeeprlError, match=r"recipe: .*winner\.toml is of dqn, not of sac"):
        with_recipe("sac", {"recipe": str(tmp_path / "study/winner.toml")})


def test_a_schedule_is_tested_on_other_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = PbtPlan("dqn", dataclasses.replace(build(Config, TINY), seeds=(0, 1)), LR, interval=10)
    with pytest.raises(DeeprlError, match="test_seeds: 1 is a tuning seed, too"):
        evolve(plan, (1, 2), tmp_path / "pbt")
    found = evolve(plan, (7, 8), tmp_path / "pbt", last=1)
    about = json.loads((tmp_path / "pbt/report/result.json").read_text(encoding="utf-8"))
    assert about["test_score"] == {"schedule": list(found.test.seeds), "default": list(found.default.seeds)}
    config = json.loads((tmp_path / "pbt/test/schedule/config.json").read_text(encoding="utf-8"))["config"]
    rates = [ancestor.settings["lr"] for ancestor in found.result.lineage]
    changes = [rate for i, rate in enumerate(rates) if i == 0 or rate != rates[i - 1]]
    assert [entry["lr"] for entry in config["schedule"]] == changes
    assert (config["seeds"], found.retest.steps) == ([7, 8], 2 * 2 * 40)
    assert "not shown to differ from the default" in (tmp_path / "pbt/report/index.html").read_text(encoding="utf-8")


def refusal(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["tune", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out={tmp_path / 'study'}"
    base = ["dqn", "--env=CartPole-v1", "--steps=200", "--learning-starts=10", "--eval-every=50", out]
    assert "name an algorithm first" in refusal([], capsys)
    assert "did you mean dqn" in refusal(["dqnn"], capsys)
    assert "test_seeds: 2 is a tuning seed, too" in refusal([*base, "--test-seeds=2-5"], capsys)
    assert "seeds: a search has --tuning-seeds" in refusal([*base, "--seeds=1"], capsys)
    assert "trials: has no effect with --method pbt" in refusal([*base, "--method=pbt", "--trials=2"], capsys)
    assert "share: has no effect with --method search" in refusal([*base, "--share=0.1"], capsys)
    assert "last: the mean of 9 evaluations, and a run has 4" in refusal([*base, "--last=9"], capsys)
    assert "trials: must be positive, not 0" in refusal([*base, "--trials=0"], capsys)
    assert "no.toml: No such file" in refusal([*base, "--space=no.toml"], capsys)
    assert "eta and rungs: 2 or more" in refusal([*base, "--scheduler=halving", "--eta=1"], capsys)
    assert "storage nobody://" in refusal([*base, "--storage=nobody://user:secret@host/db"], capsys)
    assert "unknown setting" not in (tmp_path / "study/study.json").read_text()
    assert "holds a study of dqn, not of sac" in refusal(
        ["sac", "--env=Pendulum-v1", "--steps=200", "--learning-starts=10", "--eval-every=50", out], capsys
    )
    other = refusal([*base, "--sampler=random"], capsys)
    assert "holds another study (sampler 'tpe' there, 'random' here)" in other
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    assert "is not empty and holds no study" in refusal([*base[:-1], f"--out={tmp_path / 'taken'}"], capsys)


def test_names_that_are_none_are_refused_from_python_too() -> None:
    for name in ("sampler", "objective", "scheduler"):
        with pytest.raises(DeeprlError, match=f"{name}: expected .*, not 'none of these'"):
            plan_of(**{name: "none of these"})


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(DeeprlError) as raised:
        search(plan_of(), tmp_path / "study", "nobody://user:secret@host/db")
    assert "secret" not in str(raised.value)
