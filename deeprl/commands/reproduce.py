"""`deeprl reproduce`: train what a report is made of again, and compare."""

from __future__ import annotations

import argparse

from deeprl.launch.reproduce import MISSING, OUTSIDE, reproduce, summed_up
from deeprl.run.progress import show


def run(options: argparse.Namespace) -> int:
    table, verdicts = reproduce(options.report, options.out, options.only, options.device)
    for line in summed_up(verdicts):
        show(line)
    show(f"rows: {table}")
    return int(any(v.verdict in (OUTSIDE, MISSING) for v in verdicts))
