"""Two processes at one study, in PostgreSQL or in the journal: is a trial lost, done twice, a suggestion repeated?

    python benchmarks/shared_study.py --storage postgresql
    python benchmarks/shared_study.py --storage journal

PostgreSQL (its server programs, and `pip install psycopg2-binary`) is started in a folder of its own meanwhile; where
it is absent, that is said. Each process has a directory of its own there, as on two machines; with the
journal they share one. One process is killed in the middle and started again. A row of `shared_study.csv` tells what
came of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from speed_rows import append, versions_told

from deeprl.run import provenance

COLUMNS = (
    "storage",
    "processes",
    "trials",
    "complete",
    "lost",
    "twice",
    "repeated",
    "seconds",
    "versions",
    "commit",
    "command",
)
SETTINGS = ["--env=CartPole-v1", "--env-backend=device", "--steps=600", "--eval-every=200", "--eval-episodes=2"]
SETTINGS += ["--learning-starts=100", "--hidden", "16", "--compile=off", "--no-tensorboard", "--last=2", "--batch=2"]
SETTINGS += ["--tuning-seeds=0-1", "--test-seeds=5-6", "--space=space.toml"]
SPACE = '[lr]\nlow = 1e-5\nhigh = 1e-2\nscale = "log"\n[discount]\nlow = 0.9\nhigh = 0.999\nscale = "complement"\n'


@dataclass(frozen=True)
class Options:
    storage: Literal["postgresql", "journal"] = "journal"
    trials: int = 24
    csv: Path = Path("benchmarks/results/shared_study.csv")


def main(options: Options) -> None:
    if options.storage == "postgresql" and (missing := absent()):
        sys.exit(f"skipped: {missing}")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as closing:
        folder = Path(place)
        (folder / "space.toml").write_text(SPACE, encoding="utf-8")
        url = closing.enter_context(postgresql()) if options.storage == "postgresql" else ""
        begun = time.monotonic()
        outs = [folder / ("two" if url and i else "one") for i in range(2)]
        workers = [start(folder, out, url, options.trials) for out in outs]
        time.sleep(25)
        os.killpg(workers[0].pid, signal.SIGKILL)
        workers[0].wait()
        workers[0] = start(folder, outs[0], url, options.trials)
        codes = [worker.wait() for worker in workers]
        seconds = round(time.monotonic() - begun, 1)
        found = judged(folder, outs, url, options.trials)
    row = {"storage": options.storage, "processes": 2, "trials": options.trials, **found, "seconds": seconds}
    row |= {"versions": versions_told(), "commit": provenance.commit(), "command": provenance.command()}
    print(row, codes)
    append(options.csv, COLUMNS, row)
    if any(codes):
        sys.exit(f"a process ended with {codes}")


def start(folder: Path, out: Path, url: str, trials: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "deeprl", "tune", "dqn", *SETTINGS, f"--trials={trials}", f"--out={out}"]
    words += [f"--storage={url}"] if url else []
    return subprocess.Popen(words, cwd=folder, start_new_session=True)


def judged(folder: Path, outs: list[Path], url: str, trials: int) -> dict[str, Any]:
    """What became of the trials: complete ones, those that nobody finished, in two batches, at equal points."""
    import optuna

    place = url or str(outs[0] / "journal.log")
    storage: Any = place if url else optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    kept = [t for t in study.get_trials(deepcopy=False) if f"discarded {t.number}" not in study.user_attrs]
    complete = sum(t.state.name == "COMPLETE" for t in kept)
    drawn = [
        trial["number"]
        for out in dict.fromkeys(outs)
        for file in out.glob("batches/*/batch.json")
        for trial in json.loads(file.read_text(encoding="utf-8"))["trials"]
    ]
    points = [json.dumps(t.params, sort_keys=True) for t in kept]
    return {
        "complete": complete,
        "lost": trials - complete,
        "twice": len(drawn) - len(set(drawn)),
        "repeated": len(points) - len(set(points)),
    }


def absent() -> str:
    """What PostgreSQL lacks here; empty if nothing."""
    if not programs():
        return "no PostgreSQL server here (Debian: apt install postgresql)"
    if importlib.util.find_spec("psycopg2") is None:
        return "no driver of PostgreSQL (pip install psycopg2-binary)"
    return ""


def programs() -> Path | None:
    """The folder with PostgreSQL's server programs."""
    if found := shutil.which("pg_ctl"):
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A server for as long as the context lasts; its URL."""
    found = programs()
    assert found is not None
    where = str(found)
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # the server refuses to be root's
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        if user:
            shutil.chown(place, "postgres")
        data = f"{place}/data"
        subprocess.run(
            [*user, f"{where}/initdb", "-D", data, "-U", "deeprl", "-A", "trust"], check=True, stdout=subprocess.DEVNULL
        )
        control = [*user, f"{where}/pg_ctl", "-D", data, "-w", "-l", f"{place}/log"]
        subprocess.run(
            [*control, "-o", f"-p {port} -k {place} -h 127.0.0.1", "start"], check=True, stdout=subprocess.DEVNULL
        )
        try:
            yield f"postgresql+psycopg2://deeprl@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
