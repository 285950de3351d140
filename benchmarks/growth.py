"""How the time of a population's step grows with its agents, in one process: a table and a plot.

    python benchmarks/growth.py measure --algorithm sac --agents 1,2,4,8,16,32,64 --what loop,update \
        --csv benchmarks/results/growth.csv
    python benchmarks/growth.py plot --csv benchmarks/results/growth.csv --png docs/growth.png

`measure` lets the sizes take turns as benchmarks/speed.py does with its modes; warm-up, and what a step holds, are the
same. `step_ms`: milliseconds of one step of the whole population, the median over the rounds. `times_one`: how many
times that of the smallest population measured, within each round, then the median; where it is below the number of
agents, agents together are faster than in turn. Replay data have room for 100,000 transitions of each agent at most: 64
times the usual million would not fit into memory, and only rows that are filled are sampled.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

from speed import checked, numbers, shared_flags, take_turns
from speed_modes import deeprl_head, launch_modes
from speed_rows import Rounds, Row, conditions, rates, save, span, typed_command
from speed_tasks import task

COLUMNS = ["algorithm", "env", "what", "agents", "includes", "step_ms", "times_one", "steps_per_s", "cores", "threads"]
COLUMNS += ["precision", "device", "versions", "command"]
KEY = ("algorithm", "env", "what", "agents", "threads", "precision", "device")
FLAGS = ["algorithm", "env", "size", "agents", "what", "every", "precision", "seconds"]
FLAGS += ["rounds", "warmup_steps", "cores", "device", "set"]
LARGEST_BUFFER = 100_000


def table(args: argparse.Namespace, rounds: Rounds) -> list[Row]:
    """A row of each size."""
    rows = []
    for mode in rounds:
        first = min((m for m in rounds if m.what == mode.what), key=lambda m: m.agents)
        times, base = ([m.agents / rate for rate in rates(rounds, m)] for m in (mode, first))
        result: dict[str, Any] = rounds[mode][0]
        extent = f"step: median of {len(times)} rounds of {args.seconds:g} s, range {span([1e3 * t for t in times])} ms"
        noise = max(r["other_load"] for r in rounds[mode])
        rows.append(
            {
                "algorithm": args.algorithm,
                "env": args.env,
                "what": mode.what,
                "agents": str(mode.agents),
                "includes": f"{result['includes']}; {extent}, other load at most {noise:.2f} cores",
                "step_ms": f"{1e3 * statistics.median(times):.4g}",
                "times_one": f"{statistics.median(t / b for t, b in zip(times, base, strict=True)):.2f}",
                "steps_per_s": f"{statistics.median(rates(rounds, mode)):.1f}",
            }
            | conditions(args, mode, result, result["versions"])
        )
    return rows


def measure(args: argparse.Namespace) -> None:
    checked(args)
    args.command = typed_command("growth.py measure", args, FLAGS)
    if not any(pair.startswith("buffer_size=") for pair in args.set):
        args.set.append(f"buffer_size={min(task(args.algorithm, args.env, args.size).buffer, LARGEST_BUFFER)}")
    head = deeprl_head(args)
    sizes = [(what, agents) for what in args.what for agents in args.agents]
    modes = [mode for what, agents in sizes for mode in launch_modes(args, "deeprl", head, agents, what, processes=[1])]
    rounds: Rounds = {mode: [] for mode in modes}
    failed: dict[str, str] = {}
    for index in range(args.rounds):
        take_turns(args, rounds, failed, f"round {index + 1}/{args.rounds}")
        rows = table(args, rounds)
        if args.csv:
            save(args.csv, rows, COLUMNS, KEY)
    for one in [{name: name for name in COLUMNS}, *rows]:
        print(f"{one['what']:<8}{one['agents']:>7}{one['step_ms']:>10}{one['times_one']:>11}{one['steps_per_s']:>13}")
    if failed:
        raise SystemExit("failed:\n" + "\n".join(failed.values()))


def plot(rows: list[Row], png: Path) -> None:
    """Time of a population's step over its size, a panel for each algorithm and environment."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row["algorithm"], row["env"]) for row in rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        mine = [row for row in rows if (row["algorithm"], row["env"]) == panel]
        curves = dict.fromkeys((row["what"], row["threads"], row["precision"], row["device"]) for row in mine)
        for curve in curves:
            found = [row for row in mine if (row["what"], row["threads"], row["precision"], row["device"]) == curve]
            points = sorted((int(row["agents"]), float(row["step_ms"])) for row in found)
            agents, times = zip(*points, strict=True)
            what = "whole loop" if curve[0] == "loop" else "update alone"
            (line,) = axis.plot(agents, times, "o-", label=f"{what}, threads: {curve[1]}, {curve[2]}")
            in_turn = [times[0] * size / agents[0] for size in agents]
            axis.plot(agents, in_turn, ":", color=line.get_color(), label=f"{agents[0]} in turn, {what}")
        ticks = sorted({int(row["agents"]) for row in mine})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(title=f"{panel[0]}, {panel[1]}", xlabel="agents", ylabel="ms per step of the population")
        for labelled in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            labelled(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else "")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=150)
    pyplot.close(figure)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = flags.add_subparsers(dest="kind", required=True)
    measuring = kinds.add_parser("measure")
    shared_flags(measuring)
    measuring.add_argument("--agents", type=numbers, default=[1, 2, 4, 8, 16, 32, 64], help="sizes, such as 1,2,4,8")
    plotting = kinds.add_parser("plot")
    plotting.add_argument("--csv", type=Path, required=True)
    plotting.add_argument("--png", type=Path, required=True)
    args = flags.parse_args()
    if args.kind == "measure":
        measure(args)
    else:
        plot(list(csv.DictReader(args.csv.read_text(encoding="utf-8").splitlines())), args.png)


if __name__ == "__main__":
    main()
