"""Speed of deeprl beside its peers: the whole training loop, measured side by side on this machine.

    make peers
    python benchmarks/speed.py --algorithm sac --env HalfCheetah-v5 --agents 8 \
        --peers sb3=.peers/sb3/bin/python,sbx=.peers/sbx/bin/python --seconds 20 --rounds 5 \
        --csv benchmarks/results/speed.csv

Launch modes, on C cores (`--cores`, default 2):
    deeprl   one process of C threads with the whole population; C processes of one thread that share it equally
    peers    one process of C threads with one agent; C processes of one thread with one agent each
Every process of one thread is pinned to a core of its own. One mode runs at a time and they take turns (A B C A B C);
each turn is a fresh process that warms up first: imports, random steps and compilation lie outside the window. The
processes of a mode measure during the same window and their rates are summed.

What each number is:
    steps_per_s   agent steps, which are agent updates, per second of the whole loop (`includes` says what a step
                  holds), summed over the agents of a mode: the median over the rounds.
    ratio         a deeprl mode against the best mode of one peer: the ratio within each round, then their median.
    other load    cores that anything outside the mode kept busy during a window (Linux only; `includes` has the most).
                  A turn with more than `--quiet` of it is repeated, up to `--retries` times; the quietest one counts.
Rows replace earlier rows of the same algorithm, environment, agents, variant, peer, precision and device.
`--agents 0` measures the peers alone; no `--peers`, deeprl alone. `--set name=value` changes a field of the Config.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLUMNS = ["algorithm", "env", "agents", "variant", "includes", "steps_per_s", "ratio_to", "ratio", "cores", "threads"]
COLUMNS += ["precision", "device", "versions", "command"]
TIMEOUT = 900.0  # seconds that one turn may take in all, warm-up included
KEY = ("algorithm", "env", "agents", "variant", "precision", "device")
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}


@dataclasses.dataclass(frozen=True)
class Mode:
    library: str
    processes: int
    threads: int  # of each process
    agents: int  # of all processes together
    commands: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.library}: {processes} x {self.threads} thread{'s' if self.threads > 1 else ''}"


Rounds = dict[Mode, list[dict[str, Any]]]  # what each round gave


def rates(rounds: Rounds, mode: Mode) -> list[float]:
    return [result["steps_per_s"] for result in rounds[mode]]


# --- the modes ---


def launch_modes(args: argparse.Namespace, library: str, head: list[str], agents: int) -> list[Mode]:
    """One process over all cores, then one pinned process per core; `agents` 0 stands for one agent a process."""
    cores = sorted(os.sched_getaffinity(0))[: args.cores] if hasattr(os, "sched_getaffinity") else []
    modes = []
    for processes in sorted({1, args.cores}):
        threads, share = args.cores // processes, agents // processes
        commands = []
        for index in range(processes):
            mine = cores if processes == 1 else cores[index : index + 1]
            tail = {"env": args.env, "seconds": args.seconds, "warmup-steps": args.warmup_steps, "threads": threads}
            tail |= {"cores": ",".join(map(str, mine)), "seed": index * max(share, 1), "device": args.device}
            tail |= {"agents": share, "algorithm": args.algorithm} if agents else {}
            commands.append((*head, *(f"--{name}={value}" for name, value in tail.items()), "--wait"))
        modes.append(Mode(library, processes, threads, agents or processes, tuple(commands)))
    return modes


def peers(args: argparse.Namespace) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in args.peers.split(",") if pair)


def all_modes(args: argparse.Namespace) -> list[Mode]:
    head = [sys.executable, str(HERE / "speed_worker.py"), *(f"--set={pair}" for pair in args.set)]
    modes = launch_modes(args, "deeprl", head, args.agents) if args.agents else []
    for name, python in peers(args).items():
        # abspath and not resolve: the link itself is what makes it the python of its own environment
        modes += launch_modes(args, name, [os.path.abspath(python), str(HERE / "peers.py"), name], 0)
    return modes


# --- one turn of one mode ---


def busy_seconds() -> float:
    """CPU seconds that this machine has been busy so far, time stolen by its host included; 0 where unknown."""
    with contextlib.suppress(OSError):
        ticks = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]  # of all cores together
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # 3 and 4: idle, waiting for a disk
    return 0.0


@contextlib.contextmanager
def started(mode: Mode) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a mode, in a folder for what simulators leave behind; gone after the block, killed if hung."""
    workers: list[subprocess.Popen[str]] = []

    def kill() -> None:
        for worker in workers:
            if worker.poll() is None:  # each leads its own group, so that its compile workers go with it
                os.killpg(worker.pid, signal.SIGKILL)

    watchdog = threading.Timer(TIMEOUT, kill)
    with tempfile.TemporaryDirectory() as folder:
        try:
            watchdog.start()
            for index, command in enumerate(mode.commands):
                with open(f"{folder}/{index}.err", "w") as errors:
                    workers.append(subprocess.Popen(command, stderr=errors, cwd=folder, **PIPES))
            yield workers
        except EOFError:
            told = [path.read_text()[-3000:] for path in sorted(Path(folder).glob("*.err"))]
            raise SystemExit(f"{mode.name} died or hung:\n" + "\n".join(told)) from None
        finally:
            watchdog.cancel()
            kill()
            for worker in workers:
                worker.communicate()


def expect(worker: subprocess.Popen[str], start: str) -> str:
    for line in worker.stdout or ():
        if line.startswith(start):
            return line
    raise EOFError


def turn(mode: Mode, seconds: float) -> dict[str, Any]:
    """One window of one mode, summed over its processes."""
    with started(mode) as workers:
        for worker in workers:
            expect(worker, "READY")
        began, busy = time.monotonic(), busy_seconds()
        for worker in workers:
            print("go", file=worker.stdin, flush=True)
        time.sleep(seconds)
        busy = (busy_seconds() - busy) / (time.monotonic() - began)  # before the workers tidy up
        results: list[dict[str, Any]] = [json.loads(expect(worker, "{")) for worker in workers]
        for worker in workers:
            worker.wait()  # nothing may still run when the next mode starts
    own = sum(result["cpu_s_per_s"] for result in results)
    return results[0] | {
        "steps_per_s": sum(result["steps_per_s"] for result in results),
        "cpu_s_per_s": own,
        "slowest_step_s": max(result["slowest_step_s"] for result in results),
        "other_load": max(busy - own, 0.0),
    }


def quiet_turn(mode: Mode, args: argparse.Namespace, label: str) -> dict[str, Any]:
    """A turn while the rest of the machine was quiet; which one counts never depends on how fast it was."""
    turns: list[dict[str, Any]] = []
    while not turns or (turns[-1]["other_load"] > args.quiet and len(turns) <= args.retries):
        turns.append(found := turn(mode, args.seconds))
        print(
            f"{label}  {mode.name:<32} {found['steps_per_s']:8.1f} steps/s  {found['cpu_s_per_s']:.2f} cores  "
            f"slowest turn {found['slowest_step_s'] * 1e3:.0f} ms  other load {found['other_load']:.2f}",
            flush=True,
        )
    return min(turns, key=lambda one: float(one["other_load"]))


# --- rows ---


def typed_command(args: argparse.Namespace) -> str:
    """The command as a user would type it: no path of this machine."""
    flags = ("algorithm", "env", "agents", "seconds", "rounds", "warmup_steps", "cores", "device")
    words = ["python benchmarks/speed.py", *(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in flags)]
    named = []
    for name, path in peers(args).items():
        generic = f".peers/{name.removesuffix('-medium')}/bin/python"
        named.append(f"{name}={generic if os.path.isabs(path) else path}")
    words += ["--peers " + ",".join(named)] if named else []
    return " ".join(words + [f"--set {pair}" for pair in args.set])


def device_name(device: str) -> str:
    if device != "cpu":
        return device  # deeprl's worker names the card
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()


def row(args: argparse.Namespace, rounds: Rounds, mode: Mode, against: Mode | None = None) -> dict[str, str]:
    first, speeds = rounds[mode][0], rates(rounds, mode)
    described = [rounds[one][0]["versions"] for one in (mode, against) if one]
    noise = max(result["other_load"] for one in (mode, against) if one for result in rounds[one])
    spread, what, ratio = speeds, "rate", ""
    if against:
        spread = [ours / theirs for ours, theirs in zip(speeds, rates(rounds, against), strict=True)]
        what, ratio = "ratio", f"{statistics.median(spread):.2f}"
    extent = (
        f"{what}: median of {len(spread)} rounds of {args.seconds:g} s, range {min(spread):.4g} to {max(spread):.4g}"
    )
    return {
        "algorithm": args.algorithm,
        "env": args.env,
        "agents": str(mode.agents),
        "variant": mode.name,
        "includes": f"{first['includes']}; {extent}, other load at most {noise:.2f} cores",
        "steps_per_s": f"{statistics.median(speeds):.1f}",
        "ratio_to": against.name if against else "",
        "ratio": ratio,
        "cores": str(args.cores),
        "threads": str(mode.threads),
        "precision": first["precision"],
        "device": device_name(first["device"]),
        "versions": " against ".join(" ".join(f"{name}={v}" for name, v in one.items()) for one in described),
        "command": typed_command(args),
    }


def table(args: argparse.Namespace, rounds: Rounds) -> list[dict[str, str]]:
    rows = [row(args, rounds, mode) for mode in rounds]
    for peer in peers(args):
        best = max((m for m in rounds if m.library == peer), key=lambda m: statistics.median(rates(rounds, m)))
        rows += [row(args, rounds, mode, best) for mode in rounds if mode.library == "deeprl"]
    return rows


def save(path: Path, rows: list[dict[str, str]]) -> None:
    def key(row: dict[str, str]) -> tuple[str, ...]:
        return (*(row[name] for name in KEY), row["ratio_to"].split(":")[0])  # whichever mode of the peer was best

    fresh = {key(row) for row in rows}
    stored = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    kept = [old for old in stored if key(old) not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--algorithm", default="sac")
    flags.add_argument("--env", default="HalfCheetah-v5")
    flags.add_argument("--agents", type=int, default=8, help="size of deeprl's population, all processes together")
    flags.add_argument("--peers", default="", metavar="NAME=PYTHON,...", help="names: sb3, sb3-medium, sbx")
    flags.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--warmup-steps", type=int, default=300, help="steps with updates before the window")
    flags.add_argument("--cores", type=int, default=2)
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of deeprl's Config")
    flags.add_argument("--quiet", type=float, default=0.15, metavar="CORES", help="other load that is let pass")
    flags.add_argument("--retries", type=int, default=2, help="more turns where the machine was not quiet")
    flags.add_argument("--csv", type=Path, help="where rows go; without it they are only printed")
    return flags


def main() -> None:
    args = parser().parse_args()
    if args.agents % args.cores or args.cores > (os.cpu_count() or 1):
        raise SystemExit(f"--cores {args.cores}: needs as many cores, and --agents must divide by it")
    if args.peers and args.algorithm != "sac":
        raise SystemExit("benchmarks/peers.py knows SAC only: leave --peers out for another algorithm")
    rounds: Rounds = {mode: [] for mode in all_modes(args)}
    for index in range(args.rounds):
        for mode, results in rounds.items():
            results.append(quiet_turn(mode, args, f"round {index + 1}/{args.rounds}"))
        rows = table(args, rounds)
        if args.csv:
            save(args.csv, rows)  # after every round, so that a broken run leaves what it has
    for one in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]:
        print(f"{one['variant']:<34}{one['agents']:>7}{one['steps_per_s']:>13}{one['ratio']:>8}  {one['ratio_to']}")


if __name__ == "__main__":
    main()
