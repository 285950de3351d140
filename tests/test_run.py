"""What a run leaves behind: records, checkpoints, TensorBoard."""

import dataclasses
import json

import pytest
import torch
from run_helpers import config, final, rows, status

from deeprl.online import sac
from deeprl.run import checkpoint


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
