"""Units handed out to workers: each once, what fails does not stop the others, what is asked to stop can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_helpers import TINY, assert_same_run, config, rows, status

from deeprl.commands.main import main
from deeprl.errors import DeeprlError
from deeprl.launch import launcher
from deeprl.launch.glance import FAILED, glances, last_lines, log_of, write_plan
from deeprl.launch.hands import End, order_of
from deeprl.launch.launcher import Launching, launch, parse_resources
from deeprl.launch.local import LocalHands, Slot, split_machine
from deeprl.launch.planned import Planned
from deeprl.launch.worker import IN_USE, ask_worker, begin_worker
from deeprl.online import sac
from deeprl.run import checkpoint
from deeprl.run.lock import Lock, holder

BEFORE = {"steps": 28, "learning_starts": 27, "eval_every": 0}  # it does not learn: a process that does loads more


def unit(out: Path, **settings: Any) -> Planned:
    return Planned("sac", config(out, **settings))


# --- who gets what ---


@pytest.mark.parametrize(
    ("jobs", "cores", "gpus", "expected"),
    [
        (1, [0, 1, 2], [], [Slot((0, 1, 2))]),
        (2, [0, 1, 2, 5], [], [Slot((0, 1)), Slot((2, 5))]),
        (2, [0, 1, 2], [], [Slot((0, 1)), Slot((2,))]),
        (3, [4, 6], [], [Slot((4,)), Slot((6,)), Slot((4,))]),
        (3, [0, 1, 2], ["0", "GPU-x"], [Slot((0,), "0"), Slot((1,), "GPU-x"), Slot((2,), "0")]),
    ],
)
def test_slots(jobs: int, cores: list[int], gpus: list[str], expected: list[Slot]) -> None:
    assert split_machine(jobs, cores, gpus) == expected


@pytest.mark.parametrize(
    ("threads", "device", "expected"),
    [
        ("", "cpu", ({"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "1"})),
        ("4", "cpu", ({"OMP_NUM_THREADS": "4"}, {"OMP_NUM_THREADS": "4"})),
        ("1", "cuda", tuple({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpu} for gpu in "37")),
        ("1", "cuda:1", ({"OMP_NUM_THREADS": "1"},) * 2),  # it has been told which of those that all see
    ],
)
def test_workers_get_cores_threads_and_gpus(
    threads: str, device: str, expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = []
    monkeypatch.setattr("deeprl.launch.local._cores", lambda: [0, 1, 5])
    monkeypatch.setattr(
        "deeprl.launch.local.begin_worker", lambda order, variables: begun.append((order.cores, variables))
    )
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    hands = LocalHands([unit(tmp_path / str(i), device=device) for i in range(3)], 2)
    for i in range(2):
        assert hands.free()
        hands.start(i)
    assert not hands.free()
    assert begun == list(zip([(0, 1), (5,)], expected, strict=True))


# --- the foreman ---


class Pretended:
    """Workers that end as they are told: unit -> exit status, None for one that finishes its run."""

    def __init__(self, units: Sequence[Planned], ends: dict[int, int | None], room: int = 2):
        self.units, self.ends, self.room = units, ends, room
        self.started, self.now, self.asked = list[int](), list[int](), False

    def __enter__(self) -> Pretended:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def free(self) -> bool:
        return len(self.now) < self.room

    def busy(self) -> bool:
        return bool(self.now)

    def start(self, index: int) -> None:
        self.started.append(index)
        self.now.append(index)

    def ended(self) -> list[End]:
        if not self.now:
            return []
        index = self.now.pop(0)
        if self.ends[index] is None:
            sac.train(self.units[index].config)
        return [End(index, self.ends[index] or 0)]

    def stop(self) -> None:
        self.asked = True


def pretend(monkeypatch: pytest.MonkeyPatch, hands: Pretended) -> None:
    monkeypatch.setattr(Launching, "hands", lambda self, units, out: hands)
    monkeypatch.setattr(launcher, "_POLL_SECONDS", 0.0)


def test_each_unit_is_handed_out_once_and_ends_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    units = [unit(tmp_path / str(i), seeds=(i,), **BEFORE) for i in range(6)]
    sac.train(units[1].config)
    for i, text in ((2, "Traceback\nZeroDivisionError: no\n"), (3, "deeprl: it is in use\n")):
        log_of(units[i].directory).write_text(text)
    hands = Pretended(units, {0: None, 2: 1, 3: IN_USE, 4: 0, 5: -9})
    pretend(monkeypatch, hands)
    outcomes = launch(units, tmp_path, Launching(jobs=2))
    assert hands.started == [0, 2, 3, 4, 5]
    assert [(o.state, o.cause) for o in outcomes] == [
        ("finished", ""), ("finished", ""), ("failed", "ZeroDivisionError: no"), ("elsewhere", "it is in use"),
        ("stopped", ""), ("failed", "ended by SIGKILL"),
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert "1 of 6 finished before" in told
    assert f"the last lines of {log_of(units[2].directory)}:\n    Traceback\n    ZeroDivisionError: no\n" in told
    assert last_lines(log_of(units[2].directory), 1) == [f"{FAILED}ZeroDivisionError: no"]
    write_plan(tmp_path, units)
    assert [g.state for g in glances(tmp_path)] == ["finished", "finished", "failed", "waiting", "waiting", "failed"]


def test_signal_asks_all_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [unit(tmp_path / str(i), **BEFORE) for i in range(4)]
    hands = Pretended(units, dict.fromkeys(range(4), 143))
    pretend(monkeypatch, hands)
    original = hands.start

    def start(index: int) -> None:
        original(index)
        if index == 1:
            signal.raise_signal(signal.SIGTERM)

    hands.start = start
    with pytest.raises(SystemExit) as ended:
        launch(units, tmp_path, Launching(jobs=2))
    assert ended.value.code == 143
    assert hands.started in ([0, 1], [0, 1, 2])
    assert hands.asked


# --- workers ---


def test_failing_unit_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crashing = unit(tmp_path / "fails", env="crashing_envs:Crashing-v0", env_kwargs={}, **BEFORE)
    failed, fine = launch([crashing, unit(tmp_path / "fine", **BEFORE)], tmp_path, Launching(jobs=2))
    assert (failed.state, fine.state) == ("failed", "finished")
    assert "the pendulum broke" in failed.cause
    sac.train(config(tmp_path / "here", **BEFORE))
    assert_same_run(tmp_path / "here", tmp_path / "fine")
    assert rows(tmp_path / "here" / "evaluations.csv") == rows(tmp_path / "fine" / "evaluations.csv")
    assert f"the last lines of {tmp_path / 'fails.log'}:" in capsys.readouterr().out
    write_plan(tmp_path, [crashing])
    assert [g.state for g in glances(tmp_path)] == ["failed", "finished", "finished"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def test_workers_stop_when_they_are_asked_or_left_alone_and_leave_what_is_in_use(tmp_path: Path) -> None:
    """With a checkpoint, so that the same run goes on; three at once, as each takes seconds to start."""
    endless = {"steps": 10_000_000, "learning_starts": 9_000_000, "eval_every": 0, "buffer_size": 1_000}
    asked, alone, taken = (unit(tmp_path / name, **endless) for name in ("asked", "alone", "taken"))
    taken.directory.mkdir()
    lock = Lock(taken.directory)
    lock.acquire()
    core = min(os.sched_getaffinity(0))
    processes = [begin_worker(order_of(each, cores=(core,), patience=0.0)) for each in (asked, alone, taken)]
    for each, process in zip((asked, alone), processes, strict=False):
        wait_for((each.directory / "status.json").exists, process)
        assert os.sched_getaffinity(process.pid) == {core}
        owner = holder(each.directory)
        assert owner is not None
        assert (owner.pid, owner.alive) == (process.pid, True)
        process.send_signal(signal.SIGINT)  # a terminal's: no concern of a worker
    ask_worker(processes[0])
    assert processes[1].stdin is not None
    processes[1].stdin.close()  # as if this process were gone
    assert [process.wait(60) for process in processes] == [143, 143, IN_USE]
    for each in (asked, alone):
        assert status(each.directory)["state"] == "stopped"
        assert len(checkpoint.steps(each.directory / "checkpoints")) == 1
        assert holder(each.directory) is None
    assert "is in use by process" in last_lines(log_of(taken.directory), 1)[0]
    lock.release()


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--launcher", "rya"], "--launcher: unknown launcher 'rya'; did you mean ray?"),
        (["--launcher", "kubernetes"], "--launcher: unknown launcher 'kubernetes'; known: local, ray, slurm"),
        (["--jobs", "0"], "--jobs: must be positive, not 0"),
        (["--address", "here:1"], "--address: has no effect with --launcher local"),
        (["--resources", '{"CPU": 1}'], "--resources: has no effect with --launcher local"),
        (["--resources", "{CPU: 1}"], "--resources: not JSON ("),
        (["--resources", "[1]"], "--resources: expected an object such as '{\"CPU\": 2}', not [1]"),
    ],
)
def test_bad_input_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "no.toml", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"deeprl: {expected}")


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_missing_package_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprl.launch.launcher.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeeprlError, match=rf"--launcher {name} needs {package}; .*pip install 'deeprl\[{name}\]'"):
        Launching(name)


@pytest.mark.parametrize("amount", [-1, "two", True, None, float("inf")])
def test_amounts_of_resources_are_numbers(amount: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprl.launch.launcher.importlib.util.find_spec", lambda name: name)
    with pytest.raises(DeeprlError, match="--resources: GPU: expected a number that is not negative"):
        Launching("ray", resources={"CPU": 1, "GPU": amount})


def test_resources_are_read() -> None:
    assert parse_resources('{"CPU": 2, "fast": 0.5}') == {"CPU": 2, "fast": 0.5}


def test_orders_carry_all_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeprl.config import build

    monkeypatch.chdir(tmp_path)
    one = unit(Path("run"), seeds=(0, 1), actor_lr=(1e-4, 3e-4))
    assert build(sac.Config, order_of(one).config) == one.config
    there = order_of(one, absolute=True)
    assert (there.config["out"], there.log) == (str(tmp_path / "run"), str(tmp_path / "run.log"))
    assert there.config["hidden"] == list(TINY["hidden"])
