"""Launch modes of the speed benchmarks: which processes measure together, and the command of each."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ("sb3", "sb3-medium", "sbx", "d3rlpy", "eager", "eager-medium")


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way of running a library. agents: of all processes together. every: environment steps for each update."""

    library: str
    what: str  # loop or update
    processes: int
    threads: int  # of each process
    agents: int
    every: int
    size: str  # of networks and batch, where it is not that of the task
    commands: tuple[tuple[str, ...], ...]
    backend: str = ""  # of deeprl's environments, where it is not `sync`

    @property
    def side(self) -> str:
        """What is measured, whatever the launch mode."""
        where = f"{self.library}, {self.backend} environments" if self.backend else self.library
        return f"{where} update" if self.what == "update" else where

    @property
    def name(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        often = f", 1 update in {self.every} steps" if self.every > 1 else ""
        size = f", {self.size.replace(':', ' batch ')}" if self.size else ""
        return f"{self.side}: {processes} x {self.threads} thread{'s' if self.threads > 1 else ''}{often}{size}"


def launch_modes(
    args: argparse.Namespace,
    library: str,
    head: Sequence[str],
    agents: int = 0,
    what: str = "loop",
    processes: Sequence[int] = (),
    backend: str = "",
) -> list[Mode]:
    """One process over all cores, and one pinned process per core where the agents can be shared out equally.

    agents: of all processes together; 0 stands for one agent a process. processes: other numbers of processes.
    """
    cores = sorted(os.sched_getaffinity(0))[: args.cores] if hasattr(os, "sched_getaffinity") else []
    every = args.every if what == "loop" else 1
    modes = []
    for count in processes or sorted({1, args.cores}):
        if agents % count:
            continue
        threads, share = args.cores // count, agents // count
        commands = []
        for index in range(count):
            mine = cores if count == 1 else cores[index : index + 1]
            flags = {"algorithm": args.algorithm, "env": args.env, "size": args.size, "what": what, "every": every}
            flags |= {"seconds": args.seconds, "warmup-steps": args.warmup_steps, "threads": threads}
            flags |= {"cores": ",".join(map(str, mine)), "seed": index * max(share, 1), "device": args.device}
            flags |= {"agents": share} if agents else {}
            commands.append((*head, *(f"--{name}={value}" for name, value in flags.items()), "--wait"))
        modes.append(Mode(library, what, count, threads, agents or count, every, args.size, tuple(commands), backend))
    return modes


def peers(text: str) -> dict[str, str]:
    """The pythons of the peers named in NAME,NAME=PYTHON,...; without one, that of `make peers`."""
    found = {}
    for pair in filter(None, text.split(",")):
        name, _, python = pair.partition("=")
        if name not in PEERS:
            raise SystemExit(f"--peers {name}: known are {', '.join(PEERS)}")
        own = HERE.parent / ".peers" / name.removesuffix("-medium") / "bin" / "python"
        found[name] = python or (sys.executable if name.startswith("eager") else str(own))
        if not Path(found[name]).exists():
            raise SystemExit(f"{found[name]} is missing: run `make peers`, or name a python as {name}=PYTHON")
    return found


def deeprl_head(args: argparse.Namespace, backend: str = "") -> list[str]:
    """The beginning of the command of deeprl's worker."""
    pairs = [f"precision={args.precision}", *args.set, *([f"env_backend={backend}"] if backend else [])]
    return [sys.executable, str(HERE / "speed_worker.py"), *(f"--set={pair}" for pair in pairs)]


def all_modes(args: argparse.Namespace) -> list[Mode]:
    """Every mode that a command line asks for, in the order in which they take turns."""
    modes = []
    for what in args.what:
        for agents, backend in itertools.product(filter(None, args.agents), args.backends):
            own = "" if backend == "sync" else backend
            modes += launch_modes(args, "deeprl", deeprl_head(args, own), agents, what, backend=own)
        for name, python in peers(args.peers).items():
            script = "eager.py" if name.startswith("eager") else "peers.py"
            # abspath and not resolve: the link itself is what makes it the python of its own environment
            modes += launch_modes(args, name, [os.path.abspath(python), str(HERE / script), name], what=what)
    if args.roofline:
        head = [sys.executable, str(HERE / "matmul.py"), f"--precision={args.precision}"]
        modes += launch_modes(args, "matmul", head, what="update")
    return modes
