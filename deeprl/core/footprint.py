"""What a run keeps in memory, and whether there is room for it.

Sizes are those of the arrays themselves: one agent is made on torch's `meta` device, where a tensor has a shape and a
type but no memory. All sizes are in bytes, printed in decimal units (1 GB = 10^9 bytes).

Linux gives memory to an array when it is first written, so a replay that is too large would be allocated without an
error, and the run killed hours later.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeprl.config import RunConfig
from deeprl.core.optim import Moments
from deeprl.core.population import Agents, resolve_device
from deeprl.errors import DeeprlError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

LEFT_OUT = "not included: the simulators, activations, rows on their way into a checkpoint, libraries"


@dataclass(frozen=True)
class Needs:
    """Bytes that a population of `agents` keeps on a device. groups: those of one agent by what they are for.

    shared: bytes that all agents use together, such as a dataset.
    """

    agents: int
    device: str
    groups: dict[str, int]
    shared: int = 0

    @property
    def per_agent(self) -> int:
        """Bytes of one agent."""
        return sum(self.groups.values())

    @property
    def total(self) -> int:
        """Bytes of the whole population."""
        return self.agents * self.per_agent + self.shared

    def fit(self) -> bool:
        """Whether so much is available; true where nobody can say."""
        free = available(self.device)
        if free is not None and self.total > free:
            _give_back()
            free = available(self.device)
        return free is None or self.total <= free

    def refusal(self) -> str:
        """One line with the figures, and what to lower."""
        largest = max(self.groups, key=self.groups.__getitem__)
        each = f"{text(self.per_agent)} each, of which {largest} {text(self.groups[largest])}"
        shared = f"; {text(self.shared)} shared" if self.shared else ""
        lower = "the number of seeds or datasets" if self.shared else "buffer_size or the number of seeds"
        return (
            f"{self.agents} agents need {text(self.total)} of memory ({each}{shared}), and"
            f" {text(available(self.device))} are available on {self.device}: lower {lower}"
        )

    def require(self) -> None:
        """Raise DeeprlError, with the figures, unless there is room."""
        if not self.fit():
            raise DeeprlError(self.refusal())

    def table(self) -> str:
        """All figures, a line for each group."""
        rows = [(name, size, self.agents * size) for name, size in self.groups.items()]
        rows += [("shared", 0, self.shared)] if self.shared else []
        rows.append(("total", self.per_agent, self.total))
        lines = [f"{'':18}{'each agent':>12}{f'all {self.agents}':>12}"]
        lines += [f"{name:18}{text(each):>12}{text(total):>12}" for name, each, total in rows]
        return "\n".join([*lines, f"{f'available on {self.device}':30}{text(available(self.device)):>12}", LEFT_OUT])


class MetaDeviceError(DeeprlError):
    """The end of a `train` on the device `meta`. needs: what it would have kept."""

    def __init__(self, needs: Needs):
        super().__init__("device meta computes nothing; --dry-run tells what a run keeps in memory")
        self.needs = needs


def rehearse(train: Callable[..., Any], config: RunConfig, net: Callable[..., Any] | None = None) -> Needs:
    """What `train(config, net=net)` would keep, from a rehearsal with its first agent in which nothing is allocated.

    Makes the environments of that agent. Raises DeeprlError for what is wrong with environment, networks or device.
    """
    device = resolve_device(config.device)
    alone = dataclasses.replace(config.member(0), device="meta", compile="off", out="")
    try:
        train(alone, net=net)
    except MetaDeviceError as end:
        return dataclasses.replace(end.needs, agents=len(config.seeds), device=device, shared=config.shared_bytes())
    raise RuntimeError(f"{train.__module__}.{train.__name__} did not come to Run.restore")


def needs_of(agents: int, device: str, population: Agents | None = None, **parts: Any) -> Needs:
    """What `agents` agents need, each like the only one of `population` and of `parts`, objects that hold arrays."""
    groups: dict[str, int] = {}
    if population is not None:
        groups = dict.fromkeys(("parameters", "target networks", "optimizer moments", "other state"), 0)
        trained = [set(value.m) for value in population.state if isinstance(value, Moments)]
        for name, value in population.state._asdict().items():
            groups[_group(name, value, trained)] += array_bytes(value)
        groups["other state"] += array_bytes(population[1:])
    return Needs(agents, device, groups | {name: array_bytes(vars(part)) for name, part in parts.items()})


def _group(name: str, value: Any, trained: list[set[str]]) -> str:
    """What a field of a State is for. trained: the names of the tensors of each optimizer."""
    if isinstance(value, Moments):
        return "optimizer moments"
    if name.startswith("target"):
        return "target networks"
    return "parameters" if isinstance(value, Mapping) and set(value) in trained else "other state"


def array_bytes(tree: Any) -> int:
    """Bytes of the arrays in nested tuples and dicts that have an axis of agents: all but those of no dimension."""
    return sum(array.nbytes for array in _arrays(tree) if array.ndim > 0)


def _arrays(tree: Any) -> Iterator[Tensor | np.ndarray]:
    if isinstance(tree, Tensor | np.ndarray):
        yield tree
    elif isinstance(tree, Mapping | tuple | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _arrays(value)


def text(number: int | None) -> str:
    """Bytes for people, to three digits, such as `1.66 GB`."""
    if number is None:
        return "unknown"
    rest = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if rest < 999.5:
            return f"{rest:.3g} {unit}"
        rest /= 1000
    return f"{rest:.3g} ZB"


def available(device: str) -> int | None:
    """Bytes that this process can still allocate on a device, None where the system does not tell.

    CUDA: what is free, with what torch's allocator holds in reserve. CPU: the smaller of what the machine has left
    (MemAvailable) and what the process's cgroup, such as that of a container, lets it have.
    """
    if device.startswith("cuda"):
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    try:
        lines = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text(encoding="utf-8").splitlines())
        return min([1024 * int(lines["MemAvailable"].split()[0]), *_cgroup_room()])
    except (OSError, KeyError):
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")  # all there is on other systems: an upper bound
        known = hasattr(os, "sysconf") and all(name in os.sysconf_names for name in names)
        return os.sysconf(names[0]) * os.sysconf(names[1]) if known else None


def _cgroup_room() -> Iterator[int]:
    """What each limited cgroup above this process has left; pages of files that it can drop count as free."""
    for line in (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, droppable = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, droppable = CGROUPS / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = root / path.lstrip("/")
        for group in (inner, *inner.parents[: len(inner.parts) - len(root.parts)]):
            try:
                most = (group / limit).read_text(encoding="utf-8").strip()
                stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
                held = int((group / usage).read_text(encoding="utf-8")) - int(stat.get(droppable, 0))
            except (OSError, ValueError):  # a container sees no groups around it, nor always its own by this name
                continue
            if most != "max":
                yield int(most) - held


def _give_back() -> None:
    """Return to the system what the process does not use any more, such as the replay of an earlier population."""
    gc.collect()  # a replay and its history refer to each other
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in other C libraries than glibc
        if trim is not None:
            trim(0)
