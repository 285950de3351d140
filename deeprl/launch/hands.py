"""What is handed out to workers, and what every way to have workers looks like from above."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from deeprl.config import RunConfig
from deeprl.launch.glance import log_of
from deeprl.launch.worker import Order

_PATIENCE = 150.0  # seconds until a network file system has noticed that the holder of a lock is gone


@runtime_checkable  # so that tests may check arguments
class WorkUnit(Protocol):
    """One population in one run directory, that any process which knows algorithm and settings can begin or continue.

    directory: that of `config.out`. name: how it is called in a few words. finished: whether the directory holds this
    very run, complete.
    """

    @property
    def algorithm(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def directory(self) -> Path: ...
    @property
    def name(self) -> str: ...
    def finished(self) -> bool: ...


class End(NamedTuple):
    """A worker has ended. number: of its unit. status: its exit status, negative if a signal ended it.

    cause: why there is no worker's status, such as a lost machine.
    """

    number: int
    status: int
    cause: str = ""


@runtime_checkable
class Hands(Protocol):
    """Workers: processes here, tasks of a cluster. All methods return at once; within `with`."""

    def __enter__(self) -> Hands: ...
    def __exit__(self, *error: object) -> None: ...
    def free(self) -> bool:
        """Whether one more unit can be handed out now."""
        ...

    def busy(self) -> bool:
        """Whether a unit is at work, or waits for a worker."""
        ...

    def start(self, index: int) -> None:
        """Hand out a unit by its number."""
        ...

    def ended(self) -> list[End]:
        """What has ended since the last call."""
        ...

    def stop(self) -> None:
        """Ask all at work to stop with a checkpoint, and start none of what waits."""
        ...


def order_of(unit: WorkUnit, absolute: bool = False, **more: Any) -> Order:
    """The order for a unit. absolute: its directory is named so that it is found from any working directory."""
    settings = json.loads(json.dumps(dataclasses.asdict(unit.config)))
    directory = Path(os.path.abspath(unit.directory)) if absolute else unit.directory
    if absolute:
        settings["out"] = str(directory)
    return Order(unit.algorithm, settings, str(log_of(directory)), os.getcwd(), **more)


def cluster_order(unit: WorkUnit) -> Order:
    """The order of a unit for a worker on another machine."""
    return order_of(unit, absolute=True, patience=_PATIENCE)
