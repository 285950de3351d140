"""`deeprl sweep`: train all experiments of a TOML file and write one report."""

from __future__ import annotations

import argparse

from deeprl.commands.outcome import diverged
from deeprl.launch.launcher import Launching, parse_resources
from deeprl.launch.sweep import read_sweep, run_sweep


def run(options: argparse.Namespace) -> int:
    launching = Launching(
        options.launcher,
        options.jobs,
        options.address or "auto",
        parse_resources(options.resources) if options.resources else {},
    )
    _, plan = read_sweep(options.file)  # before the days in which somebody may edit the file
    print(f"report: {run_sweep(options.file, launching)}")
    return max(diverged(p.directory, p.frozen(), len(p.config.seeds)) for p in plan)
