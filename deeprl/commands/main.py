"""The command line. Imports nothing heavy until a command needs it: `--help` and `list` answer at once."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deeprl
from deeprl.errors import DeeprlError
from deeprl.run.progress import show

_EPILOG = """examples:
  deeprl train sac --env HalfCheetah-v5 --seeds 0-3 --steps 100_000
  deeprl train sac --env HalfCheetah-v5 --seeds 0-63 --dry-run
  deeprl sweep benchmarks/sweeps/demo.toml
  deeprl evaluate runs/demo/sac/Pendulum-v1 --episodes 100

exit status:
  0 fine; 2 bad input; 3 done, but agents diverged; 130, 143 and 129 ended by Ctrl-C, SIGTERM and a
  closed terminal
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status.

    0: fine. 2: bad input, with one line on stderr. 3: `train`, `resume` or `sweep` is through, or was stopped, and
    agents diverged. 130, 143, 129: ended by Ctrl-C, SIGTERM or a closed terminal.
    """
    words = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a label may have letters that the locale lacks: \xf6 stands for one
        sys.stdout.reconfigure(errors="backslashreplace")
    before, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        if words[:1] == ["train"] and not (len(words) > 1 and words[1] in ("-h", "--help")):
            return _train(words[1:])
        options = _parser().parse_args(words)
        return int(options.run(options) or 0)
    except DeeprlError as error:
        show(f"deeprl: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if not error.args:  # a run that could end its step has said how to go on
            show("deeprl: stopped at once; the same command goes on from the newest checkpoint", sys.stderr)
        return 130
    except BrokenPipeError:  # `deeprl list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file or directory that cannot be read or written
        show(f"deeprl: {error.filename or 'file'}: {error.strerror or error}", sys.stderr)
        return 2
    finally:
        warnings.formatwarning = before


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Warnings of deeprl as lines for its user, those of others with their place in the code."""
    if Path(filename).is_relative_to(Path(deeprl.__file__).parent):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _parser() -> argparse.ArgumentParser:
    from deeprl.commands.dataset import add_commands

    parser = argparse.ArgumentParser(
        prog="deeprl",
        description="Deep-RL algorithms that train populations of agents in one process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deeprl {deeprl.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    train = command("train", _no_algorithm, "train a population (`deeprl train sac --help` lists its settings)")
    train.add_argument("algorithm", help="a name from `deeprl list`")
    resume = command("resume", _resume, "continue a run from its newest checkpoint")
    resume.add_argument("run_dir")
    resume.add_argument("--dataset", nargs="+", metavar="PATH", help="where its datasets lie now, if they have moved")
    evaluate = command("evaluate", _evaluate, "evaluate the trained agents of a run, without exploration")
    evaluate.add_argument("run_dir")
    evaluate.add_argument("--episodes", type=int, default=100, help="episodes of each agent (default 100)")
    evaluate.add_argument("--csv", help="write every episode to this file")
    evaluate.add_argument("--step", type=int, help="the snapshot of this step (see --snapshot-every of train)")
    watch = command("watch", _watch, "film an episode of a trained agent")
    watch.add_argument("run_dir")
    watch.add_argument("--seed", type=int, help="which agent, by its seed")
    watch.add_argument("--member", type=int, help="which agent, by its number")
    watch.add_argument("--step", type=int, help="the snapshot of this step (see --snapshot-every of train)")
    watch.add_argument("--out", help="file.gif or file.mp4 (default RUN_DIR/episode_seed_N.gif)")
    watch.add_argument("--max-steps", type=int, default=1000, help="stop after so many steps (default 1000)")
    sweep = command("sweep", _sweep, "train all experiments of a TOML file and write one report; resumable")
    sweep.add_argument("file")
    report = command("report", _report, "write the report of all runs below a directory")
    report.add_argument("directory")
    report.add_argument("--out", help="where to write it (default DIRECTORY/report)")
    report.add_argument("--published", metavar="FILE", help="draw the curves of this CSV file beside them")
    report.add_argument("--rows", help="append benchmark rows of all evaluations to this CSV file")
    add_commands(commands)
    command("list", _list, "list the algorithms, with their papers and what they need")
    return parser


def train_from_shell(algorithm: str) -> None:
    """`python -m deeprl.online.sac ...`: as `deeprl train sac ...`."""
    sys.exit(main(["train", algorithm, *sys.argv[1:]]))


def _train(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        raise DeeprlError(f"train: name an algorithm first; known: {', '.join(deeprl.ALGORITHMS)}")
    from deeprl.api import algorithm_module

    module = algorithm_module(words[0])
    import tyro

    from deeprl.config import build
    from deeprl.recipes import with_recipe

    settings, options = _own_options(words[1:])
    text = (
        "With --dry-run: tell how much memory the run would take, and do nothing else.\n"
        f"With --recipe NAME: the defaults of a published experiment; {_recipes(words[0])}.\n\n{module.__doc__}"
    )
    default = build(module.Config, with_recipe(words[0], {"recipe": options.recipe}))
    config = tyro.cli(module.Config, args=settings, prog=f"deeprl train {words[0]}", description=text, default=default)
    if config.env_kwargs:
        config = dataclasses.replace(config, env_kwargs={**default.env_kwargs, **config.env_kwargs})
    return _dry_run(module, config) if options.dry_run else _trained(module.train(config))


def _own_options(words: list[str]) -> tuple[list[str], argparse.Namespace]:
    """The settings of a run, and what is none: it is not stored with the run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--recipe")
    options, settings = parser.parse_known_args(words)
    return settings, options


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


def _trained(run: Any) -> int:
    state = "finished" if run.finished else "all diverged" if run.diverged else "stopped"
    told = "" if run.unit.counted == "steps" else f" ({run.unit.told(run.step)})"
    show(f"{state} at step {run.step:,}{told} after {run.wall_s:,.0f} s; records in {run.directory}")
    return _diverged(run.directory, run.frozen, len(run.config.seeds))


def _diverged(run_dir: Path, frozen: list[dict[str, Any]], agents: int) -> int:
    """Name the agents of a run that diverged. Returns the exit status: 3 if there are any, else 0."""
    if not frozen:
        return 0
    who = ", ".join(f"seed {f['seed']} (member {f['member']}, step {f['step']}: {f['cause']})" for f in frozen)
    show(f"{len(frozen)} of {agents} agents of {run_dir} diverged: {who}")
    return 3


def _no_algorithm(options: argparse.Namespace) -> int:
    raise DeeprlError("train: name an algorithm first")


def _resume(options: argparse.Namespace) -> int:
    import dataclasses

    from deeprl.api import algorithm_module, stored_config
    from deeprl.run.directory import read_about

    about = read_about(Path(options.run_dir))
    config = dataclasses.replace(stored_config(about), out=options.run_dir)
    if options.dataset:
        config = _with_datasets(config, options.dataset)
    return _trained(algorithm_module(about["algorithm"]).train(config))


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


def _evaluate(options: argparse.Namespace) -> int:
    from deeprl.commands.evaluate import assess

    if options.episodes < 1:
        raise DeeprlError(f"--episodes: must be positive, not {options.episodes}")
    assess(options.run_dir, options.episodes, options.csv, options.step)
    return 0


def _watch(options: argparse.Namespace) -> int:
    from deeprl.commands.watch import watch

    watch(options.run_dir, options.seed, options.member, options.out, options.max_steps, options.step)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from deeprl.launch.sweep import read_sweep, run_sweep

    _, plan = read_sweep(options.file)  # before the days in which somebody may edit the file
    print(f"report: {run_sweep(options.file)}")
    return max(_diverged(p.directory, p.frozen(), len(p.config.seeds)) for p in plan)


def _report(options: argparse.Namespace) -> int:
    from deeprl.reporting.report import write_report
    from deeprl.reporting.table import COLUMNS, OLDER, results, write_rows
    from deeprl.run.targets import check_table

    if options.rows:
        check_table(options.rows, COLUMNS, OLDER)
    print(f"report: {write_report(options.directory, options.out, options.published)}")
    if options.rows:
        write_rows(options.rows, results(options.directory))
        print(f"rows: {options.rows}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from deeprl.recipes import RECIPES

    for name, algorithm in deeprl.ALGORITHMS.items():
        print(f"{name:10} {algorithm.title}\n{'':10} {algorithm.paper}; needs {algorithm.needs}")
        if recipes := ", ".join(RECIPES.get(name, {})):
            print(f"{'':10} recipes: {recipes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
