"""`deeprl tune ALGORITHM`: search for settings, test what was found on seeds that the search has not seen."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import deeprl
from deeprl.errors import DeeprlError
from deeprl.run.progress import show

_OWN = """options of a search, beside the settings of the algorithm, which all trials share:
  --method NAME         search, or pbt: population-based training (default search)
  --tuning-seeds SEEDS  seeds of every trial (default 0-2); of pbt, one for each member (default 0-7)
  --test-seeds SEEDS    seeds of the test of winner and default, none of them a tuning seed (default 100-109)
  --space FILE          what is searched, as TOML (default: the algorithm's own space)
  --search-seed N       seed of what is drawn (default 0)
  --last N              the value of a seed is the mean of so many last evaluations (default 3)
  --out DIR             the study (default runs/tune/ALGORITHM/ENV); called again, it goes on
of method search:
  --trials N            settings to try (default 32)
  --sampler NAME        random, tpe, gp, qmc, cmaes or nsga2, of Optuna (default tpe)
  --batch N             trials that are drawn, and train, together (default 8)
  --objective NAME      mean or iqm over the tuning seeds (default mean)
  --scheduler NAME      none, or halving: many trials for few steps, the better ones for more (default none)
  --eta N, --rungs N    of halving: one in eta goes on, at each of so many rungs (default 3, 3)
  --storage PLACE       an Optuna journal, or the URL of a database (default DIR/journal.log)
of method pbt:
  --interval N          steps between rounds, a multiple of eval_every (default: eval_every)
  --share X             the worst so many go on from the best so many (default 0.25)
  --resample X          probability that a setting is drawn anew (default 0.25)
  --no-explore          all keep the given settings and only go on from each other: the control
"""
_OF = {
    "search": ("trials", "sampler", "batch", "objective", "scheduler", "eta", "rungs", "storage"),
    "pbt": ("interval", "share", "resample", "explore"),
}


def run(words: list[str]) -> int:
    """Tune as the words after `deeprl tune` say: the algorithm, then its settings and the options of the search."""
    if not words or words[0].startswith("-"):
        raise DeeprlError(f"tune: name an algorithm first; known: {', '.join(deeprl.ALGORITHMS)}")
    options, settings = _parser().parse_known_args(words[1:])
    if any(word.partition("=")[0] == "--seeds" for word in settings):
        raise DeeprlError("seeds: a search has --tuning-seeds and --test-seeds")
    given = {name: value for name, value in vars(options).items() if value is not None}
    for other, names in _OF.items():
        if other != options.method and (idle := [name for name in names if name in given]):
            raise DeeprlError(f"{idle[0]}: has no effect with --method {options.method}")
    from deeprl.commands.train import read_settings
    from deeprl.tuning.published import published_space
    from deeprl.tuning.spaces import read_space
    from deeprl.tuning.study import StudyStoppedError

    module, base = read_settings("tune", words[0], settings, options.recipe, _OWN)
    space = read_space(options.space, module.Config) if options.space else published_space(words[0], module.Config)
    out = options.out or f"runs/tune/{words[0]}/{base.task}"
    try:
        (_search if options.method == "search" else _evolve)(words[0], base, space, given, out)
    except StudyStoppedError as error:
        show(str(error))
    return 0


def _search(algorithm: str, base: Any, space: Any, given: dict[str, Any], out: str) -> None:
    from deeprl.tuning.report import study_told, write_pages
    from deeprl.tuning.study import Plan
    from deeprl.tuning.tune import search

    known = {f.name for f in dataclasses.fields(Plan)}
    plan = Plan(algorithm, base, space, **{name: value for name, value in given.items() if name in known - {"space"}})
    found = search(plan, out, given.get("storage", ""))
    if found is not None:
        show(study_told(found))
        show(f"recipe: {found.recipe}\nreport: {write_pages(found, plan)}")


def _evolve(algorithm: str, base: Any, space: Any, given: dict[str, Any], out: str) -> None:
    from deeprl.tuning.evolve import evolve, evolved_told
    from deeprl.tuning.pbt import PbtPlan

    config = dataclasses.replace(base, seeds=given.get("tuning_seeds", tuple(range(8))))
    own = {"interval": base.eval_every} | {name: given[name] for name in (*_OF["pbt"], "seed") if name in given}
    plan = PbtPlan(algorithm, config, space, **own)
    found = evolve(plan, given.get("test_seeds", tuple(range(100, 110))), out, given.get("last", 3))
    show(f"{evolved_told(found)}\nreport: {out}/report/index.html")


def _parser() -> argparse.ArgumentParser:
    from deeprl.tuning.drawing import SAMPLERS

    parser = argparse.ArgumentParser(prog="deeprl tune", add_help=False, allow_abbrev=False)
    option = parser.add_argument
    option("--method", choices=tuple(_OF), default="search")
    option("--tuning-seeds", type=_seeds)
    option("--test-seeds", type=_seeds)
    option("--space")
    option("--sampler", choices=SAMPLERS)
    option("--search-seed", dest="seed", type=int)
    option("--objective", choices=("mean", "iqm"))
    option("--scheduler", choices=("none", "halving"))
    for name in ("trials", "batch", "last", "eta", "rungs", "interval"):
        option(f"--{name}", type=int)
    for name in ("share", "resample"):
        option(f"--{name}", type=float)
    option("--no-explore", dest="explore", action="store_const", const=False)
    for name in ("storage", "recipe", "out"):
        option(f"--{name}")
    return parser


def _seeds(word: str) -> tuple[int, ...]:
    from deeprl.config import parse_seeds

    try:
        return parse_seeds([word])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
