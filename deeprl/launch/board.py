"""One table of many runs: live on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from deeprl.launch.glance import Glance
from deeprl.run.progress import Terminal, clock_time, is_terminal, show

_COLUMNS = ("run", "state", "steps", "", "rate", "left", "return", "where")
_ORDER = ("running", "starting", "failed", "killed", "stopped", "diverged", "waiting", "finished")
_COLOURS = {"running": "green", "failed": "red", "killed": "yellow", "diverged": "red", "finished": "dim"}
_REDRAW_SECONDS = 1.0
_LINE_SECONDS = 30.0


def row_of(run: Glance) -> tuple[str, ...]:
    """A run as the texts of a row: run, state, steps, share of them, rate, time left, return, where or why not."""
    many = f" x{run.agents}" if run.agents > 1 else ""
    state = f"{run.state}, {run.diverged} diverged" if run.diverged and run.state != "diverged" else run.state
    return (
        run.name + many,
        state,
        f"{run.step:,}/{run.steps:,}" if run.step else f"{run.steps:,}",
        f"{math.floor(100 * run.step / run.steps):d} %" if run.step and run.steps else "",
        "" if math.isnan(run.rate) else f"{run.rate:,.0f}/s",
        "" if math.isnan(run.left) else clock_time(run.left),
        "" if math.isnan(run.ret) else f"{run.ret:,.1f}",
        run.where or run.note,
    )


def counted_states(runs: Sequence[Glance]) -> str:
    """How many runs are in which state, in one line."""
    found = Counter(run.state for run in runs)
    return ", ".join(f"{found[state]} {state}" for state in _ORDER if found[state])


def run_table(runs: Sequence[Glance], rows: int | None = None) -> Any:
    """A table of `rich`. rows: at most so many, what is at work and what has failed first; all by default."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = list(runs)
    if rows is not None and len(shown) > rows:
        first = sorted(range(len(shown)), key=lambda i: (_ORDER.index(shown[i].state), i))[:rows]
        shown = [shown[i] for i in sorted(first)]
    more = f"; {len(runs) - len(shown)} not shown" if len(shown) < len(runs) else ""
    found = Table(box=box.SIMPLE_HEAD, caption=counted_states(runs) + more, caption_justify="left", pad_edge=False)
    for name in _COLUMNS:
        number = name in ("steps", "", "rate", "left", "return")
        found.add_column(name, justify="right" if number else "left", no_wrap=number or name == "run")
    for run in shown:
        found.add_row(*map(Text, row_of(run)), style=_COLOURS.get(run.state, ""))
    return found


def run_line(run: Glance) -> str:
    """A run in one line, as a single run shows its progress."""
    name, state, steps, _, rate, left, ret, where = row_of(run)
    parts = [f"{name}: {state}", steps, rate, left and f"{left} left", ret and f"return {ret}", where]
    return "  ".join(filter(None, parts))


class Board:
    """Shows runs while they are worked on: a table on a terminal, every half minute a line for each one elsewhere.

    look: reads them anew. Use with `with`.
    """

    def __init__(self, look: Callable[[], list[Glance]]):
        self._look, self._shown = look, time.monotonic()
        self._terminal = is_terminal(sys.stderr)
        self._live: Any = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)
            self._live.stop()

    def update(self) -> None:
        """Show how they stand, if it is time to; cheap to call often."""
        now = time.monotonic()
        if now - self._shown < (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS):
            return
        self._shown = now
        if self._terminal:
            self._draw()
            return
        runs = self._look()
        for run in runs:
            if run.state == "running":
                show(run_line(run))
        show(counted_states(runs))

    def say(self, *lines: str) -> None:
        """Print lines above the table."""
        for each in lines:
            if self._live is not None:
                self._live.console.print(each, highlight=False, markup=False)
            else:
                show(each)

    def _draw(self) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            terminal: Any = Terminal(sys.stderr)
            self._live = Live(console=Console(file=terminal), auto_refresh=False)
            self._live.start()
        self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> Any:
        height = self._live.console.size.height if self._live else 25
        return run_table(self._look(), max(height - 6, 3))
