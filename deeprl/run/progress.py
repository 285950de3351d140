"""Progress of long work: a bar on a terminal, plain lines elsewhere. Nothing is shown in the first two seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

_LINE_SECONDS = 15.0
_RATE_SECONDS = 60.0


def show(line: str, file: Any = None) -> None:
    """Print a line to `file`, stdout by default. If that is gone, nothing is shown from then on, and work goes on.

    Ctrl-C also ends the `tee` of `deeprl train ... | tee log`, before the run has written its checkpoint.
    """
    file = file or sys.stdout  # None in a service, a window without a console: nothing is shown
    try:
        print(line, file=file, flush=hasattr(file, "flush"))
    except ValueError:  # closed
        return
    except OSError:
        _silence(file)


def _silence(file: Any) -> None:
    """Lead what is still written to `file` nowhere: what it holds in its buffer would fail again at exit."""
    with contextlib.suppress(OSError, AttributeError):  # an object of the program's own may stand for no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def is_terminal(file: Any) -> bool:
    """Whether a stream is a terminal; what a program has put in its place need not know, and may be None."""
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # the latter: closed
        return False


class Terminal:
    """A terminal that may go, as `show` allows it to. The bar also writes there in a thread and for `print`."""

    def __init__(self, file: Any):
        self._file = file

    def write(self, text: str) -> int:
        with self._silenced():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with self._silenced():
            self._file.flush()

    @contextlib.contextmanager
    def _silenced(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _silence(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Progress:
    """Shows `done / total`, steps per second, the time left and a note such as the latest return.

    Rate and time left are those of the last minute of steps, with what went on between them (`meanwhile`): compiling,
    and the steps before it, do not tell how fast the next ones are.

    factor: steps shown per unit of `done` (the number of agents of a population). unit: what they are.
    """

    def __init__(self, title: str, total: int, factor: int = 1, start: int = 0, unit: str = "steps"):
        self._title, self._total, self._factor, self._unit = title, total, factor, unit
        self._done = start
        self._begun = self._shown = time.monotonic()
        self._paused, self._pause_began = 0.0, 0.0  # seconds of `meanwhile` so far; 0: it is not going on
        self._marks = deque([(self._begun, self._begun, start)])  # of the last minute: time, without pauses, done
        self._note = ""
        self._bar: Any = None
        self._task: Any = None
        self._terminal = is_terminal(sys.stderr)

    def update(self, done: int, note: str | None = None) -> None:
        """Show the new state; cheap to call at every step."""
        news = note is not None and note != self._note
        self._note = note if note is not None else self._note
        self._done = done
        now = time.monotonic()
        if self._pause_began:
            self._paused, self._pause_began = self._paused + now - self._pause_began, 0.0
        worked = now - self._paused
        if worked - self._marks[-1][1] >= 1.0:
            self._marks.append((now, worked, done))
            while worked - self._marks[1][1] >= _RATE_SECONDS:
                self._marks.popleft()
        self._show(now, self._note, news)

    def meanwhile(self, note: str) -> None:
        """Show what goes on within a step, no more often than steps are shown."""
        now = time.monotonic()
        self._pause_began = self._pause_began or now
        self._show(now, note, False)

    def _show(self, now: float, note: str, news: bool) -> None:
        if now - self._begun < 2.0 or (now - self._shown < (0.2 if self._terminal else _LINE_SECONDS) and not news):
            return
        self._shown = now
        since, _, before = self._marks[0]
        rate = (self._done - before) / max(now - since, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        speed = f"{rate * self._factor:,.0f} {self._unit}/s"
        if self._terminal:
            self._draw(self._done, f"{speed}  {clock_time(left)} left  {note}")
        else:
            show(f"{self._title}: {self._done:,}/{self._total:,}  {speed}  {clock_time(left)} left  {note}")

    def _draw(self, done: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            terminal: Any = Terminal(sys.stderr)
            self._bar = RichProgress(*columns, console=Console(file=terminal))
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, note="")
        self._bar.update(self._task, completed=done, note=text)

    def say(self, *lines: str) -> None:
        """Print lines of their own above the bar."""
        for line in lines:
            if self._bar is not None:
                self._bar.console.print(line, highlight=False, markup=False)
            else:
                show(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
