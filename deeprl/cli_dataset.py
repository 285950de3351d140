"""The commands of `deeprl dataset`. Imports nothing heavy until one of them runs."""

from __future__ import annotations

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add `dataset` and its commands to what `ArgumentParser.add_subparsers` gave."""
    text = "look at datasets of transitions"
    dataset = commands.add_parser("dataset", help=text, description=text)
    parts = dataset.add_subparsers(title="commands", required=True, metavar="COMMAND")
    text = "check a dataset, and tell its returns, its coverage and its problems"
    info = parts.add_parser("info", help=text, description=text)
    info.add_argument("source", help="a file .npz, .hdf5 or .h5 of D4RL's layout, or the id of a local Minari dataset")
    info.add_argument("--env", default="", help="the environment, where the dataset names none or another is wanted")
    info.add_argument("--clip-actions", action="store_true", help="clip actions beyond the bounds instead of refusing")
    info.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> int:
    from deeprl.dataset_info import describe
    from deeprl.datasets import load_dataset

    print(describe(load_dataset(options.source, options.env, clip=options.clip_actions)))
    return 0
