"""Runs that train further: what they come to is what a run that had all steps from the start comes to, or refused."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offline_helpers import write_made
from run_helpers import assert_same_run, config, rows, status
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_sweep import TINY, write

import deeprl
from deeprl.commands.main import main
from deeprl.config import config_hash
from deeprl.config.runs import defaults
from deeprl.errors import DeeprlError
from deeprl.launch.sweep import read_sweep, run_sweep
from deeprl.offline import bc, iql, td3_bc, wsrl
from deeprl.online import dqn, sac
from deeprl.replay.returns import ReturnsToGo
from deeprl.replay.transitions import Replay
from deeprl.reporting.read import read_runs
from deeprl.reporting.table import results
from deeprl.run import checkpoint
from deeprl.run.trained import algorithm_module

ENDS = {"steps": 53, "keep_replay": True, "buffer_size": 1000}  # 53: between rows (7), evaluations (40), episodes (25)
GAMES = {
    "env": "CartPole-v1", "env_backend": "device", "learning_starts": 40, "train_every": 4, "utd": 0.25,
    "target_every": 25, "batch_size": 16, "hidden": (16, 16), "epsilon_steps": 100.0, "compile": "off", "threads": 1,
    "tensorboard": False, "eval_every": 75, "eval_episodes": 2, "log_every": 40,
}  # fmt: skip
OFFLINE = {
    "env": "offline_helpers:MadeLinear-v0", "hidden": (16, 16), "batch_size": 16, "compile": "off", "threads": 1,
    "tensorboard": False, "eval_every": 20, "eval_episodes": 2, "log_every": 7,
}  # fmt: skip


def about(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def assert_same_record(longer: Path, whole: Path) -> None:
    """Numbers and identity are those of the run that had all steps from the start."""
    assert_same_run(longer, whole)
    one, other = about(longer), about(whole)
    kept = {"out", "keep_replay"}
    assert [k for k in one["config"] if k not in kept and one["config"][k] != other["config"][k]] == []
    assert one["config_hash"] == other["config_hash"]
    assert [row["cell"] for row in results(longer)] == [row["cell"] for row in results(whole)]


def test_an_extension_comes_to_the_same_however_often_it_is_killed(
    tmp_path: Path, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"seeds": (0, 1), "actor_lr": (1e-3, 3e-4), "buffer_size": 1000}
    run = tmp_path / "run"
    sac.train(config(run, **ENDS | settings))
    assert rows(run / "metrics.csv")[-1]["step"] == "53"  # a row that the longer run has not

    def killed(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # between the two files of the record
        patch.setattr("deeprl.run.extension.config_hash", killed)
        with pytest.raises(KeyboardInterrupt):
            deeprl.extend(run, 90)
    assert (status(run)["state"], about(run)["config"]["steps"]) == ("stopped", 53)
    with monkeypatch.context() as patch:  # after both
        patch.setattr("deeprl.online.sac.train", killed)
        with pytest.raises(KeyboardInterrupt):
            deeprl.extend(run, 90)
    assert (status(run)["state"], about(run)["config"]["steps"]) == ("stopped", 90)
    assert not deeprl.extend(run, 90, callback=lambda run: run.step == 70).finished
    longer = deeprl.extend(run, 90)
    assert (longer.finished, longer.step) == (True, 90)
    assert_same_record(run, runs.whole(**settings))
    assert "53" not in {row["step"] for row in rows(run / "evaluations.csv")}
    assert about(run)["changes"] == [{"step": 53, "name": "steps", "before": 53, "after": 90}]
    assert about(run)["command"].count(" && ") == 1
    found = read_runs(run)[0]
    assert (found.finished, found.status["step"], found.info["config"]["steps"]) == (True, 90, 90)


def test_a_run_is_extended_twice(tmp_path: Path, runs: Any) -> None:
    sac.train(config(tmp_path / "run", **ENDS | {"steps": 80, "buffer_size": 70}))  # the ring has wrapped around
    deeprl.extend(tmp_path / "run", 84)
    deeprl.extend(tmp_path / "run", 90)
    assert_same_record(tmp_path / "run", runs.whole())


def test_device_environments_and_a_population_of_settings(tmp_path: Path) -> None:
    settings = GAMES | {"seeds": (0, 1), "lr": (1e-3, 3e-4), "keep_replay": True}
    dqn.train(dqn.Config(out=str(tmp_path / "whole"), steps=160, **settings))
    dqn.train(dqn.Config(out=str(tmp_path / "run"), steps=91, **settings))
    deeprl.extend(tmp_path / "run", 160)
    assert_same_record(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("algorithm", "module"), [("bc", bc), ("td3_bc", td3_bc)])
def test_offline_runs_need_no_replay(tmp_path: Path, algorithm: str, module: Any) -> None:
    settings = OFFLINE | {"dataset": write_made(tmp_path / "made.npz"), "seeds": (0, 1), "actor_lr": (1e-3, 3e-4)}
    if algorithm == "td3_bc":
        settings |= {"actor_hidden": (16, 16), "critic_hidden": (16, 16)}
    settings = {k: v for k, v in settings.items() if k in {f.name for f in dataclasses.fields(module.Config)}}
    module.train(module.Config(out=str(tmp_path / "whole"), steps=60, **settings))
    module.train(module.Config(out=str(tmp_path / "run"), steps=30, **settings))
    assert main(["extend", str(tmp_path / "run"), "--steps", "60"]) == 0
    assert_same_record(tmp_path / "run", tmp_path / "whole")


def test_tensorboard_shows_the_rows_of_the_longer_run(tmp_path: Path) -> None:
    # 42 is a step with a row (7), and without an evaluation (40)
    short = {"keep_replay": True, "tensorboard": True, "buffer_size": 1000}
    sac.train(config(tmp_path / "run", steps=42, **short))
    deeprl.extend(tmp_path / "run", 60)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "member_0_seed_0"))
    events.Reload()
    written = [int(row["step"]) for row in rows(tmp_path / "run" / "metrics.csv")]
    assert [e.step for e in events.Scalars("train/q")] == written == [35, 42, 49, 56, 60]
    assert [e.step for e in events.Scalars("eval/return")] == [40, 60]


def test_a_finished_run_without_its_replay_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sac.train(config(tmp_path / "run", steps=53))
    before = about(tmp_path / "run")
    assert main(["extend", str(tmp_path / "run"), "--steps", "90"]) == 2
    shown = capsys.readouterr().err
    # 53 rows: observations 2 x 3 and action and reward, 4 bytes each, two flags
    assert "has not kept its replay: only runs with --keep-replay can be extended" in shown
    assert f"(here {53 * (8 * 4 + 2) / 1000:.3g} kB)" in shown
    assert shown.count("\n") == 1
    assert about(tmp_path / "run") == before
    assert status(tmp_path / "run")["state"] == "finished"


def test_schedules_over_all_steps_are_refused(tmp_path: Path) -> None:
    data = write_made(tmp_path / "made.npz")
    settings = {k: v for k, v in OFFLINE.items() if k != "env"} | {"dataset": data, "env": OFFLINE["env"], "steps": 30}
    iql.train(iql.Config(out=str(tmp_path / "iql"), **settings))
    with pytest.raises(DeeprlError, match="the schedule of actor_lr_decay runs over all 30"):
        deeprl.extend(tmp_path / "iql", 60)
    assert status(tmp_path / "iql")["state"] == "finished"
    assert iql.Config(dataset=data, actor_lr_decay=False).over_all_steps() == []
    assert dqn.Config(prioritized=True, priority_beta=(0.4, 1.0), seeds=(0, 1)).over_all_steps() == ["priority_beta"]
    assert dqn.Config(prioritized=True, priority_beta=1.0).over_all_steps() == []
    assert wsrl.Config(init="run", loss="own", penalty_end=0.5).over_all_steps() == ["penalty_end"]


@pytest.mark.parametrize("algorithm", sorted(deeprl.ALGORITHMS))
def test_settings_that_an_update_divides_by_all_steps_are_named(algorithm: str) -> None:
    """Every function of an algorithm that reads `config.steps` or `config.updates()` has a schedule over them."""
    module = algorithm_module(algorithm)
    names = [module.__name__, *(f"deeprl.run.{own}" for own in ("own_losses",) if algorithm == "wsrl")]
    read = False
    for name in names:
        tree = ast.parse(Path(deeprl.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text())
        read |= any(ast.unparse(n) in ("config.steps", "config.updates") for n in ast.walk(tree))
    own = "over_all_steps" in vars(module.Config)
    assert own == (read or algorithm == "riql")  # which takes IQL's


def test_nothing_else_is_derived_from_steps() -> None:
    """Defaults do not follow `steps`: a config of more steps is the same but for these."""
    for algorithm in deeprl.ALGORITHMS:
        kind = algorithm_module(algorithm).Config
        given = {"dataset": "a.npz"} if "dataset" in defaults(kind) else {}
        one, other = (dataclasses.asdict(kind(steps=n, **given)) for n in (2_000_000, 4_000_000))
        assert {k for k in one if one[k] != other[k]} == {"steps"}


def test_larger_replays_that_would_have_held_more_are_refused(tmp_path: Path) -> None:
    # 53 steps of two environments: the 54th has overwritten the first row, as the replay has 52 rows
    sac.train(config(tmp_path / "run", **ENDS | {"envs_per_agent": 2}))
    with pytest.raises(DeeprlError, match=r"still have what the replay of this one, of 52 rows, has overwritten"):
        deeprl.extend(tmp_path / "run", 90)
    games = GAMES | {"prioritized": True, "priority_beta": 1.0, "keep_replay": True, "steps": 120}
    dqn.train(dqn.Config(out=str(tmp_path / "dqn"), **games))
    with pytest.raises(DeeprlError, match="larger sums of priorities: buffer_size is 10,000"):
        deeprl.extend(tmp_path / "dqn", 200)


def test_bad_numbers_of_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sac.train(config(tmp_path / "run", **ENDS | {"envs_per_agent": 2, "buffer_size": 20}))
    with pytest.raises(DeeprlError, match="has 53 already, and cannot be made shorter"):
        deeprl.extend(tmp_path / "run", 40)
    with pytest.raises(DeeprlError, match="is at step 54 already; name more"):
        deeprl.extend(tmp_path / "run", 54)
    with pytest.raises(DeeprlError, match="is no run directory"):
        deeprl.extend(tmp_path, 54)
    assert deeprl.extend(tmp_path / "run", 53).finished  # as `train` with the same settings: nothing is left to do
    assert "changes" not in about(tmp_path / "run")
    with pytest.raises(DeeprlError, match=r"steps 53 there, 90 here\); deeprl extend .*run --steps 90 trains it"):
        sac.train(config(tmp_path / "run", **ENDS | {"envs_per_agent": 2, "buffer_size": 20, "steps": 90}))


def test_a_run_that_is_not_finished_gets_more_steps(tmp_path: Path, runs: Any) -> None:
    runs.stopped(tmp_path / "run", 50)
    shorter = about(tmp_path / "run")
    shorter["config"]["steps"] = 80
    (tmp_path / "run" / "config.json").write_text(json.dumps(shorter))
    assert deeprl.extend(tmp_path / "run", 90).finished
    assert_same_record(tmp_path / "run", runs.whole())


def test_own_networks_are_asked_for_before_anything_changes(tmp_path: Path) -> None:
    sac.train(config(tmp_path / "run", **ENDS), net=own)
    with pytest.raises(DeeprlError, match="its net= is passed again"):
        deeprl.extend(tmp_path / "run", 90)
    assert about(tmp_path / "run")["config"]["steps"] == 53
    assert deeprl.extend(tmp_path / "run", 90, net=own).finished


def own(spec: Any, settings: Any) -> Any:
    return sac.make_net(spec, settings)


def test_eager_runs_stay_eager_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sac.train(config(tmp_path / "run", **ENDS | {"compile": "auto"}))
    run = deeprl.extend(tmp_path / "run", 2000, callback=lambda run: run.step == 60)
    assert not run.execution.compile
    assert "goes on from step 53 to 2,000, eagerly as it began" in capsys.readouterr().out


def test_a_sweep_with_more_steps_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(steps: int, kept: str = "keep_replay = true") -> str:
        tiny = TINY.replace("steps = 60", f"steps = {steps}").replace("tensorboard", f"{kept}\ntensorboard", 1)
        return (
            f'out = "{tmp_path / "out"}"\n{tiny}\n[[experiment]]\nalgorithm = "sac"\nenv = "Pendulum-v1"\n'
            'seeds = "0"\n[experiment.grid]\ndiscount = [0.9, 0.99]\n'
        )

    run_sweep(write(tmp_path, text(40)))
    run_sweep(write(tmp_path, text(60)))
    assert "goes on from step 40 to 60" in capsys.readouterr().out
    (planned,) = read_sweep(tmp_path / "sweep.toml")[1]
    whole = dataclasses.replace(planned.config, out=str(tmp_path / "whole"))
    sac.train(whole)
    assert_same_record(planned.directory, tmp_path / "whole")
    assert about(planned.directory)["config_hash"] == config_hash("sac", planned.config)
    run_sweep(tmp_path / "sweep.toml")
    assert "finished before" in capsys.readouterr().out
    # without its replay: nothing is trained, and the cell is named
    shutil.rmtree(planned.directory / "checkpoints")
    content = checkpoint.load_checkpoint(tmp_path / "whole" / "checkpoints")
    assert content is not None
    checkpoint.save(planned.directory / "checkpoints", 60, {k: content[1][k] for k in ("run", "agents")})
    with pytest.raises(DeeprlError, match=r"sweep.toml: sac Pendulum-v1: .*sac/Pendulum-v1 has not kept its replay"):
        run_sweep(write(tmp_path, text(80)))


def test_returns_of_a_smaller_replay_are_taken_over() -> None:
    from helpers import ONE

    one = torch.ones(1)
    small, large = (ReturnsToGo(Replay(1, n, ONE), one, 0 * one, one) for n in (3, 5))
    small.values[0] = torch.tensor([1.0, 2.0, -torch.inf])
    large.load_state_dict(small.state_dict())
    np.testing.assert_array_equal(large.values[0], [1.0, 2.0, -np.inf, -np.inf, -np.inf])
