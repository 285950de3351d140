"""When updates, rows and callbacks are due."""

import types

import pytest
import torch
from run_helpers import config, final

from deeprl.online import sac
from deeprl.run.loop import Run


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
        run.advance()
        due[run.step] = (run.due(5), run.due(1), run.due(0), run.due(100))
    assert [s for s, d in due.items() if d[0]] == [5, 10]
    assert all(d[1] for d in due.values())
    assert not any(d[2] or d[3] for d in due.values())


def test_due_by_hand_for_several_envs(tmp_path):
    run = bare_run(tmp_path, envs_per_agent=4)
    due = []
    for _ in range(6):
        run.advance()
        if run.due(10):
            due.append(run.step)
    assert due == [12, 20]  # steps 4 8 12 16 20 24: the first at or beyond 10, and 20


def test_updates_due_by_hand(tmp_path):
    run = bare_run(tmp_path)
    numbers = []
    for _ in range(8):
        run.advance()
        numbers.append(list(run.updates_due(1.5, 3)))
    # floor((step - 3) * 1.5) for steps 1..8: -3 -2 0 1 3 4 6 7
    assert numbers == [[], [], [], [0], [1, 2], [3], [4, 5], [6]]
    assert run.updates == 7


def test_updates_due_by_hand_for_a_rate_below_one(tmp_path):
    run = bare_run(tmp_path)
    numbers = []
    for _ in range(9):
        run.advance()
        numbers.append(len(run.updates_due(0.1 * 3, 0)))
    # floor(0.3 * step), 0.3 * 10 exact by the epsilon: 0 0 0 1 1 1 2 2 2
    assert [sum(numbers[: i + 1]) for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    run.advance()
    assert list(run.updates_due(0.1 * 3, 0)) == [2]
