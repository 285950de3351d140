"""Ctrl-C and SIGTERM: the handlers themselves, and whole runs in processes of their own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_helpers import assert_same_run, config

from deeprl.online import sac
from deeprl.run import checkpoint
from deeprl.run.interrupts import Interrupts

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """A test run that was begun in the background, or by nohup, has inherited that these signals are ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_first_signal_is_noted_and_the_second_acts(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupts() as interrupts:
        assert interrupts.signum is None
        signal.raise_signal(signal.SIGINT)
        assert interrupts.signum == signal.SIGINT
        assert "SIGINT: finishing this step and writing a checkpoint; once more stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_hangup_that_follows_a_signal_never_ends_the_program(first: signal.Signals) -> None:
    """A terminal and its shell each send one, a service manager one after SIGTERM."""
    default: list[int] = []  # signals that are at no time, from the first one on, such as to end the program at once
    original = signal.signal

    def note(signum: int, handler: Any) -> Any:
        before = original(signum, handler)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            default.append(signum)
        return before

    with Interrupts() as interrupts:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deeprl.run.interrupts.signal.signal", note)
            signal.raise_signal(first)
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
        assert default == []
        assert interrupts.signum == first
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if first == signal.SIGHUP else signal.SIG_DFL)


def test_handlers_are_given_back() -> None:
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda signum, frame: None], ids=["ignored", "a function"])
def test_handlers_of_the_program_stay(own) -> None:
    before = signal.signal(signal.SIGTERM, own)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_take_over_nothing() -> None:
    seen = []

    def enter() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


# --- whole runs ---

RUN = """
import sys
from deeprl.commands import main as cli
from deeprl.online import sac
original = sac.train
def train(config, net=None, callback=None):
    def say(run):
        if run.step == int(sys.argv[1]):
            print("ready", flush=True)
            sys.stdin.readline()
    return original(config, net, say)
sac.train = train
sys.exit(cli.main(sys.argv[2:]))
"""
FLAGS = """train sac --env Pendulum-v1 --env-kwargs '{"max_episode_steps": 25}' --steps 90 --learning-starts 30
 --hidden 16 16 --batch-size 16 --buffer-size 70 --compile off --no-tensorboard --threads 1 --eval-every 40
 --eval-episodes 2 --log-every 7 --seeds 0 1"""


BEFORE = 23  # before it learns: a process that does has more of torch to load, 2 s


def words(out: Path) -> list[str]:
    import shlex

    return [*shlex.split(FLAGS), "--out", str(out)]


def begun(out: Path, step: int, code: str = RUN) -> subprocess.Popen[str]:
    """A run in a process of its own that waits at `step`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(step), *words(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line == "ready\n":
            return process
    raise AssertionError(process.communicate())


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_run_with_a_checkpoint_and_says_how_to_go_on(
    signum: signal.Signals, status: int, tmp_path: Path, runs: Any
) -> None:
    out = tmp_path / "run"
    process = begun(out, 47)
    process.send_signal(signum)
    time.sleep(0.3)
    shown, errors = process.communicate("\n", timeout=60)
    assert process.returncode == status
    assert f"{signum.name}: finishing this step" in errors
    assert "Traceback" not in errors
    last = shown.strip().splitlines()[-1]
    assert last == f"stopped at step 47; to go on from the newest checkpoint: deeprl resume {out}"
    assert checkpoint.steps(out / "checkpoints") == [47]
    assert sac.train(config(out, seeds=(0, 1))).finished
    assert_same_run(runs.whole(seeds=(0, 1)), out)


@pytest.mark.parametrize("callback", ["is silent", "prints"])
def test_signal_that_ended_the_reader_of_the_output_too(callback: str, tmp_path: Path) -> None:
    """`deeprl train ... 2>&1 | tee log`: Ctrl-C ends both, and the lines of the run meet a broken pipe."""
    code = RUN.replace("readline()", "readline(); print('more', flush=True)") if callback == "prints" else RUN
    process = begun(tmp_path / "run", BEFORE, code)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 130
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [BEFORE]


CLOSED = """
import os, sys, time
from deeprl.commands import main as cli
from deeprl.online import sac
original, place = sac.train, sys.argv[1]
def say(name):
    open(os.path.join(place, name), "w").close()
def wait(name):
    while not os.path.exists(os.path.join(place, name)):
        time.sleep(0.005)
def train(config, net=None, callback=None):
    def closing(run):
        if run.step == int(sys.argv[3]):
            say("ready")
            wait("closed")
            if sys.argv[2] == "prints before":
                os.write(1, b"to nobody")  # not through the progress bar, which there is after two seconds
            while run._interrupts.signum is None:
                time.sleep(0.005)
            say("noted")
            wait("sent")
            if sys.argv[2] == "prints after":
                print("to nobody", flush=True)
    return original(config, net, closing)
sac.train = train
sys.exit(cli.main(sys.argv[4:]))
"""


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.parametrize("callback", ["is silent", "prints before", "prints after"])
def test_closed_terminal_leaves_a_checkpoint(callback: str, tmp_path: Path) -> None:
    """The terminal is gone, with all that is still written to it, and both it and the shell send a SIGHUP.

    The second one comes when the run has taken note of the first, however late that is. A callback that prints before
    either has come ends the run, as any error of its own.
    """
    out = tmp_path / "run"
    terminal, inside = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLOSED, str(tmp_path), callback, str(BEFORE), *words(out)],
        stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    try:
        wait_for(tmp_path / "ready", process)
        os.close(terminal)
        (tmp_path / "closed").touch()
        if callback != "prints before":
            process.send_signal(signal.SIGHUP)
            wait_for(tmp_path / "noted", process)
            process.send_signal(signal.SIGHUP)
            (tmp_path / "sent").touch()
        assert process.wait(timeout=60) == (2 if callback == "prints before" else 129)
    finally:
        process.kill()
    assert checkpoint.steps(out / "checkpoints") == [BEFORE]


def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    process = begun(tmp_path / "run", BEFORE)
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)  # it waits in its callback, which is the middle of a step
    noted = ""
    while "SIGINT: finishing this step" not in noted:
        line = process.stderr.readline()
        assert line, noted
        noted += line
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in noted + errors
    assert "stopped at once" in errors
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []
    assert re.search(r"to go on", shown) is None


def test_signal_stops_a_sweep_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        f"""
out = "{tmp_path / "runs"}"
[defaults]
seeds = 0
steps = 40
learning_starts = 30
hidden = [8]
batch_size = 8
compile = "off"
threads = 1
eval_episodes = 1
env_kwargs = {{ max_episode_steps = 25 }}
[[experiment]]
algorithm = "sac"
env = ["Pendulum-v1", "MountainCarContinuous-v0"]
"""
    )
    code = RUN.replace("run.step == int(sys.argv[1])", "run.step == int(sys.argv[1]) and 'Pendulum' in config.env")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def sweep(step: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(step), "sweep", str(file)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    process = sweep(BEFORE)
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.communicate("\n", timeout=60)
    assert process.returncode == 143
    assert not (tmp_path / "runs" / "sac" / "MountainCarContinuous-v0").exists()
    again = sweep(-1)
    shown, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert "report:" in shown
    assert checkpoint.steps(tmp_path / "runs" / "sac" / "Pendulum-v1" / "checkpoints") == [40]
    assert checkpoint.steps(tmp_path / "runs" / "sac" / "MountainCarContinuous-v0" / "checkpoints") == [40]
