"""Replay memory: transitions on the device, samplers, and blocks of rows that a checkpoint writes once."""

from deeprl.replay.transitions import (
    Extent,
    FrameReplay,
    Replay,
    Stored,
    StoredFrames,
    make_replay,
)

__all__ = [
    "Extent",
    "FrameReplay",
    "Replay",
    "Stored",
    "StoredFrames",
    "make_replay",
]
