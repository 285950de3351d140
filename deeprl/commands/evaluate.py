"""`deeprl evaluate`: many episodes of every trained agent of a run, without exploration."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeprl.core.process import torch_defaults
from deeprl.data.scores import normalized_score
from deeprl.envs.make import EnvFactory
from deeprl.envs.vector import Episode
from deeprl.errors import DeeprlError
from deeprl.reporting.frequency import PERIODS, ReturnRange, drawn_by_period, fas, return_range
from deeprl.reporting.read import PERIODS_FILE
from deeprl.run.directory import evaluated_in
from deeprl.run.evaluate import Evaluator, GreedyPolicy, PopulationPolicy
from deeprl.run.periods import Period, at_period, without_repeats
from deeprl.run.progress import Progress, show
from deeprl.run.records import read_about
from deeprl.run.targets import check_picture, check_table
from deeprl.run.trained import OwnNet, Population, load_population

_COLUMNS = ("member", "seed", "episode", "return", "length")
_PERIOD_COLUMNS = ("step", "period", *_COLUMNS)
_COUNTER = 2**32 - 1  # starts that no evaluation during training has used: those count environment steps
_RANDOM = Period(1, 16)  # arXiv 2410.08979


def run(options: argparse.Namespace) -> int:
    """The command."""
    asked = parse_periods(options.decision_periods) if options.decision_periods is not None else []
    episodes = options.episodes if options.episodes is not None else (10 if asked else 100)
    if episodes < 1:
        raise DeeprlError(f"--episodes: must be positive, not {episodes}")
    if asked:
        measure = ReturnRange(*options.return_range) if options.return_range else None
        if measure is not None and not (measure.best > 0 and math.isfinite(sum(measure))):
            raise DeeprlError(f"--return-range: BEST must be positive, and both finite, not {measure.best:g}")
        assess_periods(options.run_dir, asked, episodes, options.csv, options.png, options.step, measure=measure)
        return 0
    for name in ("return_range", "png"):
        if getattr(options, name) is not None:
            raise DeeprlError(f"--{name.replace('_', '-')}: needs --decision-periods")
    assess(options.run_dir, episodes, options.csv, options.step)
    return 0


def parse_periods(text: str) -> list[Period]:
    """Periods such as `1,4,8`, `fas`, `random` or `fas,random`, each once. Raises DeeprlError for anything else."""
    found: list[Period] = []
    for word in text.split(","):
        if word not in ("fas", "random") and not (word.isdecimal() and int(word) > 0):
            raise DeeprlError(f"--decision-periods: {word!r} is no number of steps, nor fas or random")
        found += [Period(p, p) for p in PERIODS] if word == "fas" else []
        found += [_RANDOM] if word == "random" else []
        found += [Period(int(word), int(word))] if word.isdecimal() else []
    return list(dict.fromkeys(found))


@torch_defaults()
def assess(
    run_dir: str | Path,
    episodes: int,
    table: str | None = None,
    step: int | None = None,
    net: OwnNet = None,
) -> np.ndarray:
    """Print each agent's mean return over new episodes and return them all, [S, episodes].

    table: a CSV file to write every episode to (member, seed, episode, return, length). step: of a snapshot, instead
    of the newest checkpoint. net: the run's own networks, if they have no name.

    Raises DeeprlError where `table` exists with other columns, or belongs to the records of a run.
    """
    if table:
        check_table(table, _COLUMNS)
    population = load_population(run_dir, net, step=step)
    path = _place(table)
    seeds = [m["seed"] for m in population.members]
    make = evaluated_in(read_about(Path(run_dir)))
    policy = GreedyPolicy(population.act(), population.state, begin=population.begin)
    (played,) = _play(make, seeds, episodes, [policy])
    returns = np.array([e.ret for e in played]).reshape(len(seeds), episodes)
    for about, own in zip(population.members, returns, strict=True):
        settings = "".join(f" {k}={v}" for k, v in about["settings"].items())
        error = own.std(ddof=1) / math.sqrt(episodes) if episodes > 1 else math.nan
        found = population.spec.score_range
        score = f", score {normalized_score(own.mean(), found):.1f}" if found else ""
        text = f"{own.mean():,.2f} (standard error {error:,.2f}, {episodes} episodes{score})"
        print(f"seed {about['seed']}{settings}: {text}")
    if path:
        _write(path, _COLUMNS, ((e.member, seeds[e.member], e.env, e.ret, e.length) for e in played))
    return returns


class AtPeriod(NamedTuple):
    """An episode at a decision period: a row of its table. step: of the run."""

    step: int
    period: str
    member: int
    seed: int
    episode: int
    ret: float
    length: int


@torch_defaults()
def assess_periods(
    run_dir: str | Path,
    periods: Sequence[Period],
    episodes: int,
    table: str | None = None,
    png: str | None = None,
    step: int | None = None,
    net: OwnNet = None,
    measure: ReturnRange | None = None,
) -> dict[Period, np.ndarray]:
    """Print returns at each decision period, and where all of `PERIODS` are among them each agent's FAS.

    Returns those of all episodes by period, [S, episodes], which begin alike at each. table: a CSV file for every
    episode (step, period, member, seed, episode, return, length; a period that is drawn as `1 to 16`), by default in
    the directory of the run, where `deeprl report` finds it and other periods of the same step are kept, or none with
    `step`. png: of returns by period, default RUN_DIR/decision_periods.png, of a snapshot with `_step_K`. measure: the
    range of the score, default the published one.

    Raises DeeprlError for agents with discrete actions, for an environment without a published range where one is
    needed, and where `table` exists with other columns, or it or `png` belongs to the records of a run.
    """
    about, own = read_about(Path(run_dir)), Path(run_dir) / PERIODS_FILE
    if table or (own.exists() and step is None):
        check_table(table or own, _PERIOD_COLUMNS)
    moment = "" if step is None else f"_step_{step}"
    drawn_to = Path(png or Path(run_dir) / f"decision_periods{moment}.png").absolute()
    check_picture(drawn_to)
    make = without_repeats(evaluated_in(about))
    scored = set(PERIODS) <= {p.longest for p in periods if p.steady}
    measure = return_range(make.env) if scored and measure is None else measure
    population = load_population(run_dir, net, step=step)
    path = _place(str(own) if table is None and step is None else table)
    played = play_periods(population, make, periods, episodes)
    shape = len(population.members), episodes
    found = {p: np.array([e.ret for e in played if e.period == str(p)]).reshape(shape) for p in periods}
    means = [{p.longest: float(r[i].mean()) for p, r in found.items() if p.steady} for i in range(shape[0])]
    _tell(found, [fas(one, measure) for one in means] if scored and measure is not None else [])
    if path:
        kept = _other_periods(path, played) if table is None else []
        _write(path, _PERIOD_COLUMNS, [*kept, *played])
    if any(means):
        drawn_to.parent.mkdir(parents=True, exist_ok=True)
        drawn_to.write_bytes(drawn_by_period(make.env, {about["algorithm"]: means}))
        print(drawn_to)
    return found


def _tell(found: Mapping[Period, np.ndarray], scores: Sequence[float]) -> None:
    """Print returns by period, and the agents' scores, if they have some."""
    print("decision period  mean return over agents, and of each")
    for period, returns in found.items():
        print(f"{period!s:>15}  {returns.mean():,.2f}:  {'  '.join(f'{r:,.2f}' for r in returns.mean(1))}")
    if scores:
        each = "  ".join(f"{score:.3f}" for score in scores)
        print(f"FAS {np.mean(scores):.3f} (standard deviation {np.std(scores):.3f}):  {each}")


def _other_periods(path: Path, played: Sequence[AtPeriod]) -> list[list[str]]:
    """The rows of a table of the same step, at other periods than those that were played."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    step, known = str(played[0].step), {e.period for e in played}
    return [[row[c] for c in _PERIOD_COLUMNS] for row in rows if row["step"] == step and row["period"] not in known]


def play_periods(population: Population, make: EnvFactory, periods: Sequence[Period], episodes: int) -> list[AtPeriod]:
    """So many episodes of each agent at each decision period, which begin alike."""
    seeds, policies = [m["seed"] for m in population.members], []
    for period in periods:
        act, begin = at_period(population, period)
        policies.append(GreedyPolicy(act, population.state, begin=begin))
    return [
        AtPeriod(population.step, str(period), e.member, seeds[e.member], e.env, e.ret, e.length)
        for period, played in zip(periods, _play(make, seeds, episodes, policies), strict=True)
        for e in played
    ]


def _play(
    make: EnvFactory, seeds: Sequence[int], episodes: int, policies: Sequence[PopulationPolicy]
) -> list[list[Episode]]:
    """So many episodes of each agent by each policy of the population, which begin alike."""
    evaluator, found, count = Evaluator(make, seeds, episodes), list[list[Episode]](), episodes * len(seeds)
    progress = Progress(f"evaluating in {make.env}", count * len(policies))
    for policy in policies:
        found.append(evaluator(policy, _COUNTER, lambda ended, step: progress.update(count * len(found) + ended)))
    progress.close()
    if evaluator.cut:
        show(evaluator.cut)
    evaluator.close()
    return found


def _place(table: str | None) -> Path | None:
    """Where a table will be, also after an environment has changed the working directory; its folder is made."""
    if table is None:
        return None
    path = Path(table).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
