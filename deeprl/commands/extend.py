"""`deeprl extend`: train a run further, as if it had had more steps from the start."""

from __future__ import annotations

import argparse

import deeprl
from deeprl.commands.outcome import trained


def run(options: argparse.Namespace) -> int:
    return trained(deeprl.extend(options.run_dir, options.steps))
