"""Workers on this machine, each with cores of its own, or a GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from deeprl.launch.hands import End, WorkUnit, order_of
from deeprl.launch.worker import ask_worker, begin_worker


class Slot(NamedTuple):
    """What one of several workers at a time has: cores to keep to, and the GPU that it sees, if there is one."""

    cores: tuple[int, ...]
    gpu: str = ""


def split_machine(jobs: int, cores: Sequence[int], gpus: Sequence[str] = ()) -> list[Slot]:
    """Slots for so many workers: cores in disjoint sets as large as possible, shared in turn where there are fewer.

    gpus: names for CUDA_VISIBLE_DEVICES, given to the workers in turn.
    """
    share, more = divmod(len(cores), jobs)
    found, at = [], 0
    for i in range(jobs):
        size = share + (i < more)
        own = tuple(cores[at : at + size]) if share else tuple(cores[i % len(cores) : i % len(cores) + 1])
        found.append(Slot(own, gpus[i % len(gpus)] if gpus else ""))
        at += size
    return found


def _cores() -> list[int]:
    """The cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]


class LocalHands:
    """Up to `jobs` workers at a time (see `hands.Hands`).

    A worker's threads are as many as its cores unless the `threads` setting or OMP_NUM_THREADS says otherwise. A run
    whose `device` is cuda or auto sees one GPU; one that names its GPU sees all.
    """

    def __init__(self, units: Sequence[WorkUnit], jobs: int):
        cores = _cores() or list(range(os.cpu_count() or 1))
        wanted = any(unit.config.device in ("cuda", "auto") for unit in units)
        self._units, self._pin = units, bool(_cores())
        self._slots = split_machine(jobs, cores, _gpus() if wanted else [])
        self._free = list(range(len(self._slots)))
        self._at_work: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}  # unit -> slot, worker

    def __enter__(self) -> LocalHands:
        return self

    def __exit__(self, *error: object) -> None:
        """What is still at work is killed: its newest checkpoint counts."""
        for _, process in self._at_work.values():
            process.kill()
            process.wait()

    def free(self) -> bool:
        return bool(self._free)

    def busy(self) -> bool:
        return bool(self._at_work)

    def start(self, index: int) -> None:
        number = self._free.pop(0)
        slot, unit = self._slots[number], self._units[index]
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(len(slot.cores))}
        if slot.gpu and unit.config.device in ("cuda", "auto"):
            variables["CUDA_VISIBLE_DEVICES"] = slot.gpu
        order = order_of(unit, cores=slot.cores if self._pin else ())
        self._at_work[index] = number, begin_worker(order, variables)

    def ended(self) -> list[End]:
        found = []
        for index, (number, process) in list(self._at_work.items()):
            if (status := process.poll()) is not None:
                del self._at_work[index]
                self._free.append(number)
                found.append(End(index, status))
        return found

    def stop(self) -> None:
        for _, process in self._at_work.values():
            ask_worker(process)
