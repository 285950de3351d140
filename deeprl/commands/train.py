"""`deeprl train ALGORITHM`: train a population, or tell how much memory that would take."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import deeprl
from deeprl.commands.outcome import trained
from deeprl.errors import DeeprlError
from deeprl.run.progress import show


def run(words: list[str]) -> int:
    """Train as the words after `deeprl train` say: the algorithm, then settings of its own and `_own_options`."""
    if not words or words[0].startswith("-"):
        raise DeeprlError(f"train: name an algorithm first; known: {', '.join(deeprl.ALGORITHMS)}")
    settings, options = _own_options(words[1:])
    text = "With --dry-run: tell how much memory the run would take, and do nothing else.\n"
    module, config = read_settings("train", words[0], settings, options.recipe, text)
    return _dry_run(module, config) if options.dry_run else trained(module.train(config))


def read_settings(command: str, algorithm: str, words: list[str], recipe: str | None, text: str) -> tuple[Any, Any]:
    """The module of an algorithm, and the settings that the words say. text: what `--help` says of the command."""
    from deeprl.run.trained import algorithm_module

    module = algorithm_module(algorithm)
    import tyro

    from deeprl.config import build
    from deeprl.recipes import with_recipe

    text += f"With --recipe NAME: the defaults of a published experiment; {_recipes(algorithm)}.\n"
    text += f"With --recipe FILE.toml: those of a file, such as deeprl tune writes.\n\n{module.__doc__}"
    default = build(module.Config, with_recipe(algorithm, {"recipe": recipe}))
    prog = f"deeprl {command} {algorithm}"
    config = tyro.cli(module.Config, args=words, prog=prog, description=text, default=default)
    if config.env_kwargs:
        config = dataclasses.replace(config, env_kwargs={**default.env_kwargs, **config.env_kwargs})
    return module, config


def _own_options(words: list[str]) -> tuple[list[str], argparse.Namespace]:
    """The settings of a run, and what is none: it is not stored with the run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--recipe")
    parser.add_argument("--from", dest="init", nargs="+")
    options, settings = parser.parse_known_args(words)
    return settings + (["--init", *options.init] if options.init else []), options


def _recipes(algorithm: str) -> str:
    from deeprl.recipes import RECIPES

    found = [f"{name} ({recipe.source})" for name, recipe in RECIPES.get(algorithm, {}).items()]
    return "; ".join(found) or f"{algorithm} has none"


def _dry_run(module: Any, config: Any) -> int:
    from deeprl.core.footprint import rehearse

    needs = rehearse(module.train, config)
    agents = len(config.seeds)
    name = module.__name__.rpartition(".")[2]
    environments = agents * getattr(config, "envs_per_agent", 0)
    show(f"{name} {config.task}: {agents} agents" + (f", {environments} environments" if environments else ""))
    show(needs.table())
    needs.require()
    return 0
