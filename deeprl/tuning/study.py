"""A study: settings are drawn by Optuna, a batch at a time, trained with all tuning seeds, and what came of it told.

`DIR` holds `study.json` (what is searched, and how), `journal.log` (Optuna's, the default storage), `batches/N/`
(`batch.json`: which trials, and their runs) and `test/` (winner and default, on seeds that the search has not seen).
Every batch is drawn by a new sampler, whose seed follows from that of the study and from what has been drawn before: a
study that is killed and called again draws what it would have drawn. Processes that share a directory or a storage draw
their own batches, and take over those that another one has left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.config import RunConfig, identity
from deeprl.errors import DeeprlError, InUseError, first_line
from deeprl.run.directory import EXECUTION
from deeprl.run.lock import Lock
from deeprl.run.progress import show
from deeprl.run.records import write_json
from deeprl.tuning.batches import Batches, TrialBatch
from deeprl.tuning.drawing import SAMPLERS, distribution_of, opened_study, sampler_of
from deeprl.tuning.halving import cohort, promoted, rungs_of
from deeprl.tuning.spaces import Space
from deeprl.tuning.trials import OBJECTIVES, Cost

_LIVE = ("RUNNING", "COMPLETE", "PRUNED", "FAIL")
_LOST = timedelta(minutes=10)  # after which a trial that nobody claims was drawn by a process that has ended


@dataclass(frozen=True)
class Plan:
    """What is searched, and how.

    base: settings of every trial; trials: how many; batch: trials in a population; last: evaluations whose mean is the
    value of a seed; objective: `mean` or `iqm` over the tuning seeds; sampler: of `drawing`. scheduler: `none`, or
    `halving` with so many rungs, at each of which one in `eta` goes on (`tuning.halving`).
    """

    algorithm: str
    base: RunConfig
    space: Space
    trials: int = 32
    tuning_seeds: tuple[int, ...] = (0, 1, 2)
    test_seeds: tuple[int, ...] = tuple(range(100, 110))
    batch: int = 8
    sampler: str = "tpe"
    seed: int = 0
    objective: str = "mean"
    last: int = 3
    scheduler: str = "none"
    eta: int = 3
    rungs: int = 3

    def __post_init__(self) -> None:
        require_apart(self.tuning_seeds, self.test_seeds)
        for name in ("trials", "batch", "last"):
            if getattr(self, name) < 1:
                raise DeeprlError(f"{name}: must be positive, not {getattr(self, name)}")
        for name, known in (("sampler", SAMPLERS), ("objective", OBJECTIVES), ("scheduler", ("none", "halving"))):
            if getattr(self, name) not in known:
                raise DeeprlError(f"{name}: expected {', '.join(known)}, not {getattr(self, name)!r}")
        if self.eta < 2 or self.rungs < 2:
            raise DeeprlError(f"eta and rungs: 2 or more each, not {self.eta} and {self.rungs}")
        if self.base.eval_episodes < 1:
            raise DeeprlError("eval_episodes: 0 never evaluates; a search needs returns")
        if self.last > (count := evaluations(self.base)):
            raise DeeprlError(f"last: the mean of {self.last} evaluations, and a run has {count}; see eval_every")
        _ = self.until  # whether there are such rungs

    @property
    def name(self) -> str:
        """Of Optuna's study: the same for all who search the same."""
        same = {k: v for k, v in self.plain().items() if k != "trials"}
        return f"{self.algorithm}-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:12]}"

    @property
    def until(self) -> tuple[int, ...]:
        """The steps of each rung."""
        if self.scheduler == "none":
            return (self.base.steps,)
        return rungs_of(self.base.steps, self.base.eval_every, self.eta, self.rungs)

    def plain(self) -> dict[str, Any]:
        """As it stands in `study.json`."""
        other = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("base", "space")}
        settings = {k: v for k, v in identity(self.base).items() if k not in ("seeds", *EXECUTION)}
        return json.loads(json.dumps(other | {"settings": settings, "space": self.space.plain()}))


def require_apart(tuning_seeds: Sequence[int], test_seeds: Sequence[int]) -> None:
    """Raise DeeprlError for seeds that stand there twice, or not at all, and for one that is to tune and to test."""
    for name, seeds in (("tuning_seeds", tuning_seeds), ("test_seeds", test_seeds)):
        if not seeds or len(set(seeds)) < len(seeds):
            raise DeeprlError(f"{name}: one of each is needed, not {list(seeds)}")
    if both := sorted(set(tuning_seeds) & set(test_seeds)):
        raise DeeprlError(f"test_seeds: {both[0]} is a tuning seed, too; a test needs seeds that nobody has looked at")


def evaluations(config: RunConfig) -> int:
    """How many evaluations a run has."""
    return -(-config.steps // config.eval_every) if config.eval_every else 1


class Told(NamedTuple):
    """A trial that has come to its end. state: complete, pruned, or failed, as an agent diverged; value: None of the
    latter; seeds: the value of each tuning seed; steps: how far it has come."""

    number: int
    settings: Mapping[str, Any]
    state: str
    value: float | None
    seeds: tuple[float | None, ...]
    steps: int


class StudyStoppedError(Exception):
    """A run of a study has stopped before its end, with a checkpoint, after `max_hours`."""


class Study:
    """A search in a directory, to be gone on with by whoever calls `run`."""

    def __init__(self, plan: Plan, out: Path, storage: str = ""):
        self.plan, self.out = plan, out
        _claim(plan, out)
        # Processes with a directory of their own must draw apart; those that share one take turns.
        place = f"{platform.node()}:{os.path.realpath(out)}"
        self._home = hashlib.sha256(place.encode()).hexdigest()[:12] if storage else "here"
        self._study = opened_study(plan.name, storage or str(out / "journal.log"), plan.space.point(plan.base))
        self._known = {name: distribution_of(p) for name, p in plan.space.parameters.items()}
        self._batches = Batches(out, plan.algorithm, plan.base, plan.space, plan.tuning_seeds)

    def run(self) -> bool:
        """Train what is left. Returns whether all trials are through; another process may be at some of them.

        Raises StudyStoppedError where `max_hours` has stopped a run.
        """
        while True:
            with contextlib.ExitStack() as held:
                batch = self._next(held)
                if batch is None:
                    return not self._in_state("RUNNING")
                self._train(batch)

    def told(self) -> list[Told]:
        """The trials that have come to their end, by number."""
        names, found = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}, []
        for trial in self._in_state(*names):
            seeds, steps = self._study.user_attrs[f"trial {trial.number}"]
            state, settings = names[trial.state.name], self._settings(trial.params)
            found.append(Told(trial.number, settings, state, trial.value, tuple(seeds), steps))
        return found

    def importance(self) -> dict[str, float]:
        """The share of each parameter in the differences between trials (PED-ANOVA); empty where it cannot be told."""
        import optuna

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few trials
                return dict(optuna.importance.get_param_importances(self._study))
        except (ValueError, RuntimeError):  # too few trials, or all alike
            return {}

    def cost(self) -> Cost:
        """Of the search, as far as its runs lie in this directory."""
        return sum((g.cost() for batch in self._batches.all() for g in self._batches.groups(batch)), Cost())

    # --- one batch ---

    def _next(self, held: contextlib.ExitStack) -> TrialBatch | None:
        """A batch to work at, which stays ours until `held` is closed: one that was left, of trials that go on, new."""
        with self._drawing():
            self._settle()
            for batch in self._batches.all():
                if batch.scores() is None and batch.take(held):
                    return batch
            found = self._going_on() or self._new()
            if found is not None:
                found.take(held)
            return found

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Within: no other process looks for a batch in this directory."""
        lock = Lock(self.out, "study.lock")
        while True:
            with contextlib.suppress(InUseError):
                lock.acquire()
                break
            time.sleep(0.1)
        try:
            yield
        finally:
            lock.release()

    def _settle(self) -> None:
        """Tell Optuna what has come of the trials of this directory, as far as it has not heard it."""
        import optuna

        states, waiting = optuna.trial.TrialState, {t.number: t for t in self._in_state("RUNNING")}
        for batch in self._batches.all():
            until = self.plan.until[batch.rung]
            for number, score in (batch.scores() or {}).items():
                if number in waiting and until not in waiting[number].intermediate_values:
                    value = score.value(self.plan.objective)
                    self._study.set_user_attr(f"trial {number}", [list(score.seeds), until])
                    if value is None:
                        self._study.tell(number, state=states.FAIL)
                    elif until == self.plan.base.steps:
                        self._study.tell(number, value)
                    else:
                        optuna.trial.Trial(self._study, waiting[number]._trial_id).report(value, until)
            for number in filter(waiting.__contains__, batch.pruned):
                self._study.tell(number, state=states.PRUNED)

    def _going_on(self) -> TrialBatch | None:
        """The next batch of trials that go on to a higher rung, if they are due."""
        batches, plan = self._batches.all(), self.plan
        more = self._live() < plan.trials
        due = None
        for rung in range(len(plan.until) - 1):
            here = [batch for batch in batches if batch.rung == rung]
            decided = {n for b in batches if b.rung == rung + 1 for n in (*b.pruned, *(t.number for t in b.trials))}
            values = {n: s.value(plan.objective) for b in here for n, s in (b.scores() or {}).items()}
            more = more or any(batch.scores() is None for batch in here)
            waiting = [n for n, value in values.items() if value is not None and n not in decided]
            ranked, places = cohort(waiting, plan.batch, plan.eta, more)
            if ranked:
                due = rung + 1, *promoted({n: values[n] for n in ranked}, places)
            more = more or bool(waiting)
        if due is None:
            return None
        points = self._batches.points()
        return self._batches.add({number: points[number] for number in due[1]}, due[0], due[2])

    def _new(self) -> TrialBatch | None:
        """A batch of new trials, while there are any: first those that a process drew here before it was killed."""
        known = self._batches.points()
        found = [t for t in self._in_state("RUNNING") if t.number not in known and self._ours(t)]
        live = self._live()
        self._study.sampler = sampler_of(self.plan.sampler, self.plan.seed, live - len(found), self._home)
        while len(found) < self.plan.batch and live < self.plan.trials:
            trial = self._study.ask(self._known)
            trial.set_user_attr("home", self._home)
            numbers = [t.number for t in self._in_state(*_LIVE)]
            live = len(numbers)
            if numbers.index(trial.number) >= self.plan.trials:  # another machine was faster
                self._discard(trial.number)
            else:
                found.append(trial)
        return self._batches.add({t.number: t.params for t in found}) if found else None

    def _ours(self, trial: Any) -> bool:
        """Whether a trial without a batch was drawn here; what nobody drew, as its process was killed, is discarded."""
        whole = trial.params.keys() == self._known.keys()
        if whole and "home" in trial.user_attrs:
            return bool(trial.user_attrs["home"] == self._home)
        if self._home == "here" or datetime.now() - trial.datetime_start > _LOST:
            self._discard(trial.number)
        return False

    def _discard(self, number: int) -> None:
        import optuna

        self._study.set_user_attr(f"discarded {number}", True)
        self._study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _live(self) -> int:
        return len(self._in_state(*_LIVE))

    def _in_state(self, *names: str) -> list[Any]:
        """Trials in one of these states, by number, without those that were discarded."""
        attributes = self._study.user_attrs
        found = [t for t in self._study.get_trials(deepcopy=False) if t.state.name in names]
        return [t for t in found if f"discarded {t.number}" not in attributes]

    def _settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return self.plan.space.settings(point, self.plan.base.steps)

    def _train(self, batch: TrialBatch) -> None:
        plan, until = self.plan, self.plan.until[batch.rung]
        here = self._batches.begin(batch)
        agents = sum(len(group.planned.config.seeds) for group in here)
        show(f"{batch.name} of {plan.trials}: {agents} agents, {until:,} steps")
        for group in here:
            if not group.train(until):
                raise StudyStoppedError(f"{group.planned.directory} was stopped; the same command goes on")
        batch.finish({number: score for group in here for number, score in group.scores(plan.last, until).items()})
        with self._drawing():
            self._settle()
        best = best_of(self.told())
        show(f"best so far: {'none' if best is None else f'trial {best.number}, {best.value:,.1f}'}")


def best_of(told: Sequence[Told]) -> Told | None:
    """The trial with the largest value, the first of equal ones; None where all failed."""
    whole = [t for t in told if t.state == "complete" and t.value is not None]
    return max(whole, key=lambda t: (t.value, -t.number)) if whole else None


def _claim(plan: Plan, out: Path) -> None:
    """Begin a study in a directory, or find it there. Raises DeeprlError for one that searches something else."""
    file = out / "study.json"
    if not file.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DeeprlError(f"{out} is not empty and holds no study; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, plan.plain())
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeeprlError(f"{file}: {first_line(error)}") from error
    _require_same(plan, stored, str(out))


def _require_same(plan: Plan, stored: Mapping[str, Any], where: str) -> None:
    here = plan.plain()
    if stored.get("algorithm") != plan.algorithm:
        raise DeeprlError(f"{where} holds a study of {stored.get('algorithm')}, not of {plan.algorithm}")
    differ = [(k, here[k], stored.get(k)) for k in here if here[k] != stored.get(k) and k != "trials"]
    if differ and differ[0][0] in ("settings", "space"):
        name, now, before = differ[0]
        inner = sorted(k for k in {*now, *(before or {})} if now.get(k) != (before or {}).get(k))
        differ[0] = f"{name}.{inner[0]}", now.get(inner[0]), (before or {}).get(inner[0])
    if differ:
        name, now, before = differ[0]
        raise DeeprlError(f"{where} holds another study ({name} {before!r} there, {now!r} here); choose another --out")
