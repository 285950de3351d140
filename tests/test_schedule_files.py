"""Schedules: settings that all agents of a run have from some steps on, from a file that is kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import SMALL, assert_same_run, final

import deeprl
from deeprl.commands.main import main
from deeprl.config import build, config_hash
from deeprl.config.schedules import changes_between, read_schedule, schedule_text
from deeprl.errors import DeeprlError
from deeprl.online import dqn, sac
from deeprl.reporting.cells import agent_identity
from deeprl.run.loop import Run

TEXT = """
[[from]]
step = 0
actor_lr = 1e-3

[[from]]
step = 40
actor_lr = 2e-3
tau = 0.1

[[from]]
step = 55
tau = 0.2
"""
RUN: dict[str, Any] = SMALL | {
    "steps": 70, "eval_every": 40, "eval_episodes": 1, "hidden": (8,), "batch_size": 8, "utd": 0.5, "seeds": (0, 1),
    "log_every": 70,
}  # fmt: skip
DEVICE = {"env_backend": "device", "envs_per_agent": 2, "env_kwargs": {"max_episode_steps": 9}, "utd": 0.05}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def hparams(run: Run) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in run._attached["agents"].tree.state.hparams.items()}


# --- the file ---


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5))
@settings(max_examples=20)
def test_what_is_written_is_read_to_the_bit(values: list[float]) -> None:
    import tomllib

    entries = [{"step": 10 * i, "tau": value, "actor_lr": value / 3} for i, value in enumerate(values)]
    assert tomllib.loads(schedule_text(entries, ["a remark"]))["from"] == entries


def test_what_changes_between_two_steps(file: Path) -> None:
    entries = read_schedule(file)
    assert changes_between(entries, 0, 39) == {}
    assert changes_between(entries, 39, 40) == changes_between(entries, 38, 41) == {"actor_lr": 2e-3, "tau": 0.1}
    assert changes_between(entries, 40, 54) == {}
    assert changes_between(entries, 30, 60) == {"actor_lr": 2e-3, "tau": 0.2}


def test_its_content_is_a_setting_wherever_it_comes_from(file: Path) -> None:
    named = build(sac.Config, {"schedule": file})
    given_ = build(sac.Config, {"schedule": [{"step": 0, "actor_lr": 1e-3}, *read_schedule(file)[1:]]})
    assert named == given_
    assert named.actor_lr == 1e-3  # that of the start
    assert named.tau == 0.005
    assert build(sac.Config, {"schedule": ""}) == sac.Config()
    hashes = {config_hash("sac", config) for config in (named, sac.Config(), sac.Config(actor_lr=1e-3))}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"step": 0, "hidden": 3}], "^schedule: step 0: hidden: is shared by a population, and stays as it is"),
        ([{"step": 9, "init_alpha": 0.5}], "^schedule: step 9: init_alpha: is only how an agent starts"),
        ([{"step": 5, "actor_lr": 3}], "^schedule: step 5: actor_lr: must be in 0 .. 1, not 3$"),
        ([{"step": 5, "actr_lr": 0.3}], "^schedule: step 5: actr_lr: unknown setting; did you mean actor_lr"),
        ([{"step": 5}], "^schedule: step 5 has no settings$"),
        ([{"actor_lr": 0.1}], r"^schedule: each \[\[from\]\] needs a step, a whole number from 0 on, not None$"),
        ([{"step": True, "tau": 0.1}], "needs a step, a whole number from 0 on, not True$"),
        ([{"step": 5, "tau": 0.1}, {"step": 5, "tau": 0.2}], "^schedule: step 5 stands behind step 5"),
        ([{"step": 5, "actor_lr": "auto"}], "^schedule: step 5: actor_lr: expected a number, not 'auto'$"),
        ([{"step": 5, "actor_lr": float("nan")}], r"^schedule\[0\].actor_lr: must be a finite number"),
        ("nowhere.toml", "^schedule: nowhere.toml: No such file"),
        (3, "^schedule: expected a list"),
    ],
)
def test_schedules_that_no_run_can_follow(entries: Any, message: str) -> None:
    with pytest.raises(DeeprlError, match=message):
        build(sac.Config, {"schedule": entries})


def test_settings_that_differ_between_agents_are_not_overruled() -> None:
    entries = [{"step": 0, "tau": 0.1}]
    with pytest.raises(DeeprlError, match=r"^schedule: step 0: tau: sets all agents alike"):
        build(sac.Config, {"schedule": entries, "seeds": [0, 1], "tau": [0.1, 0.2]})
    assert build(sac.Config, {"schedule": entries, "seeds": [0, 1], "tau": [0.3, 0.3]}).tau == 0.1


@pytest.mark.parametrize("text", ["step = 3", "[from]\nstep = 0\ntau = 0.1", "[[from]\n", 'from = [1]\nto = "b"'])
def test_files_that_are_no_schedule(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    assert main(["train", "sac", "--schedule", str(tmp_path / "bad.toml"), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"deeprl: schedule: {tmp_path / 'bad.toml'}: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


# --- a run ---


@pytest.mark.parametrize(("algorithm", "where"), [("sac", {}), ("dqn", DEVICE)], ids=["gymnasium", "device"])
def test_a_schedule_is_what_writing_settings_by_hand_is(algorithm: str, where: dict[str, Any], tmp_path: Path) -> None:
    common = RUN | where
    first, second, third = ("actor_lr", "tau", "tau") if algorithm == "sac" else ("lr", "epsilon_end", "epsilon_end")
    entries = [{"step": 0, first: 1e-3}, {"step": 40, first: 2e-3, second: 0.1}, {"step": 55, third: 0.2}]
    if algorithm == "dqn":
        common |= {"env": "CartPole-v1", "train_every": 10, "target_every": 20, "epsilon_steps": 20.0}
    changes = {40: {first: 2e-3, second: 0.1}, 56 if where else 55: {third: 0.2}}  # two steps at a time

    def by_hand(run: Run) -> None:
        for name, value in changes.get(run.step, {}).items():
            run._attached["agents"].tree.state.hparams[name].fill_(value)

    # the callback is only called where no steps wait: rows at these steps see to that
    rows = {"log_every": 1} if where else {}
    deeprl.train(algorithm, **common | rows | {first: 1e-3, "out": str(tmp_path / "hand")}, callback=by_hand)
    run = deeprl.train(algorithm, **common | {"schedule": entries, "out": str(tmp_path / "file")})
    assert hparams(run)[first] == [torch.tensor(2e-3).item()] * 2
    assert hparams(run)[third] == [torch.tensor(0.2).item()] * 2
    one, other = final(tmp_path / "hand")[1], final(tmp_path / "file")[1]
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    plain = deeprl.train(algorithm, **common | {first: 1e-3, "out": str(tmp_path / "plain")})
    assert any(not torch.equal(value, one[name]) for name, value in final(plain.directory)[1].items())


@pytest.mark.parametrize("where", [{}, DEVICE | {"utd": 0.25}], ids=["gymnasium", "device"])
def test_an_interrupted_run_follows_it_all_the_same(where: dict[str, Any], file: Path, tmp_path: Path) -> None:
    common = RUN | where | {"schedule": file}
    deeprl.train("sac", **common | {"out": str(tmp_path / "a")})

    def stop_while_evaluating(run: Run) -> bool:
        if run.step > 36:
            run._to_stop = lambda: run.step >= 40
        return False

    stopped = deeprl.train("sac", **common | {"out": str(tmp_path / "b")}, callback=stop_while_evaluating)
    assert (stopped.step, stopped.finished) == (40, False)
    assert hparams(stopped)["tau"] == [torch.tensor(0.005).item()] * 2  # not before the evaluation is there
    for stop in (40, 55):
        file.unlink(missing_ok=True)  # its content is with the run
        again = build(sac.Config, json.loads((tmp_path / "b" / "config.json").read_text())["config"])
        stopped = sac.train(again, callback=lambda run, stop=stop: run.step >= stop)
        assert hparams(stopped)["tau"] == [torch.tensor(0.1 if stopped.step < 55 else 0.2).item()] * 2
    assert main(["resume", str(tmp_path / "b")]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_record_tells_of_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "running", lambda run: False)
    records = []
    for name, more in (("a", {"schedule": file}), ("b", {"actor_lr": 1e-3})):
        deeprl.train("sac", **RUN | more | {"out": str(tmp_path / name)})
        records.append(json.loads((tmp_path / name / "config.json").read_text()))
    assert records[0]["config"]["schedule"] == list(read_schedule(file))
    assert records[0]["config"]["actor_lr"] == records[1]["config"]["actor_lr"] == 1e-3
    one, other = (agent_identity(record, 0) for record in records)
    assert {name for name in one if one[name] != other[name]} == {"schedule"}
    assert len(one["schedule"]) == 12
    with pytest.raises(DeeprlError, match="holds another run"):
        deeprl.train("sac", **RUN | {"actor_lr": 1e-3, "out": str(tmp_path / "a")})


def test_agents_that_lack_a_setting_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "running", lambda run: False)
    usual = dqn.init

    def without(*args: Any) -> Any:
        state = usual(*args)
        return state._replace(hparams={k: v for k, v in state.hparams.items() if k != "lr"})

    monkeypatch.setattr(dqn, "init", without)
    asked = RUN | {"env": "CartPole-v1", "schedule": [{"step": 40, "lr": 0.1}], "out": str(tmp_path / "run")}
    with pytest.raises(DeeprlError, match=r"^schedule: lr: these agents do not have this setting$"):
        deeprl.train("dqn", **asked)
