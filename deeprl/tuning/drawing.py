"""What a study asks of Optuna: its storage, its samplers, its distributions."""

from __future__ import annotations

import functools
import hashlib
import json
import time
import warnings
from typing import Any

from deeprl.errors import DeeprlError, first_line
from deeprl.tuning.spaces import Choice, Parameter, Point

SAMPLERS = ("random", "tpe", "gp", "qmc", "cmaes", "nsga2")


def opened_study(name: str, storage: str, first: Point | None) -> Any:
    """Optuna's study of a name, to maximise. storage: a journal's path, or a database's URL. first: the
    first to be drawn, if there is one.

    Raises DeeprlError for a storage that cannot be reached.
    """
    optuna = _optuna()
    try:
        study = optuna.create_study(
            storage=_storage(storage), study_name=name, direction="maximize", load_if_exists=True
        )
        if not study.get_trials(deepcopy=False) and first is not None:
            study.enqueue_trial(dict(first), skip_if_exists=True)
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
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    wait = {"connect_timeout": 10} if place.startswith(("postgresql", "mysql")) else {}
    how = {"connect_args": wait, "pool_pre_ping": True}
    try:
        return RDBStorage(place, engine_kwargs=how)
    except (IntegrityError, ProgrammingError):  # another process was making the tables at the same moment
        time.sleep(3.0)
        return RDBStorage(place, engine_kwargs=how)


def _without_password(storage: str) -> str:
    scheme, mark, rest = storage.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def sampler_of(name: str, seed: int, before: int, home: str) -> Any:
    """A sampler for the next batch, whose draws follow from what has been drawn before."""
    import optuna
    from optuna import samplers

    text = json.dumps([seed, before, home])
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    kinds: dict[str, Any] = {
        "qmc": functools.partial(samplers.QMCSampler, scramble=True),
        "random": samplers.RandomSampler,
        "tpe": samplers.TPESampler,
        "gp": samplers.GPSampler,
        "cmaes": samplers.CmaEsSampler,
        "nsga2": samplers.NSGAIISampler,
    }
    if name == "qmc":
        drawn = seed  # it goes on in one sequence, whose place the storage keeps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kinds[name](seed=drawn)


def distribution_of(parameter: Parameter) -> Any:
    """What Optuna draws for a parameter: its inner number, or the text of a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.texts)
    low, high = parameter.inner
    return FloatDistribution(low, high, log=parameter.scale != "linear")
