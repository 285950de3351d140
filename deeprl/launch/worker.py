"""A process that trains one run: fresh for each, so that nothing of one, or of its end, reaches another.

`python -m deeprl.launch.worker` reads an order, a line of JSON, from its standard input. The next line, or the end of
the input because the process that gave the order is gone, asks it to stop as SIGTERM does: with a checkpoint, after its
current step. A Ctrl-C, which reaches all processes of a terminal, is left to the one that gives the orders.

Exit status: 0, or that of a signal, as `deeprl train` has; 2 for bad input, which is the last line of the log;
`IN_USE` if another process works on the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import deeprl
from deeprl.errors import DeeprlError, InUseError
from deeprl.run.interrupts import ask_to_stop
from deeprl.run.lock import release_of
from deeprl.run.progress import show

IN_USE = 75  # "temporary failure" of sysexits.h
_IGNORED = {"SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"}  # a terminal's and Slurm's, which go to all processes


@dataclasses.dataclass(frozen=True)
class Order:
    """What a worker needs to know of a run. config: its settings as plain JSON.

    cores: to keep to; all if empty. patience: seconds to wait for another process in the run's directory, which may
    have been killed a moment ago. hosts: those known to be alive, where somebody knows; a lock of another is void.
    place: the working directory, where there is one of that name.
    """

    algorithm: str
    config: Mapping[str, Any]
    log: str
    place: str
    cores: tuple[int, ...] = ()
    patience: float = 10.0
    hosts: tuple[str, ...] = ()


def begin_worker(order: Order, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a worker; what it prints is appended to the log. environment: variables to set beside those here."""
    source = str(Path(deeprl.__file__).resolve().parent.parent)  # the same deeprl, however this process has found it
    known = dict.fromkeys([source, *filter(None, sys.path)])  # and the modules that it finds
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(known), **(environment or {})}
    log = Path(order.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {order.algorithm} {order.config.get('out')}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "deeprl.launch.worker"],
            stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=variables,
            cwd=order.place if os.path.isdir(order.place) else None,
        )  # fmt: skip
    _tell(process, json.dumps(dataclasses.asdict(order)))
    return process


def ask_worker(process: subprocess.Popen[bytes]) -> None:
    """Ask a worker to stop with a checkpoint."""
    _tell(process, "stop")


def _tell(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended
        process.stdin.write(f"{text}\n".encode())
        process.stdin.flush()


# --- in the worker ---


def work() -> int:
    """Do what the order on the standard input says. Returns the exit status."""
    for name in _IGNORED & set(signal.Signals.__members__):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    text, _, more = _read_line().partition(b"\n")
    if more or not text:  # asked to stop, or left alone, before it has begun
        return 128 + signal.SIGTERM
    order = Order(**json.loads(text))
    if order.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order.cores)
    threading.Thread(target=_listen, daemon=True).start()
    try:
        return _train(order)
    except InUseError as error:
        show(f"deeprl: {error}", sys.stderr)
        return IN_USE
    except DeeprlError as error:
        show(f"deeprl: {error}", sys.stderr)
        return 2


def _read_line() -> bytes:
    """What the standard input has up to a line's end, unbuffered: a thread that holds a buffer hinders exit."""
    found = b""
    while b"\n" not in found and (more := os.read(0, 1 << 16)):
        found += more
    return found


def _listen() -> None:
    _read_line()
    ask_to_stop()


def _train(order: Order) -> int:
    """Train, or go on, as soon as no other process does."""
    from deeprl.config import build
    from deeprl.run.extension import train_on
    from deeprl.run.trained import algorithm_module

    module = algorithm_module(order.algorithm)
    config = build(module.Config, order.config)
    until = time.monotonic() + order.patience
    while True:
        try:
            run = train_on(order.algorithm, config, module.train)
        except InUseError:
            if order.hosts and _freed(Path(config.out), order.hosts):
                continue
            if time.monotonic() > until:
                raise
            time.sleep(min(1.0, order.patience))
        else:
            show(f"{'finished' if run.finished else 'ended'} at step {run.step:,}")
            return 0


def _freed(directory: Path, hosts: Collection[str]) -> bool:
    freed = release_of(directory, hosts)
    if freed:
        show(f"{directory} was in use by a process on a host that is gone; going on in its place")
    return freed


if __name__ == "__main__":
    sys.exit(work())
