"""Runs that train further than they were to: which can, and their record, changed for it.

A longer run must be, bit for bit, the one that had all steps from the start. Hence a schedule over all steps is
refused, rows of logs and evaluations that were only written because the run ended are cut off again, and a finished
run that acts in environments needs the replay and the environments of its last step (`keep_replay`). How it is
executed stays as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deeprl.config import OffPolicyConfig, OnlineConfig, RunConfig, config_hash
from deeprl.core.footprint import rehearse, text
from deeprl.core.population import resolve_execution
from deeprl.errors import DeeprlError
from deeprl.run import checkpoint, provenance
from deeprl.run.directory import stored_run, writing
from deeprl.run.lock import Lock
from deeprl.run.progress import show
from deeprl.run.records import COMPLETE, read_about, read_status, write_json


def of_longer(own: Mapping[str, Any], longer: bool) -> dict[str, Any]:
    """What a checkpoint says of its run itself; longer: as if it had not ended there, `extended` where that differs."""
    before = own.get("before_end", {})
    if not (longer and before):
        return dict(own)
    changed = before | {"logs": own["logs"] | before["logs"]}
    return {**own, **changed, "before_end": {}, "extended": True}


def with_stored_steps(directory: Path, config: RunConfig) -> RunConfig:
    """These settings with the steps of the run in a directory, where those are fewer; else as they are."""
    with contextlib.suppress(DeeprlError):
        steps = read_about(directory)["config"].get("steps")
        if type(steps) is int and 0 < steps < config.steps:
            return dataclasses.replace(config, steps=steps)
    return config


def require_extendable(directory: Path, algorithm: str, config: RunConfig, train: Callable[..., Any]) -> None:
    """Raise DeeprlError, naming what is in the way, unless a run can train on to the steps of `config`.

    config: its settings but for `steps`, which are not fewer there. train: of its algorithm, to tell how large the
    replay would have been.
    """
    before = with_stored_steps(directory, config)
    longer = f"{directory}: a run of {config.steps:,} steps from the start"
    if tied := config.over_all_steps():
        raise DeeprlError(
            f"{longer} would have been another: the schedule of {', '.join(tied)} runs over all {before.steps:,};"
            " train it in another --out"
        )
    found = checkpoint.load_checkpoint(directory / "checkpoints", histories=False)
    if found is None:
        return
    step, content = found
    if config.steps <= step:
        raise DeeprlError(f"steps: {directory} is at step {step:,} already; name more than that")
    if "before_end" not in content["run"] and step >= before.steps and not _all_due(before, step):
        raise DeeprlError(f"{longer} has no rows of step {step:,}, and an earlier deeprl did not keep what was before")
    if isinstance(config, OnlineConfig):
        if "replay" not in content and not of_longer(content["run"], step >= before.steps)["diverged"]:
            raise DeeprlError(f"{directory} has not kept its replay: {_remedy(before, train)}")
        _require_room(longer, before, config, content)


def _all_due(config: RunConfig, step: int) -> bool:
    """Whether the rows of a last step are those of a longer run, too."""
    each = (config.log_every, config.eval_every if config.eval_episodes else config.log_every)
    return all(every > 0 and step % every == 0 for every in each)


def _remedy(config: RunConfig, train: Callable[..., Any]) -> str:
    needs = rehearse(train, config)
    size = text(needs.agents * needs.groups.get("replay", 0))
    return f"only runs with --keep-replay can be extended once they are finished (here {size}); train it anew with that"


def _require_room(longer: str, before: Any, config: Any, content: Mapping[str, Any]) -> None:
    """Raise DeeprlError where a replay that is larger from the start would have led to other numbers.

    Its rows are as many as a run has steps at most, so that it grows with them.
    """
    if not isinstance(config, OffPolicyConfig) or "replay" not in content:
        return
    rows, more = (min(c.buffer_size, c.steps) // c.envs_per_agent * c.envs_per_agent for c in (before, config))
    if rows == more:
        return
    if "priorities" in content:
        raise DeeprlError(
            f"{longer} would have drawn from larger sums of priorities: buffer_size is {config.buffer_size:,}, and only"
            f" what fits into its first {rows:,} steps could be extended"
        )
    replay = content["replay"]
    if replay["inserted"] > rows or bool("skip" in replay and replay["skip"].any()):
        raise DeeprlError(
            f"{longer} would still have what the replay of this one, of {rows:,} rows, has overwritten (buffer_size"
            f" {config.buffer_size:,}, envs_per_agent {config.envs_per_agent})"
        )


def extend_record(
    directory: Path, algorithm: str, config: RunConfig, train: Callable[..., Any], custom_net: str = ""
) -> str:
    """Make the record of a run that of one with the steps of `config`, for `train(config)` to go on. Returns a line.

    config: its settings but for `steps`. Nothing is done where it has them already, as after a kill. Killed in the
    midst, it is done at the next call. Raises DeeprlError as `require_extendable`, for a directory with another run or
    none, and InUseError while another process works there.
    """
    before = with_stored_steps(directory, config)
    with writing(directory):
        if stored_run(directory, algorithm, before, custom_net) is None:
            raise DeeprlError(f"{directory} holds no run")
        if before.steps == config.steps:
            return ""
        lock = Lock(directory)
        lock.acquire()
        try:
            require_extendable(directory, algorithm, config, train)
            about, status = read_about(directory), read_status(directory)
            if status.get("state") in COMPLETE:  # first: a finished run of more steps than it has done would be a lie
                write_json(directory / "status.json", status | {"state": "stopped"})
            step = max(checkpoint.steps(directory / "checkpoints"), default=0)
            change = {"step": step, "name": "steps", "before": before.steps, "after": config.steps}
            own = {
                "config": about["config"] | {"steps": config.steps},
                "config_hash": config_hash(algorithm, config),
                "command": " && ".join(filter(None, [about.get("command"), provenance.command()])),
                "changes": [*about.get("changes", []), change],
            }
            write_json(directory / "config.json", about | own)
        finally:
            lock.release()
    told = f"{directory} goes on from step {step:,} to {config.steps:,}"
    later = resolve_execution(config, config.updates()).compile and not about["execution"]["compile"]
    eager = ", eagerly as it began: one of so many steps from the start is compiled, and equal but for rounding"
    return told + (eager if later else "")


def train_on(algorithm: str, config: RunConfig, train: Callable[..., Any]) -> Any:
    """`train(config)`, from wherever its directory is: a run of fewer steps goes on to those of `config`."""
    directory = Path(config.out)
    if with_stored_steps(directory, config) is not config and (
        line := extend_record(directory, algorithm, config, train)
    ):
        show(line)
    return train(config)
