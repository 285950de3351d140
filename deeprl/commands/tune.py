"""`deeprl tune ALGORITHM`: search for settings, test what was found on seeds that the search has not seen."""

from __future__ import annotations

import argparse
import dataclasses

import deeprl
from deeprl.errors import DeeprlError
from deeprl.run.progress import show

_SAMPLERS = ("random", "tpe", "gp", "qmc", "cmaes", "nsga2")
_OWN = """options of a search, beside the settings of the algorithm, which all trials share:
  --trials N            settings to try (default 32)
  --tuning-seeds SEEDS  seeds of every trial (default 0-2)
  --test-seeds SEEDS    seeds of the test of winner and default, none of them a tuning seed (default 100-109)
  --space FILE          what is searched, as TOML (default: the algorithm's own space)
  --sampler NAME        random, tpe, gp, qmc, cmaes or nsga2, of Optuna (default tpe)
  --search-seed N       seed of the sampler (default 0)
  --batch N             trials that are drawn, and train, together (default 8)
  --objective NAME      mean or iqm over the tuning seeds (default mean)
  --last N              of the mean of so many last evaluations (default 3)
  --scheduler NAME      none, or halving: many trials for few steps, the better ones for more (default none)
  --eta N, --rungs N    of halving: one in eta goes on, at each of so many rungs (default 3, 3)
  --storage PLACE       an Optuna journal, or the URL of a database (default DIR/journal.log)
  --out DIR             the study (default runs/tune/ALGORITHM/ENV); called again, it goes on
"""


def run(words: list[str]) -> int:
    """Tune as the words after `deeprl tune` say: the algorithm, then its settings and the options of the search."""
    if not words or words[0].startswith("-"):
        raise DeeprlError(f"tune: name an algorithm first; known: {', '.join(deeprl.ALGORITHMS)}")
    options, settings = _parser().parse_known_args(words[1:])
    if any(word.partition("=")[0] == "--seeds" for word in settings):
        raise DeeprlError("seeds: a search has --tuning-seeds and --test-seeds")
    from deeprl.commands.train import read_settings
    from deeprl.tuning.published import published_space
    from deeprl.tuning.report import told, write_pages
    from deeprl.tuning.spaces import read_space
    from deeprl.tuning.study import Plan
    from deeprl.tuning.tune import search

    module, base = read_settings("tune", words[0], settings, options.recipe, _OWN)
    kind = module.Config
    space = read_space(options.space, kind) if options.space else published_space(words[0], kind)
    names = {f.name for f in dataclasses.fields(Plan)} - {"algorithm", "base", "space"}
    plan = Plan(words[0], base, space, **{name: getattr(options, name) for name in names})
    found = search(plan, options.out or f"runs/tune/{words[0]}/{base.task}", options.storage)
    if found is not None:
        show(told(found))
        show(f"recipe: {found.recipe}\nreport: {write_pages(found, plan)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deeprl tune", add_help=False, allow_abbrev=False)
    option = parser.add_argument
    option("--trials", type=int, default=32)
    option("--tuning-seeds", type=_seeds, default=(0, 1, 2))
    option("--test-seeds", type=_seeds, default=tuple(range(100, 110)))
    option("--space")
    option("--sampler", choices=_SAMPLERS, default="tpe")
    option("--search-seed", dest="seed", type=int, default=0)
    option("--batch", type=int, default=8)
    option("--objective", choices=("mean", "iqm"), default="mean")
    option("--last", type=int, default=3)
    option("--scheduler", choices=("none", "halving"), default="none")
    option("--eta", type=int, default=3)
    option("--rungs", type=int, default=3)
    option("--storage", default="")
    option("--recipe")
    option("--out")
    return parser


def _seeds(word: str) -> tuple[int, ...]:
    from deeprl.config import parse_seeds

    return parse_seeds([word])
