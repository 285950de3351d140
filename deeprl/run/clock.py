"""The times of a run: of all its work, of learning, and until it has learned for the first time."""

from __future__ import annotations

import time


class Clock:
    """Seconds since a run began, in which a resumed run counts its earlier sessions.

    first_update_s: from the start of this session until its first updates were done, None before. first_call_s: how
    much of that they took themselves, which is nearly all for compiling, or loading what was compiled before.
    """

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.first_update_s: float | None = None
        self.first_call_s: float | None = None
        self._wall_before = self._learning_before = 0.0
        self._learning_since: float | None = None
        self._called: float | None = None

    def resume(self, wall_s: float, learning_s: float) -> None:
        """Go on from the times of earlier sessions."""
        self._wall_before, self._learning_before = wall_s, learning_s

    def session_s(self) -> float:
        """Seconds of this session."""
        return time.monotonic() - self.begun

    def wall_s(self) -> float:
        """Seconds of work, earlier sessions included."""
        return self._wall_before + self.session_s()

    def learning_s(self) -> float:
        """Seconds since the first updates of each session, which compile."""
        since = self._learning_since
        return self._learning_before + (time.monotonic() - since if since is not None else 0.0)

    def learn(self) -> bool:
        """Note that updates begin. Returns whether they are the first of this session."""
        now = time.monotonic()
        if self._called is None:
            self._called = now
            return True
        if self._learning_since is None:
            self._learning_since = now
        return False

    def learned(self) -> str:
        """Note that a step is done with its updates, if it had any. Returns a line if they were the first, else "".

        None is worth a line that came within two seconds.
        """
        if self._called is None or self.first_update_s is not None:
            return ""
        now = time.monotonic()
        self.first_update_s, self.first_call_s = now - self.begun, now - self._called
        line = f"first update after {self.first_update_s:,.1f} s, of which its call took {self.first_call_s:,.1f} s"
        return line if self.first_update_s >= 2.0 else ""

    def times(self, updates: int) -> dict[str, float | None]:
        """All times for `status.json`, and the speed. updates: those of all sessions and agents."""
        learning_s = self.learning_s()
        values = {
            "wall_s": self.wall_s(),
            "first_update_s": self.first_update_s,
            "first_call_s": self.first_call_s,
            "updates_per_s": updates / learning_s if learning_s > 0 else 0.0,
        }
        return {name: None if value is None else round(value, 2) for name, value in values.items()}
