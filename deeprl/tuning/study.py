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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.config import RunConfig, identity
from deeprl.errors import DeeprlError, InUseError, first_line
from deeprl.run.directory import EXECUTION, write_json
from deeprl.run.lock import Lock
from deeprl.run.progress import show
from deeprl.tuning.spaces import Choice, Space
from deeprl.tuning.trials import Score, Trial, groups

SAMPLERS = ("random", "tpe", "gp", "qmc", "cmaes", "nsga2")
_LOST = timedelta(minutes=10)  # after which a trial that nobody claims was drawn by a process that has ended


@dataclass(frozen=True)
class Plan:
    """What is searched, and how.

    base: settings of every trial; trials: how many; batch: trials in a population; last: evaluations whose mean is the
    value of a seed; objective: `mean` or `iqm` over the tuning seeds; sampler: one of `SAMPLERS`.
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

    def __post_init__(self) -> None:
        if both := sorted(set(self.tuning_seeds) & set(self.test_seeds)):
            raise DeeprlError(
                f"test_seeds: {both[0]} is a tuning seed, too; a test needs seeds that nobody has looked at"
            )
        for name in ("trials", "batch", "last"):
            if getattr(self, name) < 1:
                raise DeeprlError(f"{name}: must be positive, not {getattr(self, name)}")
        for name in ("tuning_seeds", "test_seeds"):
            seeds = getattr(self, name)
            if not seeds or len(set(seeds)) < len(seeds):
                raise DeeprlError(f"{name}: one of each is needed, not {list(seeds)}")
        if self.base.eval_episodes < 1:
            raise DeeprlError("eval_episodes: 0 never evaluates; a search needs returns")
        if self.last > (count := evaluations(self.base)):
            raise DeeprlError(f"last: the mean of {self.last} evaluations, and a run has {count}; see eval_every")

    def plain(self) -> dict[str, Any]:
        """As it stands in `study.json`."""
        other = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("base", "space")}
        settings = {k: v for k, v in identity(self.base).items() if k not in ("seeds", *EXECUTION)}
        return json.loads(json.dumps(other | {"settings": settings, "space": self.space.plain()}))


def evaluations(config: RunConfig) -> int:
    """How many evaluations a run has."""
    return -(-config.steps // config.eval_every) if config.eval_every else 1


class Told(NamedTuple):
    """A trial that has come to its end. value: None where an agent diverged; seeds: the value of each tuning seed."""

    number: int
    settings: Mapping[str, Any]
    value: float | None
    seeds: tuple[float | None, ...]


class StudyStopped(KeyboardInterrupt):
    """A run of a study has stopped before its end, with a checkpoint: a signal, or `max_hours`."""


class Study:
    """A search in a directory, to be gone on with by whoever calls `run`."""

    def __init__(self, plan: Plan, out: Path, storage: str = ""):
        self.plan, self.out = plan, out
        _claim(plan, out)
        # Processes with a directory of their own must draw apart; those that share one take turns.
        place = f"{platform.node()}:{os.path.realpath(out)}"
        self._home = hashlib.sha256(place.encode()).hexdigest()[:12] if storage else "here"
        self._study = _opened(plan, out, storage)
        self._known = {name: _distribution(p) for name, p in plan.space.parameters.items()}

    def run(self) -> bool:
        """Train what is left. Returns whether all trials are through; another process may be at some of them.

        Raises StudyStopped where a signal or `max_hours` has stopped a run.
        """
        while True:
            with contextlib.ExitStack() as held:
                folder = self._next(held)
                if folder is None:
                    return not self._in_state("RUNNING")
                self._train(folder)

    def told(self) -> list[Told]:
        """The trials that have come to their end, by number."""
        seeds = self._study.user_attrs
        return [
            Told(t.number, self._settings(t.params), t.value, tuple(seeds[f"seeds {t.number}"]))
            for t in self._in_state("COMPLETE", "FAIL")
            if f"seeds {t.number}" in seeds
        ]

    def importance(self) -> dict[str, float]:
        """The share of each parameter in the differences between trials (PED-ANOVA); empty where it cannot be told."""
        import optuna

        try:
            return dict(optuna.importance.get_param_importances(self._study))
        except (ValueError, RuntimeError):  # too few trials, or all alike
            return {}

    # --- one batch ---

    def _next(self, held: contextlib.ExitStack) -> Path | None:
        """A batch to work at, which stays ours until `held` is closed: one that was left, or a new one."""
        with self._drawing():
            waiting = {t.number for t in self._in_state("RUNNING")}
            for folder in sorted(self.out.glob("batches/*/batch.json")):
                if waiting & {t.number for t in self._trials(folder.parent)} and _taken(folder.parent, held):
                    return folder.parent
            drawn = self._drawn()
            if not drawn:
                return None
            folder = self.out / "batches" / f"{drawn[0].number:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            _taken(folder, held)
            write_json(folder / "batch.json", {"trials": [{"number": t.number, "point": t.params} for t in drawn]})
            return folder

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

    def _drawn(self) -> list[Any]:
        """Trials for a new batch: those that a process of this directory drew before it was killed, then new ones."""
        known = {t.number for folder in self.out.glob("batches/*") for t in self._trials(folder)}
        found = [t for t in self._in_state("RUNNING") if t.number not in known and self._ours(t)]
        live = len(self._in_state("RUNNING", "COMPLETE", "FAIL"))
        self._study.sampler = _sampler(self.plan, live - len(found), self._home)
        while len(found) < self.plan.batch and live < self.plan.trials:
            trial = self._study.ask(self._known)
            trial.set_user_attr("home", self._home)
            numbers = [t.number for t in self._in_state("RUNNING", "COMPLETE", "FAIL")]
            if numbers.index(trial.number) >= self.plan.trials:  # another machine was faster
                self._discard(trial.number)
            else:
                found.append(trial)
            live = len(numbers)
        return found

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

    def _in_state(self, *names: str) -> list[Any]:
        """Trials in one of these states, by number, without those that were discarded."""
        attributes = self._study.user_attrs
        found = [t for t in self._study.get_trials(deepcopy=False) if t.state.name in names]
        return [t for t in found if f"discarded {t.number}" not in attributes]

    def _trials(self, folder: Path) -> list[Trial]:
        """Of a batch; none of a folder that has none yet."""
        file = folder / "batch.json"
        listed = json.loads(file.read_text(encoding="utf-8"))["trials"] if file.exists() else []
        return [Trial(t["number"], self._settings(t["point"])) for t in listed]

    def _settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return self.plan.space.settings(point, self.plan.base.steps)

    def _train(self, folder: Path) -> None:
        trials, plan = self._trials(folder), self.plan
        name = f"trials {trials[0].number} to {trials[-1].number} of {plan.trials}"
        here = groups(plan.algorithm, plan.base, trials, plan.tuning_seeds, folder)
        show(f"{name}: {sum(len(g.planned.config.seeds) for g in here)} agents x {plan.base.steps:,} steps")
        for group in here:
            if not group.train(plan.base.steps):
                raise StudyStopped(f"{group.planned.directory} was stopped; the same command goes on")
        for group in here:
            for number, score in group.scores(plan.last).items():
                self._tell(number, score)
        best = best_of(self.told())
        show(f"{name}: best so far {'none' if best is None else f'{best.value:,.1f}, trial {best.number}'}")

    def _tell(self, number: int, score: Score) -> None:
        import optuna

        value, states = score.value(self.plan.objective), optuna.trial.TrialState
        self._study.set_user_attr(f"seeds {number}", list(score.seeds))
        self._study.tell(number, value, states.FAIL if value is None else states.COMPLETE, skip_if_finished=True)


def best_of(told: Sequence[Told]) -> Told | None:
    """The trial with the largest value, the first of equal ones; None where all failed."""
    whole = [t for t in told if t.value is not None]
    return max(whole, key=lambda t: (t.value, -t.number)) if whole else None


def _taken(folder: Path, held: contextlib.ExitStack) -> bool:
    lock = Lock(folder, "batch.lock")
    try:
        lock.acquire()
    except InUseError:
        return False
    held.callback(lock.release)
    return True


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


def _opened(plan: Plan, out: Path, storage: str) -> Any:
    """Optuna's study of this plan. Raises DeeprlError for a storage that cannot be reached."""
    optuna = _optuna()
    plain = plan.plain()
    name = hashlib.sha256(json.dumps({k: v for k, v in plain.items() if k != "trials"}).encode()).hexdigest()[:12]
    try:
        made = _storage(storage or str(out / "journal.log"))
        study = optuna.create_study(
            storage=made, study_name=f"{plan.algorithm}-{name}", direction="maximize", load_if_exists=True
        )
        if not study.get_trials(deepcopy=False) and (point := plan.space.point(plan.base)) is not None:
            study.enqueue_trial(point, skip_if_exists=True)
    except Exception as error:  # of many drivers
        raise DeeprlError(f"storage {_without_password(storage)}: {first_line(error)}") from error
    return study


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise DeeprlError("tune needs Optuna: pip install 'deeprl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _storage(place: str) -> Any:
    """A journal at a path, or a database at a URL."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" not in place:
        return JournalStorage(JournalFileBackend(place))
    wait = {"connect_timeout": 10} if place.startswith(("postgresql", "mysql")) else {}
    return RDBStorage(place, engine_kwargs={"connect_args": wait, "pool_pre_ping": True})


def _without_password(storage: str) -> str:
    scheme, mark, rest = storage.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _sampler(plan: Plan, before: int, home: str) -> Any:
    """A sampler for the next batch, whose draws follow from what has been drawn before."""
    from optuna import samplers

    text = json.dumps([plan.seed, before, home])
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    if plan.sampler == "qmc":  # goes on in one sequence, whose place the storage keeps
        return samplers.QMCSampler(seed=plan.seed, scramble=True, warn_independent_sampling=False)
    kinds = {
        "random": samplers.RandomSampler,
        "tpe": samplers.TPESampler,
        "gp": samplers.GPSampler,
        "cmaes": samplers.CmaEsSampler,
        "nsga2": samplers.NSGAIISampler,
    }
    return kinds[plan.sampler](seed=seed)


def _distribution(parameter: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.texts)
    low, high = parameter.inner
    return FloatDistribution(low, high, log=parameter.scale != "linear")
