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
from pathlib import Path
from typing import Any

from deeprl.errors import InUseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return False
        else:
            return True
    owner = _read_owner(file)
    return not owner or _gone(owner)


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
