"""Runs for the fault injection of `faults.py`: what is trained, how it is started, and whether two runs are the same.

Everything goes through the command line and the files that a user sees.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 0.004  # between checkpoints: a quarter of a second
SELDOM = ("--checkpoint-minutes", "10")  # for a session that is to end without a checkpoint in its middle
_CHECKPOINT = re.compile(r"(\d+)(?:\.(\d+))?")  # a step, and a number where it was saved again
PRELOADED = ["fault_runs", "tyro", "deeprl.api", "torch._dynamo", "gymnasium.envs.classic_control"]
PRELOADED += [f"deeprl.online.{name}" for name in ("sac", "td3", "dqn")]


@dataclasses.dataclass(frozen=True)
class Case:
    """A run to damage. words: its settings on the command line. share: of the kills, relative to the other cases."""

    algorithm: str
    steps: int
    words: str
    share: float = 1.0
    minutes: float = MINUTES

    def command(self, out: Path, *more: str) -> list[str]:
        """The words after `python -m deeprl`; the same again continue the run."""
        words = f"train {self.algorithm} --steps {self.steps} {self.words} --threads 1"
        words += "" if "--compile" in self.words else " --compile off"
        return [*words.split(), "--checkpoint-minutes", str(self.minutes), "--out", str(out), *more]


# Every phase is short, but there: random steps, learning, rows, evaluations; replay memories that wrap around.
_SMALL = "--hidden 32 32 --batch-size 32 --log-every 50 --eval-every 200 --eval-episodes 2"
CASES = {
    "sac_hopper": Case(
        "sac", 900, f"--env Hopper-v5 --seeds 0-1 --learning-starts 200 --buffer-size 500 --normalize-obs {_SMALL}"
    ),
    "sac_pendulum_3_envs": Case(
        "sac", 1500, f"--env Pendulum-v1 --seeds 0-1 --envs-per-agent 3 --learning-starts 300 --utd 0.5 {_SMALL}"
    ),
    "sac_loop": Case(
        "sac", 600, f"--env Pendulum-v1 --seeds 0-1 --backend loop --learning-starts 150 --buffer-size 250 {_SMALL}"
    ),
    "td3_cheetah": Case("td3", 900, f"--env HalfCheetah-v5 --seeds 0-1 --learning-starts 200 {_SMALL}"),
    "td3_pendulum_3_envs": Case(
        "td3", 1500, f"--env Pendulum-v1 --seeds 0-2 --envs-per-agent 3 --learning-starts 300 --utd 0.5 {_SMALL}"
    ),
    "dqn_prioritized": Case(
        "dqn",
        1500,
        "--env CartPole-v1 --seeds 0-1 --prioritized --n-step 3 --double --learning-starts 300 --train-every 2"
        f" --utd 0.5 --target-every 100 --buffer-size 700 --epsilon-steps 1500 {_SMALL}",
    ),
    "dqn_acrobot_3_envs": Case(
        "dqn",
        1800,
        "--env Acrobot-v1 --seeds 0-1 --envs-per-agent 3 --dueling --value c51 --v-min -100 --v-max 0"
        f" --learning-starts 300 --train-every 3 --utd 0.3 --epsilon-steps 1000 {_SMALL}",
    ),
    "dqn_minatar": Case(
        "dqn",
        1200,
        "--env MinAtar/Breakout-v1 --seeds 0-1 --n-step 3 --learning-starts 300 --train-every 4 --utd 0.25"
        f" --target-every 100 --buffer-size 600 --epsilon-steps 1000 {_SMALL}",
    ),
    "dqn_compiled": Case(
        "dqn",
        2500,
        "--env CartPole-v1 --seeds 0-1 --compile on --learning-starts 300 --train-every 2 --utd 0.5"
        f" --epsilon-steps 1500 {_SMALL}",
        share=0.5,
    ),
}


# --- starting runs ---


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`python -m deeprl` as a process group of its own; what it prints is added to `log`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    settings = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    heed_ctrl_c()
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "deeprl", *words],
            stdout=file,
            stderr=file,
            env=settings,
            start_new_session=True,
        )


def heed_ctrl_c() -> None:
    """A program that was begun in the background ignores Ctrl-C, and so would what it starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Attempt(NamedTuple):
    """A command that has ended. status: of its exit; negative for a signal, None for one that had to be killed."""

    status: int | None
    output: str

    @property
    def refused(self) -> bool:
        """Whether it gave up as it should: one line, status 2, no traceback."""
        said = self.errors == [self.last_line]  # a message of two lines would end in another one
        return self.status == 2 and said and "Traceback" not in self.output

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("deeprl: ")]

    @property
    def last_line(self) -> str:
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def begin(words: Sequence[str], log: Path, before: Callable[[], Any] | None = None) -> Any:
    """The command line's main function in a new process that is forked where everything is imported already.

    before: called first in that process.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # of effect before the first process
    process = context.Process(target=_main, args=(list(words), str(log), before))
    process.start()
    return process


def end(process: Any, log: Path, limit_s: float = 120.0) -> Attempt:
    """Wait for what `begin` has started; kill it after `limit_s`."""
    process.join(limit_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Attempt(None, log.read_text(errors="replace", encoding="utf-8"))
    return Attempt(process.exitcode, log.read_text(errors="replace", encoding="utf-8"))


def attempt(words: Sequence[str], before: Callable[[], Any] | None = None, limit_s: float = 120.0) -> Attempt:
    """Run a command to its end, as `begin` does."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        log.touch()
        return end(begin(words, log, before), log, limit_s)


def _main(words: list[str], log: str, before: Callable[[], Any] | None) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    heed_ctrl_c()
    sys.argv = ["deeprl", *words]
    if before is not None:
        before()
    from deeprl.commands.main import main

    sys.exit(main(words))


# --- looking at runs ---


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    try:
        paths = [p for p in (out / "checkpoints").iterdir() if p.is_dir()]
    except OSError:
        return []
    found = [(int(m[1]), int(m[2] or 0), p) for p in paths if (m := _CHECKPOINT.fullmatch(p.name))]
    return [path for _, _, path in sorted(found)]


def newest_step(out: Path) -> int:
    """The step of the newest checkpoint; -1 where there is none."""
    found = checkpoints(out)
    return int(found[-1].name.split(".")[0]) if found else -1


def unfinished(out: Path) -> set[tuple[str, int]]:
    """Names and inodes of what is only being written, in the directory of checkpoints."""
    try:
        with os.scandir(out / "checkpoints") as entries:
            return {(e.name, e.inode()) for e in entries if not _CHECKPOINT.fullmatch(e.name)}
    except OSError:
        return set()


def digests(out: Path) -> dict[str, str]:
    """A digest of every file of a run, but for locks."""
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and "lock" not in p.name]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file without its column wall_s."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def agents(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint by name."""
    return torch.load(checkpoints(out)[-1] / "state.pt", weights_only=True)["agents"]


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) of every curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports every cut
    found = {}
    for directory in sorted((out / "tensorboard").glob("*")):
        events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found[f"{directory.name}/{tag}"] = [(e.step, e.value) for e in events.Scalars(tag)]
    return found


class Comparison(NamedTuple):
    """compared: what there was to compare. differences: what is not the same; empty for equal runs."""

    compared: str
    differences: list[str]


def compare(one: Path, other: Path) -> Comparison:
    """Whether two finished runs have the same agents and records, bit for bit; times may differ."""
    differ = []
    for out in (one, other):
        state = json.loads((out / "status.json").read_text(encoding="utf-8"))["state"]
        differ += [f"{out.name} is {state}"] if state != "finished" else []
    expected, found = agents(one), agents(other)
    if expected.keys() != found.keys() or newest_step(one) != newest_step(other):
        differ.append("other names of tensors, or another last step")
    differ += [f"tensor {k}" for k in expected if k in found and not _same_bits(expected[k], found[k])]
    counts = [f"{len(expected)} tensors"]
    for name in ("metrics.csv", "evaluations.csv"):
        here, there = rows(one / name), rows(other / name)
        counts.append(f"{len(here)} rows of {name}")
        if here != there:
            differ.append(f"{name}: {len(there)} rows instead of {len(here)}" if len(here) != len(there) else name)
    curves, others = scalars(one), scalars(other)
    counts.append(f"{sum(map(len, curves.values()))} TensorBoard values")
    if curves.keys() != others.keys():
        differ.append("other TensorBoard curves")
    for name in sorted(curves.keys() & others.keys()):
        if curves[name] != others[name]:
            differ.append(f"TensorBoard {name}: {len(others[name])} values instead of {len(curves[name])}, or others")
    return Comparison(", ".join(counts), differ)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
