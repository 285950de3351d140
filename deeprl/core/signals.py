"""The signals that ask a process to end, which a run heeds (`run/interrupts.py`) and its workers do not."""

from __future__ import annotations

import signal

HANGUP = signal.SIGHUP if hasattr(signal, "SIGHUP") else None  # Windows has none
HEEDED = [s for s in (signal.SIGINT, signal.SIGTERM, HANGUP) if s is not None]
