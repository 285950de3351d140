"""Units as jobs of Slurm, through submitit.

A job starts the worker process of any other launcher (`launch/worker.py`). Before its time is over, or where another
job takes its place, the worker writes a checkpoint and the job is queued again. Jobs whose sweep has been killed go on
by themselves: the same command then finds their directories in use, or finished.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError, one_line
from deeprl.launch.hands import End, WorkUnit, cluster_order
from deeprl.launch.worker import Order, ask_worker, begin_worker

_STOP_SECONDS = 60.0  # Slurm leaves 90 by default
_LOOK_SECONDS = 5.0  # Slurm is asked no more often


class SlurmJob:
    """What a job does: a worker process, and its exit status. submitit calls `checkpoint` before it ends the job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, order: Order) -> int:
        self._process = begin_worker(order)
        while (status := self._process.poll()) is None:
            time.sleep(0.5)  # not `wait`, which would keep `checkpoint`, called within a signal, from asking
        return status

    def checkpoint(self, order: Order) -> Any:
        """Let the worker write a checkpoint, and queue the job again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            ask_worker(self._process)
            until = time.monotonic() + _STOP_SECONDS
            while self._process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
        return DelayedSubmission(SlurmJob(), order)


class SlurmHands:
    """Jobs of Slurm (see `hands.Hands`). parameters: of submitit's `update_parameters`. cluster: `local` starts them as
    processes of this machine. Raises DeeprlError for parameters that submitit does not know."""

    def __init__(
        self,
        units: Sequence[WorkUnit],
        out: Path,
        parameters: Mapping[str, Any],
        jobs: int | None,
        cluster: str = "slurm",
    ):
        import submitit

        self._units, self._jobs, self._at_work = units, jobs or len(units), dict[int, Any]()
        self._executor = submitit.AutoExecutor(folder=out / "slurm" / "%j", cluster=cluster)
        try:
            self._executor.update_parameters(**{"name": "deeprl", **parameters})
        except (TypeError, NameError, ValueError, AssertionError) as error:
            raise DeeprlError(f"--resources: submitit refuses this: {one_line(error)}") from error
        self._looked = 0.0

    def __enter__(self) -> SlurmHands:
        return self

    def __exit__(self, *error: object) -> None:
        """What is still at work is cancelled: its newest checkpoint counts."""
        for job in self._at_work.values():
            job.cancel()

    def free(self) -> bool:
        return len(self._at_work) < self._jobs

    def busy(self) -> bool:
        return bool(self._at_work)

    def start(self, index: int) -> None:
        order = cluster_order(self._units[index])
        self._at_work[index] = self._executor.submit(SlurmJob(), order)

    def ended(self) -> list[End]:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return []
        self._looked = time.monotonic()
        done = [index for index, job in self._at_work.items() if job.done()]
        return [self._end(index, self._at_work.pop(index)) for index in done]

    def _end(self, index: int, job: Any) -> End:
        error = job.exception()
        if error is None:
            return End(index, int(job.result()))
        return End(index, 1, f"job {job.job_id}: {one_line(error)[:200]}; see {job.paths.stderr}")

    def stop(self) -> None:
        for job in self._at_work.values():
            job.cancel(check=False)
