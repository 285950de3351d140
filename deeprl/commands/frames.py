"""What an environment draws, as the frames of a film: [H, W, 3] bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeprl.errors import DeeprlError

_SMALLEST_SIDE = 160  # pixels of a film, at least about so many
_ROUNDING = 1e-3  # by so much may values of 0 .. 1 leave this range
_EXPECTED = "expected an array [H, W, 3] of 0 .. 255, as render_mode rgb_array has it"


class Frames:
    """The frames of one film, in order.

    Taken are [H, W] and [H, W, 1] (grey), [H, W, 3], and [H, W, 4], whose last channel is opacity, on white. Integers
    are in 0 .. 255. Floats are in 0 .. 1 (as MinAtar draws, one pixel for each cell), or in 0 .. 255 if any float of
    the film is above 1: a single dark frame does not tell. Booleans are black and white.
    Of a list of frames, which are those since the one before, the last counts.
    """

    def __init__(self, name: str):
        """name: of the environment, in messages."""
        self._name = name
        self._frames: list[np.ndarray] = []
        self._to_one = True  # whether no float was above 1

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, drawn: Any) -> None:
        """Append what `render` returned. Raises DeeprlError, naming the environment, for what is no such frame."""
        if isinstance(drawn, list | tuple) and drawn and isinstance(drawn[-1], np.ndarray):
            drawn = drawn[-1]
        if drawn is None or isinstance(drawn, str | list | tuple):
            what = {type(None): "nothing (None)", str: "text"}.get(type(drawn), f"a {type(drawn).__name__}")
            raise self._refusal(f"render gives {what}")
        frame = np.asarray(drawn)
        shape = f"an array of shape {frame.shape} of {frame.dtype}"
        if frame.ndim == 2:
            frame = frame[:, :, None]
        if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or not frame.size or frame.dtype.kind not in "fiub":
            raise self._refusal(f"render gives {shape}")
        if self._frames and frame.shape != self._frames[0].shape:
            raise self._refusal(f"render gives {shape} where it gave {self._frames[0].shape} before")
        self._frames.append(self._compact(frame))

    def pictures(self) -> list[np.ndarray]:
        """The frames as they are filmed, [H, W, 3] uint8, small ones enlarged by a whole number."""
        return [self._picture(frame) for frame in self._frames]

    def _compact(self, frame: np.ndarray) -> np.ndarray:
        """A copy in few bytes with the values as they are: uint8, or float16, whose steps are finer than a colour."""
        if frame.dtype.kind == "b":
            return np.uint8(255) * frame
        low, high = frame.min(), frame.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise self._refusal("render gives values that are not finite")
        if low < -_ROUNDING or high > 255 + _ROUNDING:
            raise self._refusal(f"render gives values from {low:g} to {high:g}")
        if frame.dtype.kind == "f":
            self._to_one = self._to_one and bool(high <= 1 + _ROUNDING)
            return frame.astype(np.float16)
        return frame.astype(np.uint8)

    def _picture(self, frame: np.ndarray) -> np.ndarray:
        if frame.dtype.kind == "f":
            scale = 255.0 if self._to_one else 1.0
            frame = (scale * frame.astype(np.float32)).round().clip(0, 255).astype(np.uint8)
        if frame.shape[2] == 4:
            opacity = frame[:, :, 3:] / 255.0
            frame = (opacity * frame[:, :, :3] + 255.0 * (1.0 - opacity)).round().astype(np.uint8)
        if frame.shape[2] == 1:
            frame = frame.repeat(3, axis=2)
        larger = max(1, _SMALLEST_SIDE // min(frame.shape[:2]))
        return frame.repeat(larger, axis=0).repeat(larger, axis=1)

    def _refusal(self, what: str) -> DeeprlError:
        return DeeprlError(f"cannot draw {self._name}: {what}; {_EXPECTED}")
