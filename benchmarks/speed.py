"""Speed of deeprl beside its peers: the whole training loop, measured side by side on this machine.

    make peers
    python benchmarks/speed.py --algorithm sac --agents 1,2,4,8 --peers sb3,sbx,eager --what loop,update \
        --seconds 20 --rounds 5 --csv benchmarks/results/speed.csv --roofline benchmarks/results/roofline.csv

Launch modes, on C cores (`--cores`, default 2):
    deeprl   one process of C threads with the whole population; C processes of one thread that share it equally
    peers    one process of C threads with one agent; C processes of one thread with one agent each
Every process of one thread is pinned to a core of its own. One mode runs at a time and they take turns (A B C A B C);
each turn is a fresh process that warms up first: imports, random steps and compilation lie outside the window. The
processes of a mode measure during the same window and their rates are summed.

What each number is:
    steps_per_s   agent steps per second of the whole loop, summed over the agents of a mode: the median over the
                  rounds. A step has one update, or `--every` steps have. `includes` says what a step holds, and,
                  apart from it, how long the first update took to come, and compilation. In variants called `update`,
                  updates per second of sampling and updating alone.
    ratio         a deeprl mode against the best mode of one peer, or of its own `sync` environments where there are
                  others (`--backends`): the ratio within each round, then their median.
    other load    cores that anything outside the mode kept busy during a window (Linux only; `includes` has the most).
                  A turn with more than `--quiet` of it is repeated, up to `--retries` times; the quietest one counts.
Rows replace earlier rows of the same algorithm, environment, agents, variant, peer, precision and device. Files are
written after every round. A mode that dies is left out from there on; the end says why.
`--agents 0` measures the peers alone; no `--peers`, deeprl alone. `--set name=value` changes a field of the Config.
`--json` writes all of it in one file, every round's numbers included. `--roofline`: see roofline.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import roofline
from speed_modes import all_modes, peers
from speed_rows import Rounds, save, save_json, table, typed_command
from speed_tasks import task
from speed_turns import ModeFailed, quiet_turn

FLAGS = ["algorithm", "env", "size", "agents", "what", "every", "precision", "peers", "backends"]
FLAGS += ["seconds", "rounds", "warmup_steps", "cores", "device", "set", "roofline"]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def words(text: str) -> list[str]:
    return text.split(",")


def whats(text: str) -> list[str]:
    found = words(text)
    if not set(found) <= {"loop", "update"}:
        raise argparse.ArgumentTypeError(f"{text!r}: loop, update, or both")
    return found


def shared_flags(flags: argparse.ArgumentParser) -> None:
    """Flags of every benchmark that takes turns."""
    flags.add_argument("--algorithm", default="sac", help="sac, td3, dqn, iql")
    flags.add_argument("--env", default="", help="by default that of the algorithm in speed_tasks.py")
    flags.add_argument("--size", default="", help="hidden layers and batch, such as 64x64:32, if not those of the task")
    flags.add_argument("--what", type=whats, default=["loop"], help="loop, update, or loop,update")
    flags.add_argument("--every", type=int, default=1, help="environment steps for each update of the loop")
    flags.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--warmup-steps", type=int, default=300, help="steps with updates before the window")
    flags.add_argument("--cores", type=int, default=2)
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    flags.add_argument("--precision", default="fast", choices=("fast", "strict", "bf16"), help="of deeprl")
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of deeprl's Config")
    flags.add_argument("--quiet", type=float, default=0.15, metavar="CORES", help="other load that is let pass")
    flags.add_argument("--retries", type=int, default=2, help="more turns where the machine was not quiet")
    flags.add_argument("--csv", type=Path, help="where rows go; without it they are only printed")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_flags(flags)
    flags.add_argument("--agents", type=numbers, default=[8], help="sizes of deeprl's population, such as 1,2,4,8")
    flags.add_argument("--backends", type=words, default=["sync"], help="of deeprl's environments, such as sync,device")
    flags.add_argument("--peers", default="", metavar="NAME[=PYTHON],...", help="such as sb3,sbx,eager")
    flags.add_argument("--json", type=Path, help="where everything goes that was measured")
    flags.add_argument("--roofline", type=Path, help="where rows of the share of the matmul ceiling go")
    return flags


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Arguments that make sense together, with the environment's name and one place for the precision."""
    if args.cores > (os.cpu_count() or 1):
        raise SystemExit(f"--cores {args.cores}: this machine has {os.cpu_count()}")
    args.env = task(args.algorithm, args.env, args.size).env
    for pair in [pair for pair in args.set if pair.startswith("precision=")]:
        args.set.remove(pair)
        args.precision = pair.partition("=")[2]
    return args


def take_turns(args: argparse.Namespace, rounds: Rounds, failed: dict[str, str], label: str) -> None:
    """One round. A mode that fails is taken out of `rounds` and its reason put into `failed`."""
    for mode in list(rounds):
        try:
            rounds[mode].append(quiet_turn(mode, args, label))
        except ModeFailed as error:
            print(error, file=sys.stderr, flush=True)
            failed[f"{mode.name}, {mode.agents} agents"] = str(error)
            del rounds[mode]
    if not rounds:
        raise SystemExit("every mode has failed")


def main() -> None:
    args = checked(parser().parse_args())
    peers(args.peers)  # a missing one is told before anything is measured
    args.command = typed_command("speed.py", args, FLAGS)
    rounds: Rounds = {mode: [] for mode in all_modes(args)}
    failed: dict[str, str] = {}
    flops = roofline.flops_per_update(args) if args.roofline else 0
    for index in range(args.rounds):
        take_turns(args, rounds, failed, f"round {index + 1}/{args.rounds}")
        rows, ceilings = table(args, rounds), roofline.table(args, rounds, flops)
        if args.csv:
            save(args.csv, rows)
        if args.roofline:
            save(args.roofline, ceilings, roofline.COLUMNS, roofline.KEY)
        if args.json:
            save_json(args.json, args, rounds, rows, failed, roofline=ceilings)
    for one in [{name: name for name in rows[0]}, *rows]:
        print(f"{one['variant']:<54}{one['agents']:>7}{one['steps_per_s']:>13}{one['ratio']:>8}  {one['ratio_to']}")
    for one in ceilings:
        print(roofline.sentence(one))
    if failed:
        raise SystemExit("failed:\n" + "\n".join(failed.values()))


if __name__ == "__main__":
    main()
