"""Which directories and settings a run accepts, and what it says when it goes on under others."""

import json
import os

import pytest
from run_helpers import assert_same_run, config, status

from deeprl.core.population import Execution
from deeprl.errors import DeeprlError
from deeprl.online import sac
from deeprl.run import checkpoint


def test_another_config_in_the_same_directory_is_refused(tmp_path, runs):
    runs.stopped(tmp_path / "run", 3)
    with pytest.raises(DeeprlError, match=r"holds another run \(discount 0\.99 there, 0\.9 here\)"):
        sac.train(config(tmp_path / "run", discount=0.9))
    with pytest.raises(DeeprlError, match=r"seeds \[0\] there, \[0, 1\] here"):
        sac.train(config(tmp_path / "run", seeds=(0, 1)))


def test_resume_under_another_execution_goes_on_and_says_so(tmp_path, capsys, runs):
    runs.stopped(tmp_path / "run", 50)
    run = sac.train(config(tmp_path / "run", backend="loop", precision="strict"), callback=lambda run: run.step == 60)
    assert run.execution == Execution("loop", False, "strict", 1, "cpu")
    shown = capsys.readouterr().out
    assert "goes on under other conditions (backend vmap before, loop now, precision fast before, strict now)" in shown
    assert "its numbers may differ in the last bits" in shown
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["execution"]["backend"] == about["config"]["backend"] == "loop"
    assert about["changes"] == [
        {"step": 50, "name": "backend", "before": "vmap", "after": "loop"},
        {"step": 50, "name": "precision", "before": "fast", "after": "strict"},
    ]
    assert sac.train(config(tmp_path / "run", backend="loop", precision="strict")).finished  # nothing new: not a word
    assert "other conditions" not in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "config.json").read_text())["changes"]) == 2


def test_resume_under_another_version_says_so(tmp_path, capsys, runs):
    runs.stopped(tmp_path / "run", 50)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    torch_now = about["versions"]["torch"]
    about["versions"]["torch"] = "1.0"
    (tmp_path / "run" / "config.json").write_text(json.dumps(about))
    assert sac.train(config(tmp_path / "run")).finished
    assert f"goes on under other conditions (torch 1.0 before, {torch_now} now)" in capsys.readouterr().out
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["versions"]["torch"] == torch_now
    assert about["changes"] == [{"step": 50, "name": "torch", "before": "1.0", "after": torch_now}]


def test_run_that_was_killed_before_its_config_begins_anew(tmp_path):
    (tmp_path / "run.lock").write_text('{"pid": 1}')
    (tmp_path / "config.tmp").write_text('{"form')
    assert sac.train(config(tmp_path, steps=10, learning_starts=5)).finished


def test_run_in_a_directory_in_use_is_refused_and_changes_nothing(tmp_path, runs):
    def second(run):
        if run.step == 50:
            files = {p: p.read_bytes() for p in run.directory.iterdir() if p.is_file()}
            with pytest.raises(DeeprlError, match=f"in use by process {os.getpid()}"):
                sac.train(config(tmp_path / "run"))
            assert {p: p.read_bytes() for p in run.directory.iterdir() if p.is_file()} == files

    sac.train(config(tmp_path / "run"), callback=second)
    assert_same_run(runs.whole(), tmp_path / "run")


def test_failed_run_says_so_and_goes_on(tmp_path, runs):
    def fail(run):
        if run.step == 50:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sac.train(config(tmp_path / "run", checkpoint_minutes=1e-9), callback=fail)
    assert status(tmp_path / "run")["state"] == "failed"
    sac.train(config(tmp_path / "run"))
    assert_same_run(runs.whole(), tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"run": {}}, {"agents": {}}, {"replay": 3}, {"envs": None}])
def test_checkpoint_that_does_not_fit_is_an_error_of_one_line(wrong, tmp_path, runs):
    runs.stopped(tmp_path / "run", 50)
    directory = tmp_path / "run" / "checkpoints"
    step, content = checkpoint.load_checkpoint(directory)
    content["replay"] = {"inserted": 0, "rows": content["replay"]["rows"]}
    checkpoint.save(directory, step, content | wrong)
    with pytest.raises(DeeprlError, match="fit") as raised:
        sac.train(config(tmp_path / "run"))
    assert "\n" not in str(raised.value)


def test_settings_outside_the_identity_may_change_on_resume(tmp_path, runs):
    runs.stopped(tmp_path / "run", 3)
    assert sac.train(config(tmp_path / "run", label="other", keep_checkpoints=5, tensorboard=True)).finished


def test_foreign_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DeeprlError, match="not empty and holds no run"):
        sac.train(config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("inner", ["run/inner", "run/a/../b/inner", "run/checkpoints/inner", "link/inner", "run/kept"])
def test_new_run_inside_another_is_refused_before_it_begins(inner, tmp_path, monkeypatch):
    sac.train(config(tmp_path / "run", steps=32))
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "run" / "kept").mkdir()
    (tmp_path / "run" / "report").mkdir()  # the directory of a report holds a config.json of another kind
    (tmp_path / "config.json").write_text("{}")  # somebody's own
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    named = inner.split("/")[0]
    with pytest.raises(DeeprlError, match=rf"^{inner} lies inside the run {named}; choose another --out$"):
        sac.train(config(inner, steps=32))
    with pytest.raises(DeeprlError, match="lies inside the run"):
        sac.train(config(tmp_path / inner, steps=32))
    assert sorted(tmp_path.rglob("*")) == before


def test_run_beside_another_and_one_inside_that_was_there_before_go_on(tmp_path):
    sac.train(config(tmp_path / "inner", steps=40), callback=lambda run: run.step == 35)
    sac.train(config(tmp_path / "runs" / "a", steps=32))
    assert sac.train(config(tmp_path / "runs" / "a" / ".." / "b", steps=32)).finished
    (tmp_path / "inner").rename(tmp_path / "runs" / "a" / "inner")
    assert sac.train(config(tmp_path / "runs" / "a" / "inner", steps=40)).finished


def test_empty_directory_is_accepted(tmp_path):
    assert sac.train(config(tmp_path, steps=10, learning_starts=5)).finished


def test_unknown_env_leaves_no_directory(tmp_path):
    with pytest.raises(DeeprlError, match="did you mean Pendulum-v1"):
        sac.train(config(tmp_path / "run", env="Pendulm-v1"))
    assert not (tmp_path / "run").exists()


def test_execution_of_an_existing_run_is_kept(tmp_path, runs):
    runs.stopped(tmp_path / "run", 3)
    about = tmp_path / "run" / "config.json"
    stored = json.loads(about.read_text())
    stored["execution"]["precision"] = "strict"
    about.write_text(json.dumps(stored))
    run = sac.train(config(tmp_path / "run"))
    assert run.execution == Execution("vmap", False, "strict", 1, "cpu")


def test_run_that_does_not_say_how_it_is_executed_does_not_go_on(tmp_path):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 3)
    about = tmp_path / "run" / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"execution": None}))
    with pytest.raises(DeeprlError, match=r"config\.json does not say how the run is executed"):
        sac.train(config(tmp_path / "run"))
