"""One process per run directory: a lock that ends with its process, and says who holds it.

`run.lock` is locked by the operating system (flock), which forgets it when the process ends, however it ends; its
content (process, host, since when) is for people and for file systems without such locks. It is empty when nobody
works here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.errors import InUseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Holder(NamedTuple):
    """Who works in a run directory by its `run.lock`. alive: None on another host, where that cannot be seen."""

    pid: int
    host: str
    since: str
    alive: bool | None


def holder(directory: Path) -> Holder | None:
    """Who holds the lock of a run directory, or has left it by being killed. Takes nothing from anybody."""
    try:
        file = os.open(directory / "run.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _read_owner(file)
    finally:
        os.close(file)
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return None
    alive = not _gone(owner) if owner.get("host") == platform.node() else None
    return Holder(pid, str(owner.get("host", "?")), str(owner.get("since", "?")), alive)


def release_of(directory: Path, living: Collection[str]) -> bool:
    """Release the lock of a process on a host that is none of the `living` ones. Returns whether there was one.

    For file systems on which the operating system locks nothing; where it does, it releases the lock itself once a host
    is gone, though on a network not before a minute or two.
    """
    owner = holder(directory)
    if owner is None or owner.host in living or owner.alive is not None:
        return False
    file = os.open(directory / "run.lock", os.O_RDWR)
    try:
        if _flocked(file) is not None:
            return False
        os.ftruncate(file, 0)
    finally:
        os.close(file)
    return True


class Lock:
    """The lock of a run directory, or of another, held from `acquire` to `release`."""

    def __init__(self, directory: Path, name: str = "run.lock"):
        self.path = directory / name
        self._file: int | None = None

    def acquire(self) -> str:
        """Take the lock. Returns a line about an owner that ended without a release, or "".

        Raises InUseError, naming the owner, if another process holds it.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        locked, owner = _locked(file), _read_owner(file)  # in this order: the owner may be about to leave
        if not locked:
            os.close(file)
            raise InUseError(f"{self.path.parent} is in use by {_named(owner)}; {_advice(owner, self.path)}")
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(about).encode(), 0)
        self._file = file
        return f"{_named(owner)} ended without leaving {self.path.parent}; going on in its place" if owner else ""

    def release(self) -> None:
        """Let go of the lock, if it is held. The file stays: deleting it could take it from under another process."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a disk that is full or gone
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def _locked(file: int) -> bool:
    """Whether the lock is ours now; where the file system has no locks, whether the owner on record has ended."""
    if (ours := _flocked(file)) is not None:
        return ours
    owner = _read_owner(file)
    return not owner or _gone(owner)


def _flocked(file: int) -> bool | None:
    """Whether the operating system has given us the lock, None where it has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS) else False
    return True


def _read_owner(file: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except ValueError:  # empty, or cut short by a loss of power
        return {}
    return owner if isinstance(owner, dict) else {}


def _gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that has ended."""
    if owner.get("host") != platform.node() or os.name != "posix":
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return True
    except PermissionError:  # it is there, and somebody else's
        return False
    return False


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} (since {owner.get('since', '?')})"


def _advice(owner: dict[str, Any], path: Path) -> str:
    if owner.get("host", platform.node()) == platform.node():
        return "wait for it or stop it"
    return f"wait for it or stop it; if it is gone, delete {path}"
