import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from deeprl.errors import DeeprlError, InUseError
from deeprl.run import lock
from deeprl.run.lock import Lock, holder, release_of

HOLD = """
import sys, time
from pathlib import Path
from deeprl.run.lock import Lock
Lock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def owner(directory):
    return json.loads((directory / "run.lock").read_text())


@pytest.fixture
def holder_process(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_and_told_who_holds_it(holder_process, tmp_path):
    with pytest.raises(
        InUseError, match=rf"is in use by process {holder_process.pid} on {platform.node()} \(since 20.*\); wait for it"
    ):
        Lock(tmp_path).acquire()
    assert owner(tmp_path)["pid"] == holder_process.pid  # the refused one has not written over it


def test_lock_of_a_killed_process_is_taken_over(holder_process, tmp_path):
    holder_process.send_signal(signal.SIGKILL)
    holder_process.wait()
    mine = Lock(tmp_path)
    assert f"process {holder_process.pid} on {platform.node()}" in (said := mine.acquire())
    assert "ended without leaving" in said
    assert owner(tmp_path)["pid"] == os.getpid()
    mine.release()


def test_released_lock_is_free_and_silent(tmp_path):
    for _ in range(2):
        mine = Lock(tmp_path)
        assert mine.acquire() == ""
        mine.release()
        mine.release()  # once is enough, twice does no harm
    assert (tmp_path / "run.lock").read_text() == ""


def test_second_run_of_the_same_process_is_refused(tmp_path):
    first = Lock(tmp_path)
    first.acquire()
    with pytest.raises(DeeprlError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path).acquire()
    first.release()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0\0\0", '{"pid": "x"}'])
def test_damaged_content_does_not_hold_anybody_up(content, tmp_path):
    (tmp_path / "run.lock").write_text(content)
    mine = Lock(tmp_path)
    mine.acquire()
    assert owner(tmp_path)["pid"] == os.getpid()
    mine.release()


def test_owner_that_leaves_at_this_moment_has_left_in_order(tmp_path, monkeypatch):
    first = Lock(tmp_path)
    first.acquire()
    flock = lock.fcntl.flock

    def after_release(*args):
        first.release()
        return flock(*args)

    monkeypatch.setattr(lock.fcntl, "flock", after_release)
    second = Lock(tmp_path)
    assert second.acquire() == ""
    second.release()


# --- file systems without locks: the content decides ---


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def write_owner(directory, pid, host):
    (directory / "run.lock").write_text(json.dumps({"pid": pid, "host": host, "since": "now"}))


def test_without_locks_a_living_owner_is_respected(no_flock, tmp_path):
    write_owner(tmp_path, os.getppid(), platform.node())
    with pytest.raises(DeeprlError, match=f"in use by process {os.getppid()}"):
        Lock(tmp_path).acquire()


def test_without_locks_a_dead_owner_is_recognised(no_flock, tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    write_owner(tmp_path, process.pid, platform.node())
    assert f"process {process.pid}" in Lock(tmp_path).acquire()


def test_without_locks_an_owner_on_another_host_can_be_deleted_by_hand(no_flock, tmp_path):
    write_owner(tmp_path, 1, "elsewhere")
    with pytest.raises(DeeprlError, match=r"on elsewhere .*if it is gone, delete .*run\.lock"):
        Lock(tmp_path).acquire()
    (tmp_path / "run.lock").unlink()
    assert Lock(tmp_path).acquire() == ""


def test_lock_that_cannot_be_made_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "absent").acquire()


def test_lock_ends_with_its_process_even_if_it_has_children(tmp_path):
    """A worker process of an environment must not keep the lock of a killed run."""
    code = HOLD.replace('print("held"', 'import subprocess; c = subprocess.Popen(["sleep", "60"]); print(c.pid')
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        began = time.monotonic()
        assert "ended without leaving" in Lock(tmp_path).acquire()
        assert time.monotonic() - began < 5
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


# --- looking on, and machines that are gone ---


def test_who_holds_a_lock_can_be_asked_without_taking_it(holder_process, tmp_path):
    seen = holder(tmp_path)
    assert (seen.pid, seen.host, seen.alive) == (holder_process.pid, platform.node(), True)
    holder_process.kill()
    holder_process.wait()
    assert holder(tmp_path).alive is False
    write_owner(tmp_path, 1, "elsewhere")
    assert holder(tmp_path) == (1, "elsewhere", "now", None)
    for content in ("", "{", '{"pid": "x"}'):
        (tmp_path / "run.lock").write_text(content)
        assert holder(tmp_path) is None
    assert holder(tmp_path / "absent") is None


def test_without_locks_an_owner_on_a_host_that_is_gone_can_be_released(no_flock, tmp_path):
    write_owner(tmp_path, 1, "elsewhere")
    assert not release_of(tmp_path, ["here", "elsewhere"])
    with pytest.raises(InUseError):
        Lock(tmp_path).acquire()
    assert release_of(tmp_path, ["here"])
    assert not release_of(tmp_path, ["here"])  # nobody is there any more
    assert Lock(tmp_path).acquire() == ""


def test_an_owner_of_this_host_or_one_whose_lock_holds_is_never_released(tmp_path):
    write_owner(tmp_path, os.getppid(), platform.node())
    assert not release_of(tmp_path, [])
    mine = Lock(tmp_path)
    mine.acquire()
    write_owner(tmp_path, 1, "elsewhere")  # as a network shows it whose file system has locks
    assert not release_of(tmp_path, [])
    assert owner(tmp_path)["pid"] == 1
    mine.release()
