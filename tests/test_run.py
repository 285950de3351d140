import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from deeprl.core.population import Execution
from deeprl.errors import DeeprlError
from deeprl.online import sac, td3
from deeprl.run import checkpoint
from deeprl.run.loop import Run

ROOT = Path(__file__).parent.parent
# 90 steps with episodes of 25: ends at 25, 50, 75. Updates from step 31 on.
TINY = {
    "env": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 25},
    "steps": 90,
    "learning_starts": 30,
    "hidden": (16, 16),
    "batch_size": 16,
    "buffer_size": 70,  # the ring wraps around
    "compile": "off",
    "tensorboard": False,
    "threads": 1,
    "eval_every": 40,
    "eval_episodes": 2,
    "log_every": 7,
}


def config(out, algorithm=sac, **settings):
    return algorithm.Config(out=str(out), **(TINY | settings))


def rows(path):
    """A CSV file without its column wall_s."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def final(directory):
    """The tensors of the newest checkpoint by name."""
    step, content = checkpoint.load_checkpoint(directory / "checkpoints")
    return step, content["agents"]


def status(directory):
    return json.loads((directory / "status.json").read_text())


def assert_same_run(one, other):
    (step, expected), (other_step, found) = final(one), final(other)
    assert step == other_step
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(one / name) == rows(other / name)
        assert len(rows(one / name)) > 0
    assert status(one)["state"] == status(other)["state"] == "finished"


def train_with_stops(settings, stops, algorithm=sac):
    """The same call again and again, each stopped by its callback at the next of `stops`; the last one finishes."""
    for stop in [*stops, None]:
        run = algorithm.train(settings, callback=lambda run, stop=stop: run.step == stop)
        assert run.finished == (stop is None)
        if stop is not None:
            assert run.step == stop
            assert status(run.directory)["state"] == "stopped"


# --- exact resume ---

# Stops: before learning in mid-episode, at an episode end, twice in a row during learning, at an evaluation (40 or 80),
# and right before a log row whose step does no update (utd 0.5: step 35, updates at 34 and 36).
# TD3 updates the policy at steps 32, 34, ..: stops between the two kinds of update, before the first row that has the
# policy's metrics, and before a row (49) whose step updates the critic alone. With a delay of 3: at steps 33, 36, ..
CASES = {
    "vmap": ({"seeds": (0, 1)}, (13, 25, 44, 45, 80)),
    "loop": ({"seeds": (0, 1), "backend": "loop"}, (13, 44, 45)),
    "vmap_three_envs": ({"seeds": (0, 1), "envs_per_agent": 3}, (15, 30, 45, 48)),
    "loop_three_envs": ({"seeds": (0, 1), "envs_per_agent": 3, "backend": "loop"}, (15, 48)),
    "half_utd": ({"seeds": (0, 1), "utd": 0.5}, (31, 34, 62, 83)),
    "double_utd": ({"seeds": (0,), "utd": 2.0, "steps": 60}, (29, 41)),
    "normalize_obs": ({"seeds": (0, 1), "normalize_obs": True}, (13, 47)),
    "per_agent_settings": ({"seeds": (0, 0), "actor_lr": (1e-3, 1e-4), "target_entropy": (-1.0, 0.0)}, (50,)),
    "cheetah": ({"seeds": (0, 1), "env": "HalfCheetah-v5", "steps": 60, "eval_every": 30}, (13, 44)),
    "cheetah_three_envs": ({"seeds": (0,), "env": "HalfCheetah-v5", "steps": 60, "envs_per_agent": 3}, (27, 45)),
    "td3": ({"algorithm": td3, "seeds": (0, 1)}, (13, 31, 32, 45, 48, 80)),
    "td3_loop": ({"algorithm": td3, "seeds": (0, 1), "backend": "loop"}, (45, 48)),
    "td3_delay_3": ({"algorithm": td3, "seeds": (0,), "policy_delay": 3, "learning_starts": 33}, (34, 35, 41, 76)),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_continued_run_is_identical(case, tmp_path):
    settings, stops = CASES[case]
    algorithm = settings.get("algorithm", sac)
    algorithm.train(config(tmp_path / "whole", **settings))
    train_with_stops(config(tmp_path / "parts", **settings), stops, algorithm)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_random_stops_give_an_identical_run(tmp_path):
    stops = sorted(random.Random(7).sample(range(1, 90), 6))
    sac.train(config(tmp_path / "whole", utd=0.4))
    train_with_stops(config(tmp_path / "parts", utd=0.4), stops)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_from_an_older_checkpoint_cuts_the_records(tmp_path):
    settings = config(tmp_path / "parts")
    sac.train(config(tmp_path / "whole"))
    for stop in (33, 60):
        sac.train(settings, callback=lambda run, stop=stop: run.step == stop)
    newest = tmp_path / "parts" / "checkpoints" / "000000060" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="000000060 is broken"):
        sac.train(settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_hard_killed_run_continues_identically(tmp_path):
    settings = TINY | {"seeds": [0, 1], "steps": 200, "checkpoint_minutes": 0.0005, "buffer_size": 1000}
    out, whole = tmp_path / "killed", tmp_path / "whole"
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from deeprl.config import build\nfrom deeprl.online import sac\n"
        "sac.train(build(sac.Config, json.loads(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, json.dumps(settings | {"out": str(out)})]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not checkpoint.steps(out / "checkpoints") and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.8))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert status(out)["state"] == "running"
    assert 0 < status(out)["step"] < 200
    for directory in (out, whole):
        sac.train(config(directory, **(settings | {"seeds": (0, 1), "checkpoint_minutes": 0.0})))
    assert_same_run(whole, out)


def test_callback_that_is_true_at_the_checkpoint_does_not_stop_the_next_call(tmp_path):
    def stop_at_50(run):
        return run.step == 50

    assert not sac.train(config(tmp_path / "run"), callback=stop_at_50).finished
    assert sac.train(config(tmp_path / "run"), callback=stop_at_50).finished


def test_agent_alone_equals_agent_in_a_loop_population(tmp_path):
    sac.train(config(tmp_path / "three", seeds=(4, 5, 6), backend="loop"))
    sac.train(config(tmp_path / "alone", seeds=(5,), backend="loop"))
    _, three = final(tmp_path / "three")
    _, alone = final(tmp_path / "alone")
    assert [k for k in alone if not torch.equal(three[k][1], alone[k][0])] == []
    of_5 = [row for row in rows(tmp_path / "three" / "evaluations.csv") if row["seed"] == "5"]
    assert [r | {"member": ""} for r in of_5] == [
        r | {"member": ""} for r in rows(tmp_path / "alone" / "evaluations.csv")
    ]


# --- a finished run ---


def test_finished_run_called_again_does_nothing(tmp_path):
    settings = config(tmp_path / "run", seeds=(0, 1))
    sac.train(settings)
    before = {n: (tmp_path / "run" / n).read_bytes() for n in ("metrics.csv", "evaluations.csv", "config.json")}
    step, agents = final(tmp_path / "run")
    calls = []
    run = sac.train(settings, callback=calls.append)
    assert run.finished
    assert (run.step, run.updates, calls) == (90, 60, [])
    assert {n: (tmp_path / "run" / n).read_bytes() for n in before} == before
    again, same = final(tmp_path / "run")
    assert step == again == 90
    assert all(torch.equal(agents[k], same[k]) for k in agents)
    assert status(tmp_path / "run")["state"] == "finished"


def test_finished_run_keeps_only_its_agents(tmp_path):
    sac.train(config(tmp_path / "run", checkpoint_minutes=1e-9, steps=20, learning_starts=10))
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [20]
    _, content = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints")
    assert content.keys() == {"run", "agents"}


def test_run_directory_holds_what_the_contract_says(tmp_path):
    sac.train(config(tmp_path / "run", seeds=(3, 7), actor_lr=(1e-3, 3e-4), label="x"))
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert about["format"] == 1
    assert about["algorithm"] == "sac"
    assert about["config"]["seeds"] == [3, 7]
    assert about["config"]["label"] == "x"
    assert about["members"] == [
        {"member": 0, "seed": 3, "settings": {"actor_lr": 1e-3}},
        {"member": 1, "seed": 7, "settings": {"actor_lr": 3e-4}},
    ]
    assert {"deeprl", "python", "torch", "numpy", "gymnasium", "mujoco"} <= about["versions"].keys()
    assert {"commit", "device", "host", "command", "execution", "spec"} <= about.keys()
    assert len(about["config_hash"]) == 12
    state = status(tmp_path / "run")
    assert {"state", "step", "wall_s", "updates_per_s", "frozen"} <= state.keys()
    assert (state["state"], state["step"], state["frozen"]) == ("finished", 90, [])
    assert state["wall_s"] > 0
    assert state["updates_per_s"] > 0
    assert state["wall_s"] >= state["first_update_s"] >= state["first_call_s"] >= 0
    evaluations = rows(tmp_path / "run" / "evaluations.csv")
    assert list(evaluations[0]) == ["step", "member", "seed", "episode", "return", "length"]
    # evaluations at 40, 80 and at the end, 90; of 2 members; of 2 episodes; each of 25 steps
    assert [r["step"] for r in evaluations] == ["40"] * 4 + ["80"] * 4 + ["90"] * 4
    assert [(r["member"], r["seed"], r["episode"]) for r in evaluations[:4]] == [
        ("0", "3", "0"), ("0", "3", "1"), ("1", "7", "0"), ("1", "7", "1"),
    ]  # fmt: skip
    assert {r["length"] for r in evaluations} == {"25"}
    metrics = rows(tmp_path / "run" / "metrics.csv")
    # multiples of 7 with an update done before: 35, 42, .. 84; the first update is at 31; and the last step
    assert [r["step"] for r in metrics] == [str(s) for s in [*range(35, 91, 7), 90] for _ in range(2)]
    assert {"train/return", "train/length", "train/critic_loss", "train/alpha"} <= metrics[0].keys()
    assert metrics[0]["train/length"] == "nan"  # the episode that ended at step 25 was random
    assert metrics[2]["train/length"] == "nan"  # none ended between 36 and 42
    assert metrics[6]["train/length"] == "25.0"  # between 50 and 56 the second one did


# --- refusals ---


def test_another_config_in_the_same_directory_is_refused(tmp_path):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 3)
    with pytest.raises(DeeprlError, match=r"holds another run \(discount 0\.99 there, 0\.9 here\)"):
        sac.train(config(tmp_path / "run", discount=0.9))
    with pytest.raises(DeeprlError, match=r"seeds \[0\] there, \[0, 1\] here"):
        sac.train(config(tmp_path / "run", seeds=(0, 1)))


def test_resume_under_another_execution_goes_on_and_says_so(tmp_path, capsys):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 50)
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


def test_resume_under_another_version_says_so(tmp_path, capsys):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 50)
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


def test_run_in_a_directory_in_use_is_refused_and_changes_nothing(tmp_path):
    def second(run):
        if run.step == 50:
            files = {p: p.read_bytes() for p in run.directory.iterdir() if p.is_file()}
            with pytest.raises(DeeprlError, match=f"in use by process {os.getpid()}"):
                sac.train(config(tmp_path / "run"))
            assert {p: p.read_bytes() for p in run.directory.iterdir() if p.is_file()} == files

    sac.train(config(tmp_path / "run"), callback=second)
    sac.train(config(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_failed_run_says_so_and_goes_on(tmp_path):
    def fail(run):
        if run.step == 50:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sac.train(config(tmp_path / "run", checkpoint_minutes=1e-9), callback=fail)
    assert status(tmp_path / "run")["state"] == "failed"
    sac.train(config(tmp_path / "run"))
    sac.train(config(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"run": {}}, {"agents": {}}, {"replay": 3}, {"envs": None}])
def test_checkpoint_that_does_not_fit_is_an_error_of_one_line(wrong, tmp_path):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 50)
    directory = tmp_path / "run" / "checkpoints"
    step, content = checkpoint.load_checkpoint(directory)
    content["replay"] = {"inserted": 0, "rows": content["replay"]["rows"]}
    checkpoint.save(directory, step, content | wrong)
    with pytest.raises(DeeprlError, match="fit") as raised:
        sac.train(config(tmp_path / "run"))
    assert "\n" not in str(raised.value)


def test_settings_outside_the_identity_may_change_on_resume(tmp_path):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 3)
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


# --- stopping by time ---


def test_max_hours_stops_each_call_and_the_run_continues(tmp_path, monkeypatch):
    # A clock that advances by one second at each look at it; a call stops after 60 of them.
    ticks = iter(range(10**9))
    monkeypatch.setattr("deeprl.run.loop.time.monotonic", lambda: float(next(ticks)))
    settings = config(tmp_path / "run", max_hours=60 / 3600, checkpoint_minutes=0.0)
    reached = []
    for _ in range(30):
        run = sac.train(settings)
        reached.append(run.step)
        if run.finished:
            break
        assert status(run.directory)["state"] == "stopped"
    assert len(reached) > 2
    # Each call goes on from the one before, be it with the evaluation in which that was stopped.
    assert reached[:-1] == sorted(set(reached[:-1]))
    assert reached[-1] == 90
    monkeypatch.undo()
    sac.train(config(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# --- the schedule ---


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"steps": 60, "learning_starts": 30, "utd": 1.0}, 30),
        ({"steps": 60, "learning_starts": 30, "utd": 0.5}, 15),
        ({"steps": 40, "learning_starts": 30, "utd": 3.0}, 30),
        ({"steps": 61, "learning_starts": 30, "utd": 0.1}, 3),  # floor(31 * 0.1)
        ({"steps": 60, "learning_starts": 30, "utd": 0.1}, 3),  # 30 * 0.1 is a hair below 3 in some orders
        ({"steps": 60, "learning_starts": 30, "envs_per_agent": 4}, 30),
        ({"steps": 61, "learning_starts": 30, "envs_per_agent": 4, "utd": 0.5}, 17),  # ends at 64: floor(34 * 0.5)
        ({"steps": 31, "learning_starts": 30, "utd": 0.5}, 0),
    ],
)
def test_number_of_updates_equals_the_schedule(settings, updates, tmp_path):
    run = sac.train(config(tmp_path / "run", eval_episodes=0, **settings))
    assert run.updates == updates
    _, agents = final(tmp_path / "run")
    assert agents["state.step"].tolist() == [updates]


def test_parameters_move_once_learning_has_started(tmp_path):
    start = {"eval_episodes": 0, "seeds": (0, 1)}
    run = sac.train(config(tmp_path / "run", **start), callback=lambda run: run.step == 30)
    assert run.updates == 0
    _, before = final(tmp_path / "run")
    run = sac.train(config(tmp_path / "run", **start))
    assert run.updates == 60
    _, after = final(tmp_path / "run")
    for name in after:
        if name.startswith(("state.actor.", "state.critic.", "state.target_critic.", "state.log_alpha")):
            for agent in (0, 1):
                assert not torch.equal(before[name][agent], after[name][agent]), name
    assert not torch.equal(after["state.log_alpha"][0], after["state.log_alpha"][1])  # the seeds differ


def test_callback_is_called_after_every_step(tmp_path):
    seen = []
    sac.train(
        config(tmp_path / "run", steps=12, learning_starts=6, envs_per_agent=3),
        callback=lambda run: seen.append(run.step),
    )
    assert seen == [3, 6, 9, 12]


def bare_run(tmp_path, **settings):
    run = Run("sac", config(tmp_path / "bare", **settings))
    run._progress = types.SimpleNamespace(update=lambda done: None)
    run._attached["envs"] = types.SimpleNamespace(pop_faults=dict)
    return run


def test_due_by_hand(tmp_path):
    run = bare_run(tmp_path)
    due = {}
    for _ in range(12):
        run.advance([])
        due[run.step] = (run.due(5), run.due(1), run.due(0), run.due(100))
    assert [s for s, d in due.items() if d[0]] == [5, 10]
    assert all(d[1] for d in due.values())
    assert not any(d[2] or d[3] for d in due.values())


def test_due_by_hand_for_several_envs(tmp_path):
    run = bare_run(tmp_path, envs_per_agent=4)
    due = []
    for _ in range(6):
        run.advance([])
        if run.due(10):
            due.append(run.step)
    assert due == [12, 20]  # steps 4 8 12 16 20 24: the first at or beyond 10, and 20


def test_updates_due_by_hand(tmp_path):
    run = bare_run(tmp_path)
    numbers = []
    for _ in range(8):
        run.advance([])
        numbers.append(list(run.updates_due(1.5, 3)))
    # floor((step - 3) * 1.5) for steps 1..8: -3 -2 0 1 3 4 6 7
    assert numbers == [[], [], [], [0], [1, 2], [3], [4, 5], [6]]
    assert run.updates == 7


def test_updates_due_by_hand_for_a_rate_below_one(tmp_path):
    run = bare_run(tmp_path)
    numbers = []
    for _ in range(9):
        run.advance([])
        numbers.append(len(run.updates_due(0.1 * 3, 0)))
    # floor(0.3 * step), 0.3 * 10 exact by the epsilon: 0 0 0 1 1 1 2 2 2
    assert [sum(numbers[: i + 1]) for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    run.advance([])
    assert list(run.updates_due(0.1 * 3, 0)) == [2]


def test_execution_of_an_existing_run_is_kept(tmp_path):
    sac.train(config(tmp_path / "run"), callback=lambda run: run.step == 3)
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


def test_env_that_cannot_be_restored_says_so_and_goes_on(tmp_path, capsys):
    settings = {"env": "opaque_envs:Unseeded-v0", "env_kwargs": {}, "seeds": (0, 1)}
    sac.train(config(tmp_path / "run", **settings), callback=lambda run: run.step == 50)
    capsys.readouterr()
    assert sac.train(config(tmp_path / "run", **settings)).finished
    assert "Unseeded-v0 cannot be restored exactly: 2 episodes start anew" in capsys.readouterr().out


class Curriculum(PendulumEnv):
    """Rewards shrink from one episode to the next."""

    episodes = 0

    def reset(self, **kwargs):
        self.episodes += 1
        return super().reset(**kwargs)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, float(reward) - self.episodes, terminated, truncated, info

    def state_dict(self):
        return {"state": self.state, "episodes": self.episodes}

    def load_state_dict(self, state):
        vars(self).update(state)


def test_env_that_remembers_episodes_is_evaluated_alike_after_a_resume(tmp_path):
    gym.register("Curriculum-v0", Curriculum)
    settings = {"env": "Curriculum-v0", "seeds": (0, 1)}
    sac.train(config(tmp_path / "whole", **settings))
    train_with_stops(config(tmp_path / "parts", **settings), (30, 60))
    gym.registry.pop("Curriculum-v0")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def shown_steps(directory, tag):
    """The steps at which TensorBoard shows values of the first agent."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard" / "member_0_seed_0")).Reload()
    return [event.step for event in events.Scalars(tag)]


def test_tensorboard_of_a_resumed_run_has_each_step_once(tmp_path):
    settings = config(tmp_path / "run", tensorboard=True, checkpoint_minutes=0.0)
    for stop in (37, 60):
        sac.train(settings, callback=lambda run, stop=stop: run.step == stop)
    # As after a loss of power: the records are ahead of the newest good checkpoint.
    (tmp_path / "run" / "checkpoints" / "000000060" / "state.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="is broken"):
        sac.train(settings)
    assert shown_steps(tmp_path / "run", "eval/return") == [40, 80, 90]
    assert shown_steps(tmp_path / "run", "train/q") == [*range(35, 91, 7), 90]


# Steps of rows in metrics.csv: the first update is at step 31, environments count one or three steps in each pass.
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"steps": 40, "log_every": 1000}, [40]),
        ({"steps": 40, "log_every": 16}, [32, 40]),
        ({"steps": 40, "log_every": 20}, [40]),
        ({"steps": 40, "log_every": 20, "envs_per_agent": 3}, [42]),
        ({"steps": 42, "log_every": 20, "envs_per_agent": 3}, [42]),
        ({"steps": 40, "log_every": 7, "learning_starts": 39, "utd": 0.5}, []),  # nothing has been learned
    ],
)
def test_last_step_has_a_row_of_metrics(settings, steps, tmp_path):
    whole = config(tmp_path / "whole", tensorboard=True, eval_episodes=1, **settings)
    sac.train(whole)
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    for stop in (30, 33, 39):
        sac.train(parts, callback=lambda run, stop=stop: run.step == stop)
        kept = rows(tmp_path / "parts" / "metrics.csv") if (tmp_path / "parts" / "metrics.csv").exists() else []
        assert [int(row["step"]) for row in kept] == [step for step in steps if step <= stop]  # none of the stop
    assert sac.train(parts).finished
    assert sac.train(parts).finished  # does nothing
    for out in (tmp_path / "whole", tmp_path / "parts"):
        found = rows(out / "metrics.csv") if (out / "metrics.csv").exists() else []
        assert [int(row["step"]) for row in found] == steps
        if steps:
            assert found == rows(tmp_path / "whole" / "metrics.csv")
            assert shown_steps(out, "train/q") == steps


def test_row_of_the_last_step_is_there_once_if_its_evaluation_was_stopped(tmp_path):
    settings = config(tmp_path / "run", steps=40, log_every=1000, eval_every=0)

    def stop(run):  # in the evaluation, as a signal would
        if run.step == 39:
            run._to_stop = lambda: run.step == 40

    run = sac.train(settings, callback=stop)
    assert (run.step, run.finished) == (40, False)
    assert sac.train(settings).finished
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["40"]
    assert {row["step"] for row in rows(tmp_path / "run" / "evaluations.csv")} == {"40"}
