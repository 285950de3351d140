"""Experiment trackers beside the CSV files: Weights & Biases, `--track wandb`, of the extra `wandb`.

Where, and under which account, its own environment variables say: WANDB_PROJECT (default `deeprl`), WANDB_ENTITY,
WANDB_MODE (`offline` touches no network), WANDB_DIR, WANDB_RUN_GROUP, WANDB_TAGS, WANDB_NOTES.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deeprl.config import RunConfig, config_hash
from deeprl.errors import DeeprlError, first_line
from deeprl.run.records import read_object, write_json

Row = tuple[int, int, Mapping[str, float]]  # step, member, values by name

STATE = "wandb.json"
_LONGEST = 100  # of a name; W&B takes 128 letters


def require_wandb() -> None:
    """Raise DeeprlError where Weights & Biases is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise DeeprlError("track: wandb is not installed; pip install 'deeprl[wandb]'")


class WandbLog:
    """One W&B run for each agent; agents that differ in their seed alone are a group.

    `wandb.json` in the run's directory has their ids, so that a resumed run goes on in them, the last step whose rows
    they are known to have, and the offline folders that are being written. A session that was killed leaves it
    uncertain what arrived. Its rows are logged again from the CSV files: W&B has those below its own step already, and
    an offline folder of such a session is deleted before.

    What fails in W&B is told once, and nothing is sent from then on: a run does not depend on it.
    """

    def __init__(self, directory: Path, algorithm: str, config: RunConfig):
        require_wandb()
        self._directory, self._algorithm, self._config = directory, algorithm, config
        self._runs: list[Any] = []
        self._pending: dict[tuple[int, int], dict[str, float]] = {}
        self._state: dict[str, Any] = {}
        self._failed = ""

    def begin(self, recorded: Callable[[int], Iterable[Row]]) -> list[str]:
        """Open the runs. recorded: the rows of the CSV files from a step on. Returns lines for the user."""
        size = len(self._config.seeds)
        self._state = read_object(self._directory / STATE) or {
            "ids": [secrets.token_hex(4) for _ in range(size)], "logged": -1, "open": []
        }  # fmt: skip
        if len(self._state.get("ids", ())) != size:
            raise DeeprlError(f"{self._directory / STATE} is of another run; delete it")
        for folder in map(Path, self._state["open"]):
            if any(re.fullmatch(rf"offline-run-[0-9_]+-{i}", folder.name) for i in self._state["ids"]):
                shutil.rmtree(folder, ignore_errors=True)
        news = [self._guarded(self._open)]
        self._state["open"] = [str(Path(run.dir).parent) for run in self._runs if run.settings.mode == "offline"]
        write_json(self._directory / STATE, self._state)
        self._pending = {}
        for step, member, values in recorded(self._state["logged"] + 1):
            self.write(step, member, values)
        return [*news, *self.commit()]

    def _open(self) -> str:
        import wandb

        for i in range(len(self._config.seeds)):
            alone = self._config.member(i)
            told = " ".join(f"{k}={getattr(alone, k)}" for k in self._config.varied())
            name = " ".join(filter(None, [self._algorithm, self._config.task, self._config.label, told]))[:_LONGEST]
            apart = config_hash(self._algorithm, dataclasses.replace(alone, seeds=(0,)))
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "deeprl",
                group=os.environ.get("WANDB_RUN_GROUP") or f"{name} {apart}",
                name=f"{name} seed {alone.seeds[0]}",
                id=self._state["ids"][i],
                resume="allow",
                reinit="create_new",  # all agents are tracked at once
                config={"algorithm": self._algorithm, **dataclasses.asdict(alone), "seed": alone.seeds[0]},
                dir=os.environ.get("WANDB_DIR") or self._directory,
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=i > 0),
            )
            self._runs.append(run)
        first = self._runs[0]
        if first.settings.mode == "disabled":
            return ""
        offline = f"offline: wandb sync {Path(first.dir).parent.parent}/offline-run-* sends them"
        place = offline if first.settings.mode == "offline" else f"the first is {first.url}"
        return f"W&B: {len(self._runs)} runs, {place}"

    def write(self, step: int, member: int, values: Mapping[str, float]) -> None:
        """Take values of an agent, to be logged with the others of this step by `commit`."""
        if step > self._state["logged"]:
            self._pending.setdefault((step, member), {}).update(values)

    def commit(self) -> list[str]:
        """Log all that was taken, whose steps are complete. Returns lines for the user."""
        pending, self._pending = self._pending, {}
        return [self._guarded(lambda: self._log(pending))] if pending and self._runs else []

    def _log(self, pending: Mapping[tuple[int, int], Mapping[str, float]]) -> str:
        for (step, member), values in sorted(pending.items()):
            if values and step >= self._runs[member].step:  # below, it has had them in a session that was killed
                self._runs[member].log(dict(values), step=step)
        self._state["sent"] = max(step for step, _ in pending)
        return ""

    def close(self, failed: bool) -> str:
        """End the session. failed: the run has. Returns a line for the user."""

        def finish() -> str:
            for run in self._runs:
                run.finish(exit_code=int(failed))
            self._state["logged"] = max(self._state["logged"], self._state.pop("sent", -1))
            return ""

        if not self._runs:
            return ""
        line = self._guarded(finish)
        if not self._failed:
            write_json(self._directory / STATE, self._state | {"open": []})
        return line

    def _guarded(self, work: Callable[[], str]) -> str:
        """The line of what is done, or what went wrong, the first time that something does."""
        if self._failed:
            return ""
        try:
            return work()
        except Exception as error:  # whatever a tracker may raise knows no bounds
            self._failed, self._runs = first_line(error), []
            return f"W&B failed ({self._failed}): nothing is sent there any more, and the run goes on"
