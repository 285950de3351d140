"""`deeprl status`: all runs below a directory at a glance, while they are trained. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
import time

from deeprl.launch.board import table
from deeprl.launch.glance import glances
from deeprl.run.progress import is_terminal

_WATCH_SECONDS = 2.0
_WIDTH = 160  # of what is no terminal


def run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    terminal = is_terminal(sys.stdout)
    console = Console(width=None if terminal else _WIDTH)
    if not options.watch:
        console.print(table(glances(options.directory)))
        return 0
    first = table(glances(options.directory))
    try:
        if not terminal:
            while True:
                console.print(first)
                time.sleep(15 * _WATCH_SECONDS)
                first = table(glances(options.directory))
        with Live(first, console=console, auto_refresh=False) as live:
            while True:
                live.update(table(glances(options.directory), max(console.size.height - 6, 3)), refresh=True)
                time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:  # the way to leave it
        return 0
