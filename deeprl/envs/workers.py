"""Environments in processes of their own: what reaches these processes, and how they end.

Ctrl-C in a terminal goes to a whole process group, as does the end of a connection, and schedulers send SIGTERM to
every process of a job. Workers heed none of these, so that their parent can finish its step with them and save. They
end when their parent closes them or ends in whatever way: then their pipes are closed, which they notice once they
have finished their step.

Programs that an environment starts are not concerned: they get the signals as usual.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess, current_process
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from deeprl.core.signals import HEEDED
from deeprl.envs.make import MakeEnv
from deeprl.errors import DeeprlError

_UNGUARDED = 79  # the exit status of a process that has run a script without its guard
_ENDED = (EOFError, BrokenPipeError, ConnectionResetError)  # what a pipe says whose other end is gone


@dataclass(frozen=True)
class Unheeding:
    """Makes an environment, in a process that heeds no signals from then on unless it is `parent`; picklable."""

    make: MakeEnv
    parent: int

    def __call__(self) -> gym.Env:
        if os.getpid() == self.parent:  # Gymnasium makes one there too, for its spaces
            return self.make()
        for number in HEEDED:
            # Not SIG_IGN, which programs that the environment starts would inherit.
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        try:
            return self.make()
        except DeeprlError as error:  # the parent made one: it knows what this process does not
            print(f"error: in a process of its own: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from error


class Workers(AsyncVectorEnv):
    """As there; that one of its processes was killed is said in one line, and ends the others.

    So are the errors that users can mend.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.processes = []
        try:
            super().__init__(*args, **kwargs)
        except _ENDED as error:
            raise DeeprlError(f"env_backend async: {_why_ended(self.processes)}") from error

    def reset(self, **kwargs: Any) -> Any:
        with self._all_alive():
            return super().reset(**kwargs)

    def step(self, actions: Any) -> Any:
        with self._all_alive():
            return super().step(actions)

    @contextmanager
    def _all_alive(self) -> Iterator[None]:
        try:
            yield
        except _ENDED as error:
            _kill(self.processes)  # `close` would wait for steps that have been read already
            what = "the process of an environment was killed (too little memory?)"
            raise DeeprlError(f"{what}; the same command goes on from the newest checkpoint") from error

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """As there, without the traces of what is said in one line."""
        failed = [self.error_queue.get() for success in successes if not success]
        if own := next((value for _, kind, value, _ in failed if issubclass(kind, DeeprlError)), None):
            _kill(self.processes)
            raise own
        for failure in failed:
            self.error_queue.put(failure)
        super()._raise_if_errors([False] * len(failed))

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        try:
            super().close_extras(timeout, terminate)
        except _ENDED:
            _kill(self.processes)
            for process in self.processes:
                process.join()


def async_vector(make: MakeEnv, n: int) -> AsyncVectorEnv:
    """`n` environments in a process each, which reset in the step that ends an episode.

    Raises DeeprlError where they cannot be made there, or these processes would run the user's script again.
    """
    _check_script()
    fns = [Unheeding(make, os.getpid())] * n
    resource_tracker.ensure_running()  # started below, it would let the signals through again
    # New processes inherit that signals wait, and so do not die of one before their first line; here they wait as well.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    try:
        # "spawn": a fork would copy the locks of torch's thread pool in whatever state they are.
        vector = Workers(fns, copy=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    Finalize(vector, _kill, (vector.processes,), exitpriority=20)
    return vector


def _check_script() -> None:
    """End a process that runs the user's script for the second time, while it is still starting.

    multiprocessing's new processes run the script first. Without the usual guard it comes here again. Raises
    DeeprlError for a script that cannot be run again.
    """
    if getattr(current_process(), "_inheriting", False):
        raise SystemExit(_UNGUARDED)  # the parent tells why
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not os.path.exists(script):
        raise DeeprlError(
            f"env_backend async: new processes begin by reading {script}, which is no file: save it as one"
        )


def _why_ended(processes: Sequence[BaseProcess]) -> str:
    """Why processes have ended before their environments were made."""
    for process in processes:
        process.join(timeout=5)  # those that end by themselves
    codes = [process.exitcode for process in processes]
    _kill([process for process, code in zip(processes, codes, strict=True) if code is None])
    if _UNGUARDED in codes:
        return (
            "each new process runs this script again, which would train in it, too; put what the script does below"
            ' if __name__ == "__main__":, or use env_backend sync'
        )
    how = "name it module:Id to have module imported there, or use env_backend sync"
    return f"an environment cannot be made in a process of its own; {how}"


def _kill(processes: Sequence[BaseProcess]) -> None:
    """Also at the exit of a process that has not closed them, where multiprocessing would send SIGTERM and wait."""
    for process in processes:
        process.kill()
