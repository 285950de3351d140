"""Tune an algorithm: search with some seeds, then train what was found, and the default, with others.

    deeprl tune sac --env Pendulum-v1 --steps 10_000 --trials 32 --tuning-seeds 0-2 --test-seeds 100-109 --out DIR

What a search finds is better on its tuning seeds than on others, for it was chosen by them; so only the test counts
(Eimer et al. 2023, "Hyperparameters in Reinforcement Learning and How To Tune Them").
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.config import build, setting
from deeprl.config.runs import defaults
from deeprl.core.footprint import rehearse
from deeprl.errors import DeeprlError, InUseError
from deeprl.recipes import with_recipe
from deeprl.run.directory import EXECUTION
from deeprl.run.progress import show
from deeprl.run.trained import algorithm_module
from deeprl.tuning.published import published_space
from deeprl.tuning.spaces import read_space, require_inside, space_of
from deeprl.tuning.study import Plan, Study, StudyStoppedError, Told, best_of
from deeprl.tuning.trials import Cost, Score, Trial, groups

_Seeds = str | int | Sequence[int]
_RECORDS = {"seeds", "out", "label", "tensorboard", "max_hours", "checkpoint_minutes", "keep_checkpoints", *EXECUTION}


class Tuned(NamedTuple):
    """What a study has found.

    winner: the best trial on the tuning seeds; test, default: scores of its settings and of the default on the test
    seeds; told: all trials; importance: of the parameters; search, retest: what they cost.
    """

    folder: Path
    winner: Told
    test: Score
    default: Score
    told: list[Told]
    importance: dict[str, float]
    search: Cost
    retest: Cost

    @property
    def recipe(self) -> Path:
        """The winner as a file for `--recipe`."""
        return self.folder / "winner.toml"


def tune(
    algorithm: str,
    *,
    out: str | Path,
    space: str | Path | Mapping[str, Any] | None = None,
    storage: str = "",
    trials: int = 32,
    tuning_seeds: _Seeds = "0-2",
    test_seeds: _Seeds = "100-109",
    batch: int = 8,
    sampler: str = "tpe",
    search_seed: int = 0,
    objective: str = "mean",
    last: int = 3,
    scheduler: str = "none",
    eta: int = 3,
    rungs: int = 3,
    **settings: Any,
) -> Tuned | None:
    """Search for settings of an algorithm, and test what was found; the Python face of `deeprl tune`.

    settings: those of every trial, as `deeprl.train` takes them. space: a TOML file, its content, or None for the
    algorithm's own (`deeprl.tuning.published`). The rest is explained at `Plan` and `search`, and by
    `deeprl tune sac --help`. Writes `out/report/`, too. Raises as `search` does.
    """
    from deeprl.tuning.report import write_pages

    kind = algorithm_module(algorithm).Config
    if "seeds" in settings:
        raise DeeprlError("seeds: a search has tuning_seeds and test_seeds")
    base = build(kind, with_recipe(algorithm, settings))
    if isinstance(space, Mapping):
        chosen = space_of(space, kind, "given by hand")
    else:
        chosen = read_space(space, kind) if space else published_space(algorithm, kind)
    seeds = [setting(kind, "seeds", each) for each in (tuning_seeds, test_seeds)]
    plan = Plan(
        algorithm,
        base,
        chosen,
        trials=trials,
        tuning_seeds=seeds[0],
        test_seeds=seeds[1],
        batch=batch,
        sampler=sampler,
        seed=search_seed,
        objective=objective,
        last=last,
        scheduler=scheduler,
        eta=eta,
        rungs=rungs,
    )
    found = search(plan, out, storage)
    if found is not None:
        write_pages(found, plan)
    return found


def search(plan: Plan, out: str | Path, storage: str = "") -> Tuned | None:
    """Search, test, and write the winner as a recipe; called again, it goes on where it was.

    storage: path of an Optuna journal, or URL of a database; by default a journal in `out`. Returns None where another
    process has trials left to finish, or is at the test.

    Raises DeeprlError for what is wrong with space, settings or storage, before anything is trained, and where every
    trial failed; StudyStoppedError after `max_hours` of a run.
    """
    folder = Path(out)
    require_inside(plan.space, plan.base)
    needs = rehearse(algorithm_module(plan.algorithm).train, plan.base)
    dataclasses.replace(needs, agents=plan.batch * len(plan.tuning_seeds)).require()
    study = Study(plan, folder, storage)
    if not study.run():
        show(f"{out}: the last trials are with another process, which will test the winner")
        return None
    winner = best_of(study.told())
    if winner is None:
        raise DeeprlError(f"{out}: every trial failed: an agent of each diverged; see the runs in {out}/batches")
    try:
        found = _tested(plan, folder, study, winner)
    except InUseError as error:
        show(f"{out}: the test is left to another process ({error})")
        return None
    write_recipe(found.recipe, plan, winner)
    return found


def _tested(plan: Plan, folder: Path, study: Study, winner: Told) -> Tuned:
    """Train winner and default with the test seeds."""
    default = {name: json.loads(json.dumps(getattr(plan.base, name))) for name in winner.settings}
    both = [Trial(0, winner.settings), Trial(1, default)]
    here = groups(plan.algorithm, plan.base, both, plan.test_seeds, folder / "test" / str(winner.number))
    show(f"winner, trial {winner.number}, and default with {len(plan.test_seeds)} test seeds")
    for group in here:
        if not group.train(plan.base.steps):
            raise StudyStoppedError(f"{group.planned.directory} was stopped; the same command goes on")
    scores = {number: score for group in here for number, score in group.scores(plan.last, plan.base.steps).items()}
    retest = sum((group.cost() for group in here), Cost())
    test, usual = scores[0], scores[1]
    return Tuned(folder, winner, test, usual, study.told(), study.importance(), study.cost(), retest)


def write_recipe(path: Path, plan: Plan, winner: Told) -> None:
    """The settings of a winner that are not the algorithm's defaults, as a file for `--recipe`."""
    usual = defaults(type(plan.base))
    base = {k: json.loads(json.dumps(getattr(plan.base, k))) for k in usual if k not in _RECORDS}
    named = {"env", "dataset", *winner.settings}
    chosen = {k: v for k, v in (base | dict(winner.settings)).items() if v != usual[k] or (k in named and v)}
    source = f"winner of {plan.trials} trials, tuning seeds {list(plan.tuning_seeds)}, {plan.base.steps} steps each"
    lines = [f"algorithm = {_toml(plan.algorithm)}", f"source = {_toml(source)}", "", "[settings]"]
    lines += [f"{name} = {_toml(value)}" for name, value in chosen.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
