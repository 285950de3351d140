"""What a checkpoint costs: seconds and bytes for a population of 8 with a million transitions each.

    python benchmarks/checkpoints.py [--agents 8] [--transitions 1_000_000] [--rounds 3] [--csv FILE.csv]

The buffer has the shape of HalfCheetah-v5 (17 observations, 6 actions, float32) and random content. `whole`: the first
checkpoint, or the one that Ctrl-C writes in a run without any. `new rows`: every later one, after `--minutes` of
training at `--steps-per-s` steps of each agent per second, a row for each. `resume`: the checkpoint is read, its
digests checked, its rows put back. `share` is seconds over the minutes between two checkpoints (the run stands still
while one is written). Median of the rounds; the disk is the one that holds `--directory`.
"""

from __future__ import annotations

import csv
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from deeprl.core.spec import EnvSpec
from deeprl.replay import Replay
from deeprl.run import checkpoint, provenance

SPEC = EnvSpec((17,), 6, (-1.0,) * 6, (1.0,) * 6)
COLUMNS = ["case", "agents", "transitions", "new_rows", "seconds", "low", "high", "bytes", "share", "device", "commit"]
COLUMNS += ["versions", "command"]


@dataclass
class Options:
    agents: int = 8
    transitions: int = 1_000_000
    minutes: float = 10.0
    """Between two checkpoints; the default of `--checkpoint-minutes`."""
    steps_per_s: float = 54.0
    """SAC, population of 8, bf16 products, two cores: 432 agent updates per second at the time."""
    rounds: int = 3
    directory: str = ""
    """Where to write; a temporary directory by default."""
    csv: str = ""


def full_buffer(options: Options) -> Replay:
    replay = Replay(options.agents, options.transitions, SPEC)
    generator = torch.Generator().manual_seed(0)
    for rows in (replay.data.obs, replay.data.next_obs, replay.data.action, replay.data.reward):
        rows.copy_(torch.rand(rows.shape, generator=generator))
    pretend_steps(replay, options.transitions)
    return replay


def pretend_steps(replay: Replay, steps: int) -> None:
    """Count steps whose rows are there already."""
    replay._inserted += steps
    replay._measure()


def timed(function: Any, *args: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def restore(directory: Path, replay: Replay) -> None:
    found = checkpoint.load_checkpoint(directory)
    assert found is not None
    replay.load_state_dict(found[1]["replay"])


def measure(options: Options, directory: Path) -> dict[str, tuple[list[float], int, int]]:
    """Seconds of every round, bytes written and new rows of each agent, by case."""
    new = round(options.minutes * 60 * options.steps_per_s)
    seconds: dict[str, list[float]] = {"whole": [], "new rows": [], "resume": []}
    sizes = {}
    replay = full_buffer(options)
    for number in range(options.rounds):
        folder = directory / str(number)
        folder.mkdir()
        replay.history.blocks, replay.history.stored = [], 0  # as if none of its rows had been stored
        took, path = timed(lambda f: checkpoint.save(f, 1, {"replay": replay.state_dict()}), folder)
        seconds["whole"].append(took)
        sizes["whole"] = sum(p.stat().st_size for p in path.iterdir())
        pretend_steps(replay, new)
        took, path = timed(lambda f: checkpoint.save(f, 2, {"replay": replay.state_dict()}), folder)
        seconds["new rows"].append(took)
        sizes["new rows"] = sum(p.stat().st_size for p in path.iterdir() if p.stat().st_nlink == 1)
        other = Replay(options.agents, options.transitions, SPEC)
        took, _ = timed(restore, folder, other)
        seconds["resume"].append(took)
        if not all(torch.equal(a, b) for a, b in zip(replay.data, other.data, strict=True)):
            raise SystemExit("the buffer that came back is another one")
    return {
        "whole": (seconds["whole"], sizes["whole"], options.transitions),
        "new rows": (seconds["new rows"], sizes["new rows"], new),
        "resume": (seconds["resume"], 0, 0),
    }


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(dir=options.directory or None) as folder:
        measured = measure(options, Path(folder))
    about = provenance.provenance_of("cpu", torch.get_num_threads())
    versions = " ".join(f"{k}={v}" for k, v in about["versions"].items())
    rows = []
    for case, (seconds, size, new) in measured.items():
        middle = statistics.median(seconds)
        share = "" if case == "resume" else f"{middle / (60 * options.minutes):.5f}"
        counts = (case, options.agents, options.transitions, new)
        figures = (f"{middle:.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}", size, share)
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        rows.append([*counts, *figures, about["device"], about["commit"], versions, command])
        print(f"{case}: {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {size / 1e6:,.0f} MB, share {share}")
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
