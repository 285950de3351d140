"""`deeprl status`: all runs below a directory at a glance, while they are trained. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from deeprl.launch.board import run_table
from deeprl.launch.glance import glances
from deeprl.run.progress import is_terminal

_WATCH_SECONDS = 2.0  # between two looks
_LINES_SECONDS = 30.0  # where each leaves a table of its own
_WIDTH = 160  # of what is no terminal


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    terminal = is_terminal(sys.stdout)
    console = Console(width=None if terminal else _WIDTH)
    if options.watch and terminal:
        _watch(console, options.directory)
        return 0
    console.print(run_table(glances(options.directory)))
    with contextlib.suppress(KeyboardInterrupt):  # the way to leave it
        while options.watch:
            time.sleep(_LINES_SECONDS)
            console.print(run_table(glances(options.directory)))
    return 0


def _watch(console: Any, directory: str) -> None:
    """One table, drawn anew until Ctrl-C."""
    from rich.live import Live

    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(run_table(glances(directory)), console=console, auto_refresh=False) as live,
    ):
        while True:
            live.update(run_table(glances(directory), max(console.size.height - 6, 3)), refresh=True)
            time.sleep(_WATCH_SECONDS)
