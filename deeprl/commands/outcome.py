"""What a command says of a run that it has trained, and its exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deeprl.run.progress import show


def trained(run: Any) -> int:
    """Tell how a run has ended. Returns the exit status."""
    state = "finished" if run.finished else "all diverged" if run.diverged else "stopped"
    told = "" if run.unit.counted == "steps" else f" ({run.unit.told(run.step)})"
    show(f"{state} at step {run.step:,}{told} after {run.wall_s:,.0f} s; records in {run.directory}")
    return diverged(run.directory, run.frozen, len(run.config.seeds))


def diverged(run_dir: Path, frozen: list[dict[str, Any]], agents: int) -> int:
    """Name the agents of a run that diverged. Returns the exit status: 3 if there are any, else 0."""
    if not frozen:
        return 0
    who = ", ".join(f"seed {f['seed']} (member {f['member']}, step {f['step']}: {f['cause']})" for f in frozen)
    show(f"{len(frozen)} of {agents} agents of {run_dir} diverged: {who}")
    return 3
