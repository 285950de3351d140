"""The directory of a run: what `config.json` says of it, and whether it holds the run that is asked for."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from deeprl import provenance
from deeprl.config import RunConfig, config_hash, identity
from deeprl.errors import DeeprlError
from deeprl.population import Execution, resolve_device
from deeprl.spec import EnvSpec

FORMAT = 1
COMPLETE = ("finished", "diverged")  # states of a run that is not continued


def stored_execution(directory: Path, algorithm: str, config: RunConfig, custom_net: str = "") -> Execution | None:
    """How the run in `directory` was executed so far, or None for a directory that is empty or not there.

    custom_net: name of the function that was passed as `net=`, if one was.

    Raises DeeprlError, naming the settings that differ, if it holds another run, or something else.
    """
    about = directory / "config.json"
    if not about.exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise DeeprlError(f"{directory} is not empty and holds no run; choose another --out")
        return None
    stored = read_about(directory)
    here = {"algorithm": algorithm, "custom_net": custom_net} | identity(config)
    there = {k: stored.get(k, "") for k in ("algorithm", "custom_net")} | {
        k: stored["config"].get(k) for k in identity(config)
    }
    differ = [k for k in here if here[k] != there[k]]
    if differ:
        was = ", ".join(f"{k} {there[k]!r} there, {here[k]!r} here" for k in differ[:3])
        raise DeeprlError(f"{directory} holds another run ({was}); choose another --out")
    execution = Execution(**stored["execution"])
    resolve_device(execution.device)
    return execution


def read_about(run_dir: Path) -> dict[str, Any]:
    """`config.json` of a run directory. Raises DeeprlError where there is none or it is of something else."""
    try:
        about = json.loads((run_dir / "config.json").read_text())
    except FileNotFoundError as error:
        raise DeeprlError(f"{run_dir} is no run directory: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise DeeprlError(f"{run_dir / 'config.json'}: {error}") from error
    if not isinstance(about, dict) or not about.keys() >= {"format", "algorithm", "config", "execution"}:
        raise DeeprlError(f"{run_dir / 'config.json'} is no record of a run")
    if about["format"] > FORMAT:
        raise DeeprlError(f"{run_dir} has format {about['format']}; this deeprl reads up to {FORMAT}: update it")
    return about


def write_about(
    directory: Path, algorithm: str, config: RunConfig, spec: EnvSpec, execution: Execution, custom_net: str = ""
) -> None:
    """Make the directory of a new run with its `config.json`; an old one is left as it is."""
    if (directory / "config.json").exists():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeeprlError(f"cannot make {directory}: {error.strerror}") from error
    varied = config.varied()
    members = [
        {"member": i, "seed": s, "settings": {k: getattr(config, k)[i] for k in varied}}
        for i, s in enumerate(config.seeds)
    ]
    about = {
        "format": FORMAT,
        "algorithm": algorithm,
        "custom_net": custom_net,
        "config": dataclasses.asdict(config),
        "config_hash": config_hash(algorithm, config),
        "members": members,
        "spec": dataclasses.asdict(spec),
        "execution": dataclasses.asdict(execution),
    }
    write_json(directory / "config.json", about | provenance.describe(execution.device, execution.threads))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step: a reader sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)
