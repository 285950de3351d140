"""Snapshots of a run: its agents as they were at several steps (`snapshot_every`), all of which are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deeprl.run import checkpoint

_FOLDER = "snapshots"


def take(run_dir: Path, step: int, agents: dict[str, Any]) -> None:
    """Write the agents' state. Of a step that a resumed run comes to again the later one counts. Raises OSError."""
    checkpoint.save(run_dir / _FOLDER, step, {"agents": agents}, keep=None)


def snapshot_steps(run_dir: str | Path) -> list[int]:
    """The steps of which a run has snapshots, oldest first."""
    return checkpoint.steps(Path(run_dir) / _FOLDER)


def load_snapshot(run_dir: str | Path, step: int) -> tuple[int, dict[str, Any]] | None:
    """The agents at a step as `checkpoint.load_checkpoint` gives them, or None if there is no snapshot of it."""
    return checkpoint.load_checkpoint(Path(run_dir) / _FOLDER, step=step)
