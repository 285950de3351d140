"""The dataset of the offline speed benchmarks: random transitions in episodes of 1,000 steps, shaped as HalfCheetah."""

from __future__ import annotations

from typing import Any

import numpy as np

OBS_DIM, ACTION_DIM, EPISODE = 17, 6, 1_000


def synthetic(rows: int, seed: int) -> dict[str, Any]:
    """D4RL's arrays of `rows` transitions; every episode ends by its time limit."""
    draw = np.random.default_rng(seed)
    observations = draw.standard_normal((rows, OBS_DIM), np.float32)
    actions = draw.uniform(-1, 1, (rows, ACTION_DIM)).astype(np.float32)
    ends = np.arange(1, rows + 1) % EPISODE == 0
    rewards = draw.standard_normal(rows, np.float32)
    none = np.zeros_like(ends)
    return {"observations": observations, "actions": actions, "rewards": rewards, "terminals": none, "timeouts": ends}
