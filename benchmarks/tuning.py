"""What a search costs and what its winner is worth: as populations, one agent at a time, and as others do it.

    python benchmarks/tuning.py --task sac-pendulum --search tpe      # and winner and default on test seeds
    python benchmarks/tuning.py --task sac-pendulum --alone eager     # its first trials, agent by agent
    python benchmarks/tuning.py --task sac-pendulum --alone compiled
    python benchmarks/tuning.py --task sac-pendulum --peer            # Optuna and stable-baselines3

A row of `tuning.csv` is of one task and way: seconds of the whole search (of `timed` trials, measured, times the number
of trials; the runs' own clocks, which count start, compiling and evaluations), what the winner got on the tuning seeds
and on the test seeds, and the default there. Alone: the same settings as the first trials of the search, each seed a
run of one agent. The peer: one seed a trial, three times as many trials of the same space, so that the steps are the
same; its objective is the last of its evaluations, its pruner the median, as in rl-baselines3-zoo; two processes of one
thread each on one journal, and the same test seeds (`benchmarks/tuning_peer.py`). Every command goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from speed_rows import save, versions_told

from deeprl.config import build
from deeprl.reporting.stats import mean_interval
from deeprl.run import provenance
from deeprl.run.records import read_status
from deeprl.run.trained import algorithm_module
from deeprl.tuning.published import published_space
from deeprl.tuning.report import drop, gain, write_pages
from deeprl.tuning.study import Plan, Study
from deeprl.tuning.trials import Score, Trial, groups
from deeprl.tuning.tune import search

COLUMNS = (
    *(
        "task",
        "way",
        "search_seed",
        "trials",
        "seeds",
        "steps",
        "timed",
        "seconds",
        "tuning",
        "tuning_low",
        "tuning_high",
    ),
    *("test", "test_low", "test_high", "default", "default_low", "default_high", "gain", "gain_low", "gain_high"),
    *("drop", "drop_low", "drop_high", "settings", "versions", "device", "commit", "command"),
)
SMALL = {"hidden": (64, 64), "batch_size": 64, "eval_every": 1_000, "eval_episodes": 5, "tensorboard": False}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac-pendulum": ("sac", SMALL | {"env": "Pendulum-v1", "steps": 10_000, "learning_starts": 1_000}),
    "dqn-cartpole": (
        "dqn",
        SMALL
        | {"env": "CartPole-v1", "env_backend": "device", "steps": 10_000, "learning_starts": 500, "utd": 1.0}
        | {"train_every": 1, "target_every": 100, "epsilon_steps": 2_000.0, "lr": 1e-3},
    ),
}


@dataclass(frozen=True)
class Options:
    task: Literal["sac-pendulum", "dqn-cartpole"] = "sac-pendulum"
    search: str = ""
    """Search as populations, with this sampler."""
    halving: bool = False
    """With successive halving."""
    alone: Literal["", "eager", "compiled"] = ""
    """Train the first trials of the search `tpe` one agent at a time."""
    timed: int = 4
    """How many of them."""
    peer: bool = False
    """Optuna and stable-baselines3, in `.peers/sb3`."""
    trials: int = 32
    tuning_seeds: tuple[int, ...] = (0, 1, 2)
    test_seeds: tuple[int, ...] = tuple(range(100, 110))
    search_seed: int = 0
    runs: Path = Path("runs/tuning")
    csv: Path = Path("benchmarks/results/tuning.csv")


def main(options: Options) -> None:
    if options.search:
        searched(options)
    if options.alone:
        one_by_one(options)
    if options.peer:
        by_the_peer(options)


def plan_of(options: Options, sampler: str) -> Plan:
    algorithm, settings = TASKS[options.task]
    kind = algorithm_module(algorithm).Config
    plan = Plan(algorithm, build(kind, settings), published_space(algorithm, kind))
    scheduler = "halving" if options.halving else "none"
    shared: dict[str, Any] = {
        "trials": options.trials,
        "tuning_seeds": options.tuning_seeds,
        "test_seeds": options.test_seeds,
    }
    return dataclasses.replace(plan, **shared, sampler=sampler, scheduler=scheduler, seed=options.search_seed)


def folder_of(options: Options, way: str) -> Path:
    return options.runs / f"{options.task}-{way}-{options.search_seed}"


def searched(options: Options) -> None:
    way = options.search + (" halving" if options.halving else "")
    plan, folder = plan_of(options, options.search), folder_of(options, way.replace(" ", "-"))
    found = search(plan, folder)
    if found is None:
        return
    print(write_pages(found, plan))
    row = {
        "way": f"population, {way}",
        "timed": plan.trials,
        "seconds": round(found.search.wall_s, 1),
        "settings": json.dumps(found.winner.settings),
    }
    row |= with_interval("tuning", found.winner.seeds) | with_interval("test", found.test.seeds)
    row |= with_interval("default", found.default.seeds)
    for name, difference in (("gain", gain(found)), ("drop", drop(found))):
        row |= {name: difference.value, f"{name}_low": difference.low, f"{name}_high": difference.high}
    write(options, row)


def one_by_one(options: Options) -> None:
    """The first trials of the search, an agent at a time; the seconds of all of them by the number of trials."""
    plan = plan_of(options, "tpe")
    study = Study(plan, folder_of(options, "tpe"))  # whose search is through
    first = sorted(study.told(), key=lambda t: t.number)[: options.timed]
    base = dataclasses.replace(plan.base, compile="off" if options.alone == "eager" else "on")
    seconds, scores = 0.0, []
    for trial in first:
        values: list[float | None] = []
        for seed in plan.tuning_seeds:
            place = folder_of(options, f"alone-{options.alone}") / f"{trial.number}-{seed}"
            (group,) = groups(plan.algorithm, base, [Trial(trial.number, trial.settings)], [seed], place)
            group.train(base.steps)
            seconds += read_status(group.planned.directory)["wall_s"]
            values += group.scores(plan.last, base.steps)[trial.number].seeds
        scores.append(Score(tuple(values)))
        print(f"trial {trial.number}: alone {values}, in the population {trial.seeds}")
    best = max(range(len(first)), key=lambda i: scores[i].value("mean") or -np.inf)
    row = {
        "way": f"alone, {options.alone}",
        "timed": len(first),
        "seconds": round(seconds / len(first) * plan.trials, 1),
        "settings": json.dumps(first[best].settings),
    }
    write(options, row | with_interval("tuning", scores[best].seeds))


def by_the_peer(options: Options) -> None:
    """Two processes search, then they test; the seconds of the search are those that the clock on the wall showed."""
    algorithm, settings = TASKS[options.task]
    space = published_space(algorithm, algorithm_module(algorithm).Config)
    folder = folder_of(options, "peer").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "algorithm": algorithm,
        "settings": settings,
        "space": space.plain(),
        "trials": options.trials * len(options.tuning_seeds),
        "test_seeds": options.test_seeds,
        "default": {k: getattr(plan_of(options, "tpe").base, p.settings[0]) for k, p in space.parameters.items()},
    }
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    clock = folder / "seconds.json"
    seconds = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {"search": 0.0, "test": 0.0}
    python = str(Path(".peers/sb3/bin/python").absolute())
    for part in ("search", "test"):
        begun = time.monotonic()
        workers = [
            subprocess.Popen([python, str(Path(__file__).with_name("tuning_peer.py")), part, str(folder), str(i)])
            for i in range(2)
        ]
        codes = [worker.wait() for worker in workers]
        seconds[part] += time.monotonic() - begun
        clock.write_text(json.dumps(seconds), encoding="utf-8")
        if any(codes):
            sys.exit("the peer was stopped; the same command goes on")
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    row = {"way": "peer, tpe and median pruner", "timed": asked["trials"], "seconds": round(seconds["search"], 1)}
    row |= {"settings": json.dumps(found["winner"]), "trials": asked["trials"], "seeds": 1, "tuning": found["tuning"]}
    tested = {name: Score(tuple(found[name])) for name in ("test", "default")}
    write(
        options, row | with_interval("test", tested["test"].seeds) | with_interval("default", tested["default"].seeds)
    )


def with_interval(name: str, values: Any) -> dict[str, float]:
    whole = [value for value in values if value is not None]
    low, high = mean_interval(whole)
    return {name: float(np.mean(whole)), f"{name}_low": low, f"{name}_high": high}


def write(options: Options, row: dict[str, Any]) -> None:
    about = provenance.provenance_of("cpu", 2)
    common = {
        "task": options.task,
        "search_seed": options.search_seed,
        "trials": options.trials,
        "seeds": len(options.tuning_seeds),
        "steps": TASKS[options.task][1]["steps"],
        "versions": versions_told(),
        "device": about["device"],
        "commit": about["commit"],
        "command": about["command"],
    }
    whole = dict.fromkeys(COLUMNS, "") | {k: str(v) for k, v in (common | row).items()}
    save(options.csv, [whole], COLUMNS, ("task", "way", "search_seed"))
    print(row)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
