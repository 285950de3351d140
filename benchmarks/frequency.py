"""How do returns hold where agents look less often? SRL beside SAC and SAC that learned with held actions.

    python benchmarks/frequency.py --env Pendulum-v1
    python benchmarks/frequency.py --table benchmarks/results/frequency.csv --png docs/frequency_pendulum.png

Trains each agent for the same number of steps of the environment, in one population of all seeds, and evaluates the
final policies and, as the authors' figures are, of each seed the one with the best evaluation in training: ten
episodes at each decision period of the frequency-averaged score (FAS), and ten with periods drawn from 1 to 16. SAC-j
learns with each action held for j steps: a decision is a step to it, with its reward the sum, gamma per decision and
an update for each, as in the authors' scripts. Differences from these: updates begin after the random steps and not
beside them. Rows are of one agent, checkpoint and period; period `1-16` is the drawn one. The same command goes on
where it was stopped; cells that have their rows are passed over.

The table: FAS as mean and population deviation over seeds, published figures beside it (best checkpoints, 5 seeds);
the probability that a seed of an agent has a higher FAS than one of the best SAC-j.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from speed_rows import save, versions_told

import deeprl
from deeprl.commands.evaluate import play_periods
from deeprl.core.population import member, stack
from deeprl.reporting.frequency import PERIODS, drawn_by_period, fas, return_range, steady
from deeprl.run import provenance
from deeprl.run.directory import evaluated_in
from deeprl.run.periods import Period, without_repeats
from deeprl.run.records import read_about
from deeprl.run.trained import load_population

COLUMNS = ("env", "agent", "seed", "checkpoint", "step", "period", "return", "versions", "device", "commit", "command")
EPISODES, DRAWN = 10, Period(1, 16)
PUBLISHED = {  # mean and deviation, notebooks/table2.ipynb of dee0512/Sequence-Reinforcement-Learning
    ("Pendulum-v1", "SAC-1"): (0.442, 0.026),
    ("Pendulum-v1", "SAC-2"): (0.424, 0.027),
    ("Pendulum-v1", "SAC-4"): (0.498, 0.035),
    ("Pendulum-v1", "SAC-8"): (0.490, 0.045),
    ("Pendulum-v1", "SAC-16"): (0.326, 0.053),
    ("Hopper-v5", "SAC-1"): (0.050, 0.020),  # of Hopper-v2, a million steps
    ("Hopper-v5", "SAC-8"): (0.142, 0.039),
    ("Hopper-v5", "SAC-16"): (0.263, 0.080),
}


@dataclass(frozen=True)
class Options:
    env: str = ""
    agents: tuple[str, ...] = ("SAC-1", "SAC-4", "SRL-4", "SRL-8", "SAC-2", "SAC-8", "SAC-16", "SRL-4 without recall")
    """SAC-j, SRL-J, in this order."""
    seeds: str = "0-4"
    steps: int = 30_000
    """Of the environment, for each agent."""
    random_steps: int = 1_000
    eval_every: int = 2_500
    """Steps of the environment between evaluations in training."""
    precision: str = "fast"
    runs: Path = Path("runs/frequency")
    csv: Path = Path("benchmarks/results/frequency.csv")
    table: Path | None = None
    """Print the table of this CSV file and do nothing else."""
    png: Path | None = None
    """With a table: draw returns by period of the final policies; one environment."""


def settings_of(agent: str, options: Options) -> tuple[str, dict[str, Any]]:
    """Algorithm and settings of an agent by its name."""
    kind, _, rest = agent.partition("-")
    length = int(rest.split()[0])
    held = length if kind == "SAC" else 1
    own: dict[str, Any] = {"steps": options.steps // held, "learning_starts": options.random_steps // held}
    own |= {"eval_every": options.eval_every // held, "snapshot_every": options.eval_every // held}
    if kind == "SAC":
        return "sac", own | ({"wrappers": (f"deeprl.envs.repeat:Repeat{held}",)} if held > 1 else {})
    return "srl", own | {"sequence_length": length, "recall": not rest.endswith("without recall")}


def best_steps(run_dir: Path) -> dict[int, int]:
    """Of each agent, the step with the best evaluation in training."""
    found: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (run_dir / "evaluations.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[int(row["member"])][int(row["step"])].append(float(row["return"]))
    return {m: max(steps, key=lambda s, steps=steps: np.mean(steps[s])) for m, steps in found.items()}  # type: ignore[misc]


def measured(run_dir: Path, step: int | None, number: int) -> list[tuple[str, float, int]]:
    """Period, mean return and step of an agent of a run at a step."""
    population = load_population(run_dir, step=step)
    alone = population._replace(state=stack([member(population.state, number)]), members=[population.members[number]])
    periods = [*(Period(p, p) for p in PERIODS), DRAWN]
    returns: dict[str, list[float]] = defaultdict(list)
    for e in play_periods(alone, without_repeats(evaluated_in(read_about(run_dir))), periods, EPISODES):
        returns["1-16" if e.period == str(DRAWN) else e.period].append(e.ret)
    return [(period, float(np.mean(r)), population.step) for period, r in returns.items()]


def run(options: Options) -> None:
    """Every agent, and its rows after it."""
    usual: dict[str, Any] = {"env": options.env, "seeds": options.seeds, "eval_episodes": EPISODES, "threads": 1}
    usual |= {"precision": options.precision, "compile": "on", "log_every": 500}
    about = {"env": options.env, "command": provenance.command(), "commit": provenance.commit()}
    about |= {"device": provenance.device_name("cpu", 1), "versions": versions_told("deeprl", "torch")}
    for agent in options.agents:
        algorithm, own = settings_of(agent, options)
        place = options.runs / options.env / agent.replace(" ", "_")
        trained = deeprl.train(algorithm, out=str(place), label=agent, **(usual | own))
        best = best_steps(trained.directory)
        known = stored(options.csv, ("env", "agent", "seed", "checkpoint"))
        for checkpoint, step, m in [("final", None, m) for m in best] + [("best", s, m) for m, s in best.items()]:
            seed = str(trained.config.seeds[m])
            if [options.env, agent, seed, checkpoint] in known:
                continue
            rows = []
            for period, ret, at in measured(trained.directory, step, m):
                row = {"agent": agent, "seed": seed, "checkpoint": checkpoint, "step": str(at), "period": period}
                rows.append(about | row | {"return": f"{ret:.4f}"})
            save(options.csv, rows, COLUMNS, ("env", "agent", "seed", "checkpoint", "period"))


def stored(path: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """These columns of the rows of a file, if it is there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [[row[c] for c in columns] for row in csv.DictReader(file)]


def table(options: Options) -> None:
    """Print the table, draw the picture."""
    assert options.table is not None
    found: dict[Any, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for env, agent, seed, checkpoint, period, ret in stored(
        options.table, ("env", "agent", "seed", "checkpoint", "period", "return")
    ):
        found[env, agent, checkpoint][seed][period] = float(ret)
    scores, drawn = {}, {}
    for (env, agent, checkpoint), seeds in found.items():
        by_period = [steady(periods) for periods in seeds.values()]
        scores[env, agent, checkpoint] = np.array([fas(r, return_range(env)) for r in by_period])
        if checkpoint == "final":
            drawn[env, agent] = by_period
    print("| task | agent | seeds | FAS, final | FAS, best | published | better than the best SAC-j (final) | return"
          " at 1 | at 8 | at 16 | at random |\n|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for env in dict.fromkeys(env for env, _, _ in found):
        held = {a: s for (e, a, c), s in scores.items() if (e, c) == (env, "final") and a.startswith("SAC")}
        bar = max(held.values(), key=np.mean) if held else np.array([])
        for agent in sorted(a for e, a, c in found if (e, c) == (env, "final")):
            final, best = scores[env, agent, "final"], scores.get((env, agent, "best"), np.array([np.nan]))
            shown = PUBLISHED.get((env, agent))
            better = np.mean([float(x > y) + 0.5 * float(x == y) for x in final for y in bar]) if len(bar) else np.nan
            each = list(found[env, agent, "final"].values())
            returns = [f"{np.mean([one[p] for one in each]):,.0f}" for p in ("1", "8", "16", "1-16")]
            cells = [f"{x.mean():.3f} ± {x.std():.3f}" for x in (final, best)]
            cells += [f"{shown[0]:.3f} ± {shown[1]:.3f}" if shown else "", f"{better:.2f}", *returns]
            print(f"| {env} | {agent} | {len(final)} | {' | '.join(cells)} |")
    if options.png is not None:
        (env,) = {env for env, _ in drawn}
        options.png.write_bytes(drawn_by_period(env, {agent: curve for (_, agent), curve in drawn.items()}))


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    if chosen.table is not None:
        table(chosen)
    elif chosen.env:
        run(chosen)
    else:
        raise SystemExit("--env or --table")
