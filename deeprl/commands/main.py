"""The command line. Imports nothing heavy until a command needs it: `--help` and `list` answer at once."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import deeprl
from deeprl.errors import DeeprlError
from deeprl.run.progress import show

_EPILOG = """examples:
  deeprl train sac --env HalfCheetah-v5 --seeds 0-3 --steps 100_000
  deeprl train sac --env HalfCheetah-v5 --seeds 0-63 --dry-run
  deeprl sweep benchmarks/sweeps/demo.toml --jobs 2
  deeprl status runs/demo --watch
  deeprl tune sac --env Pendulum-v1 --steps 10_000 --eval-every 1_000 --trials 16
  deeprl evaluate runs/demo/sac/Pendulum-v1 --episodes 100
  deeprl compare before=runs/before after=runs/after

exit status:
  0 fine; 1 a report is not reproduced; 2 bad input; 3 done, but agents diverged; 130, 143 and 129
  ended by Ctrl-C, SIGTERM and a closed terminal
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status.

    0: fine. 1: `reproduce` found what lies outside. 2: bad input, with one line on stderr. 3: `train`, `resume`,
    `extend` or `sweep` is through, or was stopped, and agents diverged. 130, 143, 129: ended by Ctrl-C, SIGTERM or a
    closed terminal.
    """
    words = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a label may have letters that the locale lacks: \xf6 stands for one
        sys.stdout.reconfigure(errors="backslashreplace")
    before, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        if words[:1] in (["train"], ["tune"]) and words[1:2] not in (["-h"], ["--help"]):
            # Their settings are those of the algorithm, which another parser reads.
            return int(importlib.import_module(f"deeprl.commands.{words[0]}").run(words[1:]))
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
    """All commands and their options. The module of its name runs a command."""
    from deeprl.commands.dataset import add_commands

    parser = argparse.ArgumentParser(
        prog="deeprl",
        description="Deep-RL algorithms that train populations of agents in one process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deeprl {deeprl.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=lambda options: importlib.import_module(f"deeprl.commands.{name}").run(options))
        return sub

    train = command("train", "train a population (`deeprl train sac --help` lists its settings)")
    train.add_argument("algorithm", help="a name from `deeprl list`")
    tune = command("tune", "search for settings, and test them on other seeds (`deeprl tune sac --help`)")
    tune.add_argument("algorithm", help="a name from `deeprl list`")
    resume = command("resume", "continue a run from its newest checkpoint")
    resume.add_argument("run_dir")
    resume.add_argument("--dataset", nargs="+", metavar="PATH", help="where its datasets lie now, if they have moved")
    extend = command("extend", "train a run further, as if it had had more steps from the start")
    extend.add_argument("run_dir")
    extend.add_argument("--steps", type=int, required=True, help="steps of each agent, from the beginning")
    _add_evaluate(command("evaluate", "evaluate the trained agents of a run, without exploration"))
    _add_watch(command("watch", "film an episode of a trained agent"))
    _add_sweep(command("sweep", "train all experiments of a TOML file and write one report; resumable"))
    status = command("status", "all runs below a directory at a glance, while they are trained")
    status.add_argument("directory")
    status.add_argument("--watch", action="store_true", help="show it anew every two seconds, until Ctrl-C")
    _add_report(command("report", "write the report of all runs below a directory"))
    _add_compare(command("compare", "compare algorithms: differences with intervals, and what they show"))
    _add_reproduce(command("reproduce", "train what a report is made of again, and compare; resumable"))
    add_commands(commands)
    command("list", "list the algorithms, with their papers and what they need")
    return parser


def _add_watch(watch: argparse.ArgumentParser) -> None:
    watch.add_argument("run_dir")
    watch.add_argument("--seed", type=int, help="which agent, by its seed")
    watch.add_argument("--member", type=int, help="which agent, by its number")
    watch.add_argument("--step", type=int, help="the snapshot of this step (see --snapshot-every of train)")
    watch.add_argument("--out", help="file.gif or file.mp4 (default RUN_DIR/episode_seed_N.gif)")
    watch.add_argument("--max-steps", type=int, default=1000, help="stop after so many steps (default 1000)")


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("file")
    sweep.add_argument(
        "--jobs",
        type=int,
        help="populations at a time (default: with local 1, in this process; with ray and slurm as many as they take)",
    )
    sweep.add_argument(
        "--launcher",
        default="local",
        help="local: processes on this machine, each with cores or a GPU of its own (default); ray: a Ray cluster;"
        " slurm: through submitit",
    )
    sweep.add_argument("--address", help="of the Ray cluster, HOST:PORT (default auto: that of this machine)")
    sweep.add_argument(
        "--resources",
        metavar="JSON",
        help='what each population takes: of Ray, such as \'{"CPU": 2, "GPU": 1}\' (default one CPU); on Slurm what'
        ' submitit calls parameters, such as \'{"cpus_per_task": 2, "timeout_min": 600}\'',
    )


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("directory")
    report.add_argument("--out", help="where to write it (default DIRECTORY/report)")
    report.add_argument(
        "--published", nargs="+", default=[], metavar="FILE", help="show curves of CSV files beside them"
    )
    report.add_argument(
        "--peer",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="show what another library recorded: stable-baselines3's evaluations.npz or monitor.csv, events of"
        " TensorBoard (CleanRL), a CSV export of W&B, or a folder of these; NAME@ENVIRONMENT=PATH where none is told",
    )
    report.add_argument("--rows", help="append benchmark rows of all evaluations to this CSV file")


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "sources",
        nargs="+",
        metavar="[NAME=]PATH",
        help="runs, a directory of runs, a CSV file of benchmark rows or published curves, or what another library"
        " recorded (see --peer of report); the first one is the reference",
    )
    compare.add_argument(
        "--at", type=int, metavar="STEP", help="compare the policies of this step (default: the final ones)"
    )
    compare.add_argument("--csv", help="write a row for each verdict to this file")
    compare.add_argument("--png", help="draw means, and the IQM over all tasks, with their intervals")


def _add_reproduce(reproduce: argparse.ArgumentParser) -> None:
    reproduce.add_argument("report", help="the directory of a report, or its report.json")
    reproduce.add_argument("--out", help="where to train (default runs/reproduced/TITLE)")
    reproduce.add_argument("--only", metavar="CELL", help="one cell, by its name or its key in summary.csv")
    reproduce.add_argument("--device", help="in place of those of the record: cpu, cuda, auto")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("run_dir")
    evaluate.add_argument(
        "--episodes", type=int, help="episodes of each agent (default 100, of each decision period 10)"
    )
    evaluate.add_argument("--csv", help="write every episode to this file")
    evaluate.add_argument("--step", type=int, help="the snapshot of this step (see --snapshot-every of train)")
    evaluate.add_argument(
        "--decision-periods",
        metavar="LIST",
        help="decide every so many steps only, such as 1,4,8; fas: at those of the frequency-averaged score, which is"
        " printed; random: 1 to 16 steps, drawn for each decision",
    )
    evaluate.add_argument(
        "--return-range",
        nargs=2,
        type=float,
        metavar=("BEST", "OFFSET"),
        help="what the score measures returns by (default: the published numbers of the environment)",
    )
    evaluate.add_argument("--png", help="where to draw returns by period (default RUN_DIR/decision_periods.png)")


def train_from_shell(algorithm: str) -> None:
    """`python -m deeprl.online.sac ...`: as `deeprl train sac ...`."""
    sys.exit(main(["train", algorithm, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
