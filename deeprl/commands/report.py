"""`deeprl report`: write the report of all runs below a directory."""

from __future__ import annotations

import argparse

from deeprl.reporting.peers import parse_peer
from deeprl.reporting.report import write_report
from deeprl.reporting.table import COLUMNS, OLDER, results, write_rows
from deeprl.run.targets import check_table


def run(options: argparse.Namespace) -> int:
    if options.rows:
        check_table(options.rows, COLUMNS, OLDER)
    peers = [parse_peer(word) for word in options.peer]
    print(f"report: {write_report(options.directory, options.out, options.published, peers)}")
    if options.rows:
        write_rows(options.rows, results(options.directory))
        print(f"rows: {options.rows}")
    return 0
