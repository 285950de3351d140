"""The directory of a run: what `config.json` says of it, and whether it holds the run that is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from deeprl.config import RunConfig, config_hash, identity, identity_of
from deeprl.core.population import Backend, Execution, Precision, resolve_device, resolve_execution
from deeprl.core.spec import EnvSpec
from deeprl.envs.make import EnvFactory
from deeprl.errors import DeeprlError, InUseError, first_line, shown
from deeprl.run import checkpoint, provenance
from deeprl.run.lock import Lock
from deeprl.run.progress import show

if TYPE_CHECKING:
    from deeprl.data.datasets import Dataset

FORMAT = 1
# Settings of how a run is executed, which may change when it is resumed, at the price of other rounding.
EXECUTION = ("device", "backend", "compile", "precision", "threads", "cuda_graphs")
_BEFORE = {"run.lock", "config.tmp"}  # all that a run has written when it is killed before its config.json is there
FOLDERS = ("checkpoints", "snapshots", "tensorboard", "wandb", "report")  # of a run, in which there are no others
COMPLETE = ("finished", "diverged")  # states of a run that is not continued


class Home:
    """The directory of a run, which stays where it was when the run's environment changes the working directory.

    Called, it gives the path as it was named, or an absolute one once that would lead elsewhere.
    """

    def __init__(self, named: str):
        self._named, self._begun = Path(named), _working_directory()

    def __call__(self) -> Path:
        return self._named if _working_directory() == self._begun else self.fixed

    @property
    def fixed(self) -> Path:
        """The absolute path."""
        return Path(self._begun, self._named)


def _working_directory() -> str:
    """Empty where it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def stored_run(directory: Path, algorithm: str, config: RunConfig, custom_net: str = "") -> dict[str, Any] | None:
    """`config.json` of the run in `directory`, or None for a directory that is empty or not there.

    custom_net: name of the function that was passed as `net=`, if one was.

    Raises DeeprlError, naming the settings that differ, if it holds another run, or something else. How it is executed
    (`EXECUTION`) may differ. A new run is refused inside another one, of which it would be taken for a part.
    """
    if not (directory / "config.json").exists():
        if directory.exists() and (not directory.is_dir() or any(p.name not in _BEFORE for p in directory.iterdir())):
            raise DeeprlError(f"{directory} is not empty and holds no run; choose another --out")
        if outer := _run_around(directory):
            raise DeeprlError(f"{directory} lies inside the run {outer}; choose another --out")
        return None
    stored = read_about(directory)
    if not isinstance(stored.get("execution"), dict):
        raise DeeprlError(f"{directory / 'config.json'} does not say how the run is executed")
    here = {"algorithm": algorithm, "custom_net": custom_net} | identity(config)
    there = {k: stored.get(k, "") for k in ("algorithm", "custom_net")} | identity_of(stored["config"], type(config))
    differ = [k for k in here if here[k] != there[k] and k not in EXECUTION]
    if "dataset" in differ and _moved(there["dataset"], here["dataset"], config, stored):
        differ.remove("dataset")
    if differ:
        was = ", ".join(f"{k} {there[k]!r} there, {here[k]!r} here" for k in differ[:3])
        remedy = "choose another --out"
        if differ == ["custom_net"] and not custom_net:
            remedy = "it goes on from Python, where its net= is passed again"
        if differ == ["steps"] and there["steps"] < here["steps"]:
            remedy = f"deeprl extend {directory} --steps {config.steps} trains it further"
        raise DeeprlError(f"{directory} holds another run ({was}); {remedy}")
    return stored


def _moved(there: Any, here: Any, config: RunConfig, stored: dict[str, Any]) -> bool:
    """Whether datasets are only called otherwise than in the session before."""
    from deeprl.data.source import same_datasets

    return same_datasets(there, here, len(config.seeds), stored.get("datasets", {}))


def _run_around(directory: Path) -> Path | None:
    """The directory of the run inside which `directory` lies, as it is named there where it can be."""
    for parent in Path(os.path.realpath(directory)).parents:
        with contextlib.suppress(DeeprlError):
            read_about(parent)
            return next(
                (named for named in reversed(directory.parents) if os.path.realpath(named) == str(parent)), parent
            )
    return None


def execution_of(stored: dict[str, Any] | None, config: RunConfig, updates: int) -> Execution:
    """How a run executes: as it has so far, or as its settings say if it is new or they have been changed since."""
    if stored is None or any(stored["config"].get(k, getattr(config, k)) != getattr(config, k) for k in EXECUTION):
        return resolve_execution(config, updates)
    usual = dataclasses.asdict(Execution())
    values = {"cuda_graphs": config.cuda_graphs} | stored["execution"]  # absent in directories of version 0.1
    if (
        values.keys() != usual.keys()
        or any(type(values[k]) is not type(usual[k]) for k in usual)
        or values["backend"] not in get_args(Backend)
        or values["precision"] not in get_args(Precision)
        or values["threads"] < 1
    ):
        raise DeeprlError(f"config.json: this is no way to execute a run: {values}")
    return Execution(**values | {"device": resolve_device(values["device"])})


def read_about(run_dir: Path) -> dict[str, Any]:
    """`config.json` of a run directory. Raises DeeprlError where there is none or it is of something else."""
    file = run_dir / "config.json"
    about = read_object(file)
    if about is None:
        raise DeeprlError(f"{run_dir} is no run directory: it has no config.json")
    kinds = {"format": int, "algorithm": str, "config": dict}
    if any(type(about.get(name)) is not kind for name, kind in kinds.items()):
        raise DeeprlError(f"{file} is no record of a run")
    if not 1 <= about["format"] <= FORMAT:
        raise DeeprlError(f"{file} has format {about['format']}; this deeprl reads up to {FORMAT}: update it")
    return about


def read_status(run_dir: Path) -> dict[str, Any]:
    """`status.json` of a run directory, empty for a run that ended before its first. Raises DeeprlError if broken."""
    return read_object(run_dir / "status.json") or {}


def read_object(file: Path) -> dict[str, Any] | None:
    """What is in a JSON file, None where there is no file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DeeprlError(f"{file}: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise DeeprlError(f"{file} holds no JSON object")
    return found


def evaluated_in(about: dict[str, Any]) -> EnvFactory:
    """The environment of a run, from its `config.json`. Raises DeeprlError for a run without one."""
    config = about["config"]
    found = about.get("evaluated_in", {k: config.get(k) for k in ("env", "env_kwargs", "wrappers")})
    if found is None:
        raise DeeprlError("this run has no environment: none could be made for its dataset")
    return EnvFactory(found["env"], dict(found["env_kwargs"]), tuple(found["wrappers"]))


def evaluation_of(dataset: Dataset, directory: Path) -> EnvFactory:
    """Where the agents of a run are evaluated, which learns from a dataset.

    directory: of the run. One that goes on is evaluated where it has been so far, so that its returns can be compared,
    and says so where a new run would be evaluated elsewhere.
    """
    now = EnvFactory(dataset.env, dataset.env_kwargs, dataset.wrappers)
    about = read_about(directory) if (directory / "config.json").exists() else {}
    so_far = about.get("evaluated_in")
    if not so_far or so_far == json.loads(json.dumps(dataclasses.asdict(now), default=str)):
        return now
    before = evaluated_in(about)
    show(
        f"evaluations go on in {_place_told(before)}, where this run began; {dataset.name} was recorded in"
        f" {_place_told(now)}, and new runs are evaluated there"
    )
    return before


def _place_told(make: EnvFactory) -> str:
    kwargs = f" with {make.env_kwargs}" if make.env_kwargs else ""
    wrappers = f", wrapped in {', '.join(make.wrappers)}" if make.wrappers else ""
    return f"{make.env}{kwargs}{wrappers}"


def write_about(
    directory: Path,
    algorithm: str,
    config: RunConfig,
    spec: EnvSpec,
    execution: Execution,
    custom_net: str = "",
    make_env: EnvFactory | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` of a new run. make_env: where its agents are evaluated. made_of: as in `note_made_of`, and
    what there is of the runs that agents begin from (`pretrained.origins`).
    """
    about = {
        "format": FORMAT,
        "algorithm": algorithm,
        "custom_net": custom_net,
        "config": dataclasses.asdict(config),
        "config_hash": config_hash(algorithm, config),
        "members": _members(config),
        "spec": dataclasses.asdict(spec),
        "evaluated_in": dataclasses.asdict(make_env) if make_env else None,
        "execution": dataclasses.asdict(execution),
        **(made_of or {}),
    }
    write_json(directory / "config.json", about | provenance.provenance_of(execution.device, execution.threads))


def _members(config: RunConfig) -> list[dict[str, Any]]:
    """The agents, each with the settings in which they differ."""
    varied = config.varied()
    return [
        {"member": i, "seed": s, "settings": {k: getattr(config, k)[i] for k in varied}}
        for i, s in enumerate(config.seeds)
    ]


def require_networks(directory: Path, stored: dict[str, Any] | None, made_of: Mapping[str, Any]) -> None:
    """Raise DeeprlError if a run's own networks are not those that it began with, as far as it has kept which."""
    before = (stored or {}).get("net_digest")
    if before is not None and before != made_of.get("net_digest"):
        raise DeeprlError(
            f"{directory}: its own networks are not what they were when this run began; choose another --out"
        )


def note_made_of(directory: Path, config: RunConfig, made_of: Mapping[str, Any]) -> None:
    """Bring up to date what `config.json` says of the data that a run goes on with, once they are known to be the same.

    made_of: `net_digest` of own networks, `datasets` (`data.source.Known`), where there are any.
    """
    about = read_about(directory)
    if "datasets" in made_of and about.get("datasets") != made_of["datasets"]:
        settings = about["config"] | {"dataset": getattr(config, "dataset", "")}
        new = {"config": settings, "members": _members(config), "datasets": made_of["datasets"]}
        write_json(directory / "config.json", about | new)


def claimed(
    directory: Path,
    stored: dict[str, Any] | None,
    config: RunConfig,
    execution: Execution,
    begin: Callable[[], None],
    closing: contextlib.ExitStack,
) -> tuple[tuple[int, dict[str, Any]] | None, list[str]]:
    """Take a run's directory until `closing`; bring its `config.json` up to date, which `begin` writes of a new one.

    stored: what `stored_run` gave. Returns the newest checkpoint (step, content), and lines about what was found.
    Raises InUseError if another process works in it.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = Lock(directory)
        news = [lock.acquire()]
        closing.callback(lock.release)
        found = checkpoint.load_checkpoint(directory / "checkpoints")
        if stored is not None:
            news.append(note_changes(directory, stored, config, execution, found[0] if found else 0))
        elif (directory / "config.json").exists():
            raise InUseError(f"{directory}: another process has just begun this run; try again")
        else:
            begin()
    return found, news


@contextlib.contextmanager
def fitting(what: str) -> Iterator[None]:
    """Within: whatever a checkpoint of another kind may cause becomes a DeeprlError that says so of `what`."""
    try:
        yield
    except DeeprlError:
        raise
    except Exception as error:  # what a forged one may raise knows no bounds
        raise DeeprlError(f"{what} does not fit this run ({type(error).__name__}: {first_line(error)})") from error


def note_changes(directory: Path, stored: dict[str, Any], config: RunConfig, execution: Execution, step: int) -> str:
    """Note in `config.json` what is other than in the session before. Returns a line about it, "" if nothing is.

    The file then says how the run is executed now; `changes` lists (step, name, before, after).
    """
    now = provenance.provenance_of(execution.device, execution.threads) | {"execution": dataclasses.asdict(execution)}
    before, after = _conditions(stored), _conditions(now)
    changed = [name for name in after if before.get(name) != after[name]]
    if not changed:
        return ""
    settings = stored["config"] | {k: getattr(config, k) for k in EXECUTION}
    news = [{"step": step, "name": name, "before": before.get(name), "after": after[name]} for name in changed]
    kept = {k: now[k] for k in ("execution", "versions", "device", "commit")}
    about = stored | {"config": settings} | kept | {"changes": stored.get("changes", []) + news}
    write_json(directory / "config.json", about)
    listed = ", ".join(f"{name} {before.get(name)} before, {after[name]} now" for name in changed)
    return f"{directory} goes on under other conditions ({listed}): its numbers may differ in the last bits"


def _conditions(about: dict[str, Any]) -> dict[str, Any]:
    """All that rounding may depend on, by name."""
    return (
        about.get("versions", {}) | {"commit": about.get("commit"), "machine": about.get("device")} | about["execution"]
    )


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Within: an error of the disk that holds a run becomes a DeeprlError that says what is safe."""
    try:
        yield
    except OSError as error:
        kept = checkpoint.steps(directory / "checkpoints")
        safe = f"the checkpoint of step {kept[-1]:,} is safe" if kept else "there is no checkpoint in it"
        if not directory.exists():
            safe = "the directory is gone"
        what = f"cannot write to {shown(error.filename or directory)}: {error.strerror or error}"
        raise DeeprlError(f"{what}; {safe}; mend this and run the same command again") from error


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step: a reader sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
