"""`deeprl resume`: continue a run from its newest checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from deeprl.commands.outcome import trained
from deeprl.errors import DeeprlError
from deeprl.run.records import read_about
from deeprl.run.trained import algorithm_module, stored_config


def run(options: argparse.Namespace) -> int:
    about = read_about(Path(options.run_dir))
    config = dataclasses.replace(stored_config(about), out=options.run_dir)
    if options.dataset:
        config = _with_datasets(config, options.dataset)
    return trained(algorithm_module(about["algorithm"]).train(config))


def _with_datasets(config: Any, places: list[str]) -> Any:
    """The settings of a run whose datasets lie elsewhere now, given in the order in which it names them."""
    named = config.datasets() if hasattr(config, "datasets") else []
    if not named:
        raise DeeprlError("--dataset: this run learns from none")
    if len(places) != len(named):
        raise DeeprlError(f"--dataset: {len(places)} given, but this run has {len(named)}: {', '.join(named)}")
    new = dict(zip(named, places, strict=True))
    many = isinstance(config.dataset, tuple)
    return dataclasses.replace(config, dataset=tuple(new[d] for d in config.dataset) if many else new[config.dataset])
