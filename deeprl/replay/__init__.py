"""Replay memory: transitions on the device, samplers, and blocks of rows that a checkpoint writes once."""

from deeprl.replay.transitions import (
    Extent,
    FrameReplay,
    Replay,
    Stored,
    StoredFrames,
    extent_of,
    make_replay,
    store,
)

__all__ = [
    "Extent",
    "FrameReplay",
    "Replay",
    "Stored",
    "StoredFrames",
    "extent_of",
    "make_replay",
    "store",
]
