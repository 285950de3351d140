"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal, a lost connection) as requests to stop after the current step.

The second Ctrl-C or SIGTERM acts as it always does. A SIGHUP after the first signal does nothing: the terminal and the
shell each send one, at any distance from one another, and a service manager sends one right after SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from deeprl.core.signals import HANGUP, HEEDED
from deeprl.run.progress import show

_noted = False  # whether work within `Interrupts` has been asked to stop, at any time of this process


def ask_to_stop() -> None:
    """From any thread: SIGTERM to this process, unless a signal has come already, as to all processes of a service.

    The second one would end it at once.
    """
    if not _noted:
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupts:
    """Within `with`: `signum` is the number of the first such signal that came, None so far.

    Takes over only what Python does by default, in the main thread: handlers of a program's own stay, and so does a
    signal that is ignored (`nohup`).
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for signum in HEEDED:
                if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: Any) -> None:
        global _noted
        self.signum, _noted = signum, True
        if HANGUP in self._before:  # never the default in between: that would end the program at once
            signal.signal(HANGUP, signal.SIG_IGN)
        self._restore(but=HANGUP)
        if signum == HANGUP:
            self._before = {}  # another may come after the run
            for fd in self._terminals:  # where every further line would be an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        name = signal.Signals(signum).name
        line = f"\n{name}: finishing this step and writing a checkpoint; once more stops at once\n"
        with contextlib.suppress(OSError):  # whoever reads it may have got the signal too
            os.write(2, line.encode())  # print() may be in the middle of a line of its own

    def leave(self, state: str, again: str) -> None:
        """If a signal has come, say where the run stands and end the program as the signal would have."""
        if self.signum is None:
            return
        line = f"{state}; to go on from the newest checkpoint: {again}"
        show(line)
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt(line)
        raise SystemExit(128 + self.signum)

    def _restore(self, but: int | None = None) -> None:
        for signum in self._before.keys() - {but}:
            signal.signal(signum, self._before.pop(signum))

    def __exit__(self, *error: object) -> None:
        self._restore()
