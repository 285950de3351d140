"""Hand out populations to workers: in this process, in others on this machine, on a Ray cluster, on Slurm."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.errors import DeeprlError, InUseError, nearest
from deeprl.launch.board import Board
from deeprl.launch.glance import FAILED, Glance, glance, last_lines, log_of
from deeprl.launch.hands import End, Hands, WorkUnit
from deeprl.launch.local import LocalHands
from deeprl.launch.worker import IN_USE
from deeprl.run.extension import train_on
from deeprl.run.interrupts import Interrupts
from deeprl.run.progress import show
from deeprl.run.trained import algorithm_module

LAUNCHERS = ("local", "ray", "slurm")
_POLL_SECONDS = 0.2
_LAST_LINES = 5  # of the log of a unit that has failed


@dataclass(frozen=True)
class Launching:
    """How units are handed out. Raises DeeprlError for what cannot be.

    jobs: at most so many at a time; by default 1 with `local`, which trains in this process then, and no limit
    elsewhere. address: of a Ray cluster, `auto` for that of this machine. resources: what each unit takes: of Ray, such
    as {"CPU": 2, "GPU": 1}, one CPU by default; parameters of submitit's `update_parameters` with Slurm.
    """

    launcher: str = "local"
    jobs: int | None = None
    address: str = "auto"
    resources: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            hint = nearest(self.launcher, LAUNCHERS) or f"; known: {', '.join(LAUNCHERS)}"
            raise DeeprlError(f"--launcher: unknown launcher {self.launcher!r}{hint}")
        if self.jobs is not None and self.jobs < 1:
            raise DeeprlError(f"--jobs: must be positive, not {self.jobs}")
        if self.address != "auto" and self.launcher != "ray":
            raise DeeprlError(f"--address: has no effect with --launcher {self.launcher}")
        if self.resources and self.launcher == "local":
            raise DeeprlError("--resources: has no effect with --launcher local; see --jobs")
        package = {"ray": "ray", "slurm": "submitit"}.get(self.launcher)
        if package and importlib.util.find_spec(package) is None:
            remedy = f"pip install 'deeprl[{self.launcher}]'"
            raise DeeprlError(f"--launcher {self.launcher} needs {package}; install it with: {remedy}")
        if self.launcher == "slurm" and shutil.which("sbatch") is None:
            raise DeeprlError("--launcher slurm: there is no sbatch on this machine; start it where jobs are submitted")
        if self.launcher == "ray":
            _check_amounts(self.resources)

    def reach(self) -> None:
        """Raise DeeprlError, within 20 s, where the cluster cannot be reached."""
        if self.launcher == "ray":
            from deeprl.launch.ray import reach

            reach(self.address)

    def hands(self, units: Sequence[WorkUnit], out: Path) -> Hands:
        """Workers for units. out: a directory around all of theirs, shared by all machines."""
        if self.launcher == "ray":
            from deeprl.launch.ray import RayHands

            return RayHands(units, out, self.address, self.resources, self.jobs)
        if self.launcher == "slurm":
            from deeprl.launch.slurm import SlurmHands

            return SlurmHands(units, out, self.resources, self.jobs)
        return LocalHands(units, self.jobs or 1)


def parse_resources(text: str) -> dict[str, Any]:
    """`--resources`: a JSON object. Raises DeeprlError for anything else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DeeprlError(f'--resources: not JSON ({error}); such as \'{{"CPU": 2, "GPU": 1}}\'') from error
    if not isinstance(found, dict):
        raise DeeprlError(f"--resources: expected an object such as '{{\"CPU\": 2}}', not {text}")
    return found


def _check_amounts(resources: Mapping[str, Any]) -> None:
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise DeeprlError(f"--resources: {name}: expected a number that is not negative, not {amount!r}")


class Ending(NamedTuple):
    """How a unit has ended: finished (also: before), stopped (`max_hours`, a callback), elsewhere (another process
    works on it), or failed, for a `cause` in one line. What has diverged has finished."""

    unit: WorkUnit
    state: str
    cause: str = ""


def launch(units: Sequence[WorkUnit], out: str | Path, launching: Launching | None = None) -> list[Ending]:
    """Train units, each at most once, and return how each has ended, in their order.

    A unit is anything with `algorithm`, `config`, `directory`, `name` and `finished()` (`hands.WorkUnit`): one
    population in a run directory, which any process continues. Those that are finished are left alone; no unit is
    handed to two workers, and one that a process outside of this call works on is left to it. out: a directory around
    all of theirs.

    With one job on this machine they are trained in this process, one after the other, and the first error ends it.
    Else each has a process of its own (`launch/worker.py`): one that fails is reported with the end of its log, and the
    others go on. Ctrl-C and SIGTERM let all of them write a checkpoint; then KeyboardInterrupt or SystemExit is raised.
    The same call goes on.
    """
    launching = launching or Launching()
    if launching.launcher == "local" and launching.jobs in (None, 1):
        return [_train_here(unit, f"[{number}/{len(units)}] {unit.name}") for number, unit in enumerate(units, 1)]
    return _Foreman(units, Path(out)).work(launching)


def _train_here(unit: WorkUnit, name: str) -> Ending:
    if unit.finished():
        show(f"{name}: finished before")
        return Ending(unit, "finished")
    show(f"{name}: {len(unit.config.seeds)} agents x {unit.config.steps:,} steps")
    try:
        with contextlib.chdir("."):  # which environments may change
            train_on(unit.algorithm, unit.config, algorithm_module(unit.algorithm).train)
    except InUseError as error:
        show(f"{name}: left to another process ({error})")
        return Ending(unit, "elsewhere", str(error))
    return Ending(unit, "finished" if unit.finished() else "stopped")


class _Foreman:
    """Hands out units to workers and tells how they end."""

    def __init__(self, units: Sequence[WorkUnit], out: Path):
        self._units, self._out = units, out
        self._outcomes: dict[int, Ending] = {}
        self._begun: set[int] = set()

    def work(self, launching: Launching) -> list[Ending]:
        before = [i for i, unit in enumerate(self._units) if unit.finished()]
        self._outcomes = {i: Ending(self._units[i], "finished") for i in before}
        waiting = deque(i for i in range(len(self._units)) if i not in self._outcomes)
        if before:
            show(f"{len(before)} of {len(self._units)} finished before")
        if not waiting:
            return self._in_order()
        with launching.hands(self._units, self._out) as hands, Interrupts() as interrupts:
            with Board(self._glances) as board:
                self._hand_out(waiting, hands, board, interrupts)
            done = sum(outcome.state == "finished" for outcome in self._outcomes.values())
            interrupts.leave(f"stopped with {done} of {len(self._units)} finished", "the same command")
        return self._in_order()

    def _in_order(self) -> list[Ending]:
        return [self._outcomes[i] for i in range(len(self._units))]

    def _hand_out(self, waiting: deque[int], hands: Hands, board: Board, interrupts: Interrupts) -> None:
        stopping = False
        while waiting or hands.busy():
            if interrupts.signum is not None and not stopping:
                stopping = True
                waiting.clear()
                hands.stop()
            while waiting and hands.free():
                index = waiting.popleft()
                self._begun.add(index)
                hands.start(index)
                unit = self._units[index]
                board.say(f"{self._told(index)}: {len(unit.config.seeds)} agents x {unit.config.steps:,} steps")
            for end in hands.ended():
                self._outcomes[end.number] = outcome = self._outcome(end, stopping)
                board.say(*self._report(end, outcome))
            board.update()
            time.sleep(_POLL_SECONDS)

    def _told(self, index: int) -> str:
        return f"[{index + 1}/{len(self._units)}] {self._units[index].name}"

    def _outcome(self, end: End, stopping: bool) -> Ending:
        unit = self._units[end.number]
        if unit.finished():
            return Ending(unit, "finished")
        if end.status == IN_USE:
            return Ending(unit, "elsewhere", _cause(unit, end))
        if stopping or (end.status == 0 and not end.cause):
            return Ending(unit, "stopped")
        return Ending(unit, "failed", _cause(unit, end))

    def _report(self, end: End, outcome: Ending) -> Iterator[str]:
        name, unit = self._told(end.number), outcome.unit
        if outcome.state == "elsewhere":
            yield f"{name}: left to another process ({outcome.cause})"
        elif outcome.state != "failed":
            yield f"{name}: {outcome.state}"
        else:
            log = log_of(unit.directory)
            yield f"{name}: failed; the last lines of {log}:"
            with contextlib.suppress(OSError):
                yield from (f"    {line}" for line in last_lines(log, _LAST_LINES))
            with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                file.write(f"{FAILED}{outcome.cause}\n")

    def _glances(self) -> list[Glance]:
        return [self._glance(i, unit) for i, unit in enumerate(self._units)]

    def _glance(self, index: int, unit: WorkUnit) -> Glance:
        seen = glance(unit.directory, unit.name, {"agents": len(unit.config.seeds), "steps": unit.config.steps})
        if index not in self._begun and seen.state in ("killed", "failed", "stopped"):
            return seen._replace(state="waiting", note="")  # as an earlier call has left it
        if index in self._begun and index not in self._outcomes and seen.state in ("waiting", "killed", "failed"):
            at_work = log_of(unit.directory).exists()  # it may still wait for a place in a cluster
            return seen._replace(state="starting" if at_work else "waiting", note="")
        return seen


def _cause(unit: WorkUnit, end: End) -> str:
    """Why a worker did not finish its unit, in one line: the last of its log, if it had a word to say."""
    if end.cause:
        return end.cause
    if end.status < 0:
        return f"ended by {signal.Signals(-end.status).name}"
    with contextlib.suppress(OSError):
        return next(iter(last_lines(log_of(unit.directory), 1)), "").removeprefix("deeprl: ")
    return f"exit status {end.status}"
