"""Units as tasks of a Ray cluster that is already up. What a node was at when it died goes on elsewhere.

A task starts the worker process of any other launcher (`launch/worker.py`) where Ray has found its resources, and ends
with it. Ray starts a task anew whose node has died; the run goes on from its newest checkpoint, which it finds in its
directory: all machines share that, which is tried before anything is handed out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError, first_line, one_line
from deeprl.launch.hands import End, WorkUnit, cluster_order
from deeprl.launch.worker import Order, ask_worker, begin_worker

_REACH_SECONDS = 12.0
_PROBE_SECONDS = 60.0
_RETRIES = 10  # of a task whose node or Ray process has died; a worker of ours that fails is no reason
_TRY = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='error'); print('reached')"


def reach(address: str) -> None:
    """Raise DeeprlError, within 20 s, unless a Ray cluster can be reached.

    Tried in a process of its own: Ray waits for minutes for some that are not there, and can end its process.
    """
    remedy = "name HOST:PORT of a cluster with --address, or start one with `ray start --head`"
    command = [sys.executable, "-c", _TRY, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_REACH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeeprlError(f"--address {address}: no answer in {_REACH_SECONDS:.0f} s; {remedy}") from error
    if "reached" not in done.stdout:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise DeeprlError(f"--address {address}: no Ray cluster ({said[-1] if said else 'no word'}); {remedy}")


class RayHands:
    """Tasks of a Ray cluster (see `hands.Hands`). Raises DeeprlError for resources that no node has, and for nodes that
    do not share `out` or have no deeprl."""

    def __init__(
        self, units: Sequence[WorkUnit], out: Path, address: str, resources: Mapping[str, Any], jobs: int | None
    ):
        import ray

        self._units, self._jobs, self._at_work = units, jobs or len(units), dict[Any, int]()
        self._ray, self._own = ray, not ray.is_initialized()  # a program may be a driver already
        before = signal.getsignal(signal.SIGTERM)
        if self._own:
            ray.init(address, log_to_driver=False, logging_level="error")
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, before)  # Ray's would end the process at once
        try:
            need = {"CPU": 1, **resources}
            _require_room(need, _nodes(ray))
            _require_shared(ray, out)
        except BaseException:
            self.__exit__()
            raise
        self._task = ray.remote(_perform).options(
            max_retries=_RETRIES,
            num_cpus=need.pop("CPU"), num_gpus=need.pop("GPU", 0), memory=need.pop("memory", None), resources=need,
        )  # fmt: skip

    def __enter__(self) -> RayHands:
        return self

    def __exit__(self, *error: object) -> None:
        """What is still at work ends with its Ray process, with a checkpoint."""
        if self._own:
            self._ray.shutdown()

    def free(self) -> bool:
        return len(self._at_work) < self._jobs

    def busy(self) -> bool:
        return bool(self._at_work)

    def start(self, index: int) -> None:
        order = cluster_order(self._units[index])
        self._at_work[self._task.remote(order)] = index

    def ended(self) -> list[End]:
        if not self._at_work:
            return []
        done, _ = self._ray.wait(list(self._at_work), num_returns=len(self._at_work), timeout=0)
        return [self._end(ref, self._at_work.pop(ref)) for ref in done]

    def _end(self, ref: Any, index: int) -> End:
        try:
            return End(index, self._ray.get(ref))
        except self._ray.exceptions.TaskCancelledError:
            return End(index, 128 + signal.SIGTERM)
        except self._ray.exceptions.RayError as error:
            return End(index, 1, f"{type(error).__name__}: {first_line(error)}")

    def stop(self) -> None:
        for ref in self._at_work:
            self._ray.cancel(ref)


def _perform(order: Order) -> int:
    """The task: a worker process and its exit status. Cancelled, it lets the worker write a checkpoint."""
    import dataclasses

    import ray

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where Ray was started in the background
    hosts = tuple(node["NodeManagerHostname"] for node in _nodes(ray))
    process = begin_worker(dataclasses.replace(order, hosts=hosts))
    while process.poll() is None:
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:  # of `ray.cancel`
            ask_worker(process)
    return process.returncode


def _nodes(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _require_room(need: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise DeeprlError if no node has the resources, however long one waits."""
    if any(all(node["Resources"].get(name, 0.0) >= amount for name, amount in need.items()) for node in nodes):
        return
    kinds = [name for name in need if need[name]]
    has = "; ".join(
        f"{node['NodeManagerHostname']}: " + ", ".join(f"{node['Resources'].get(name, 0.0):g} {name}" for name in kinds)
        for node in nodes[:4]
    )
    wanted = ", ".join(f"{need[name]:g} {name}" for name in kinds)
    raise DeeprlError(f"--resources: no node of the cluster has {wanted} ({has}); ask for less")


def _require_shared(ray: Any, out: Path) -> None:
    """Raise DeeprlError, naming the node, unless every node sees a file that is written to `out` now."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

    out.mkdir(parents=True, exist_ok=True)
    probe, token = Path(os.path.abspath(out)) / f".probe-{secrets.token_hex(4)}", secrets.token_hex(16)
    probe.write_text(token, encoding="utf-8")
    task = ray.remote(_seen)
    try:
        refs = {
            task.options(num_cpus=0, max_retries=0, scheduling_strategy=OnNode(node["NodeID"], soft=False)).remote(
                str(probe)
            ): node
            for node in _nodes(ray)
        }
        ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=_PROBE_SECONDS)
        for ref in [*ready, *late]:
            node = f"node {refs[ref]['NodeManagerHostname']} ({refs[ref]['NodeManagerAddress']})"
            if ref in late:
                raise DeeprlError(f"{node} did not answer in {_PROBE_SECONDS:.0f} s")
            try:
                seen = ray.get(ref)
            except ray.exceptions.RayError as error:
                raise DeeprlError(f"{node} cannot work with this deeprl: {one_line(error)[-200:]}") from error
            if seen != token:
                raise DeeprlError(f"{node} does not see {probe.parent}; out must be a directory that all nodes share")
    finally:
        probe.unlink(missing_ok=True)


def _seen(probe: str) -> str:
    """What a file holds on this node; empty where there is none."""
    with contextlib.suppress(OSError):
        return Path(probe).read_text(encoding="utf-8")
    return ""
