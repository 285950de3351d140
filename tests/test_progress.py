import os
import pty
import sys

import pytest

from deeprl.run.progress import Progress, clock_time


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("deeprl.run.progress.time.monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_nothing_is_shown_in_the_first_two_seconds(clock, capsys):
    progress = Progress("sac", 1000)
    for i in range(20):
        clock.now = 100.0 + i * 0.0999
        progress.update(i, f"return {i}")
    progress.close()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_plain_line_has_rate_time_left_and_note(clock, capsys):
    progress = Progress("sac Pendulum-v1 x3", 10_000, factor=3)
    clock.now += 20.0
    progress.update(1000, "return -157.0 at 1,000")
    # 1000 steps in 20 s: 50/s of each of 3 agents = 150/s; 9000 left take 180 s
    assert lines(capsys) == ["sac Pendulum-v1 x3: 1,000/10,000  150 steps/s  3:00 left  return -157.0 at 1,000"]


def test_rate_counts_from_the_start_of_this_session(clock, capsys):
    progress = Progress("sac", 1000, start=900)
    clock.now += 20.0
    progress.update(920)
    # 20 steps in 20 s; 80 left take 80 s
    assert lines(capsys) == ["sac: 920/1,000  1 steps/s  1:20 left  "]


def walk(progress, clock, steps, seconds, done=0):
    """So many steps, evenly in so many seconds; their number then."""
    for _ in range(steps):
        clock.now += seconds / steps
        done += 1
        progress.update(done)
    return done


def test_rate_is_that_of_the_last_minute(clock, capsys):
    progress = Progress("sac", 10_000)
    done = walk(progress, clock, 500, 10)  # at random, 50/s
    clock.now += 90.0  # compiling
    done = walk(progress, clock, 1000, 100, done)
    capsys.readouterr()
    clock.now += 0.1
    progress.update(done + 1, "return 1")
    # 10/s in the last minute, 1501 in 200 s since the start; 8499 left
    assert lines(capsys) == ["sac: 1,501/10,000  10 steps/s  14:09 left  return 1"]


def test_a_pause_counts_in_the_rate_and_leaves_a_minute_of_steps_in_it(clock, capsys):
    progress = Progress("sac", 10_000)
    done = walk(progress, clock, 2400, 300)
    for _ in range(10):
        progress.meanwhile("evaluating")
        clock.now += 30.0
    capsys.readouterr()
    progress.meanwhile("evaluating")
    progress.update(done, "return 1")
    # 480 steps in 60 s of work and 300 of evaluation: 4/3 a second; 7600 left take 5700 s
    assert lines(capsys) == [
        "sac: 2,400/10,000  1 steps/s  1:35:00 left  evaluating",
        "sac: 2,400/10,000  1 steps/s  1:35:00 left  return 1",
    ]


def test_steps_longer_than_a_minute_have_a_rate(clock, capsys):
    progress = Progress("sac", 10, factor=120)
    done = walk(progress, clock, 3, 120)
    capsys.readouterr()
    walk(progress, clock, 1, 120, done)
    assert lines(capsys) == ["sac: 4/10  1 steps/s  12:00 left  "]


def test_plain_lines_come_every_fifteen_seconds(clock, capsys):
    progress = Progress("sac", 1000)
    shown = []
    for second in range(1, 61):
        clock.now = 100.0 + second
        progress.update(second)
        if lines(capsys):
            shown.append(second)
    assert shown == [15, 30, 45, 60]


def test_new_note_is_shown_at_once(clock, capsys):
    progress = Progress("sac", 1000)
    clock.now += 16.0
    progress.update(10)
    clock.now += 1.0
    progress.update(11, "return 1")
    clock.now += 1.0
    progress.update(12, "return 1")
    shown = lines(capsys)
    assert [line.split()[1] for line in shown] == ["10/1,000", "11/1,000"]
    assert shown[1].endswith("return 1")


def test_note_stays_in_later_lines(clock, capsys):
    progress = Progress("sac", 1000)
    progress.update(1, "return 7")
    clock.now += 16.0
    progress.update(10)
    assert lines(capsys)[0].endswith("return 7")


def test_say_prints_a_line_of_its_own(clock, capsys):
    progress = Progress("sac", 1000)
    progress.say("seed 1 diverged")
    assert lines(capsys) == ["seed 1 diverged"]


def test_terminal_gets_a_bar_on_stderr(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    progress = Progress("sac", 1000)
    progress.update(1)
    assert capsys.readouterr() == ("", "")
    clock.now += 10.0
    progress.update(500, "return 7")
    progress.say("[a] line above")
    progress.close()
    out, err = capsys.readouterr()
    assert "sac" in out + err
    assert "50 steps/s  0:10 left  return 7" in err
    assert "[a] line above" in out + err


def test_progress_without_steps_does_not_divide_by_zero(clock, capsys):
    progress = Progress("sac", 1000, start=10)
    clock.now += 20.0
    progress.update(10)
    assert "0 steps/s" in lines(capsys)[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.9, "0:59"), (61.0, "1:01"), (3600.0, "1:00:00"), (90_061.0, "25:01:01")]
)
def test_clock_by_hand(seconds, text):
    assert clock_time(seconds) == text


def test_bar_on_a_terminal_that_goes_fails_nobody(clock, monkeypatch):
    """What is printed while there is a bar goes through it as well. No signal may have come yet."""
    terminal, inside = pty.openpty()
    with os.fdopen(inside, "w", buffering=1) as file:
        monkeypatch.setattr(sys, "stderr", file)
        progress = Progress("sac", 1000)
        clock.now += 3.0
        progress.update(10)
        progress.say("before")
        print("printed")
        shown = b""
        while b"printed" not in shown:
            shown += os.read(terminal, 1000)
        assert b"before" in shown
        os.close(terminal)
        clock.now += 3.0
        progress.update(20)
        progress.say("after")
        print("printed as well")
        progress.close()
