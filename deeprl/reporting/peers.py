"""Returns that other libraries have recorded, as the curves of each of their seeds.

| written by | file | what is read |
|---|---|---|
| stable-baselines3's `EvalCallback` | `evaluations.npz` | the mean over the episodes of each evaluation |
| its `Monitor` | `monitor.csv`, `0.monitor.csv` ... of one run | single training episodes |
| CleanRL and others, with TensorBoard | `events.out.tfevents...` | `charts/episodic_return`: single training episodes; else stable-baselines3's `eval/mean_reward` or `rollout/ep_rew_mean` |
| W&B, a panel of returns exported as CSV | `.csv`, a step column and `RUN - METRIC` columns | what was logged |

Training episodes end anywhere. Their curve is the mean over the last 100 of them at 50 steps, evenly from 0 to the last
step that all seeds have reached: what a policy that explores gets, mostly less than one that is evaluated. Steps are as
the library counted them.
"""  # noqa: E501

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeprl.errors import DeeprlError
from deeprl.reporting.curves import Curve

EPISODES = 100  # of training over which their returns are averaged
POINTS = 50  # of the curve of such means
TAGS = ("charts/episodic_return", "eval/mean_reward", "rollout/ep_rew_mean")  # the first one counts
STEP_COLUMNS = ("step", "global_step", "global step")  # of W&B's exports, in small letters
_NAMED = re.compile(r"(?P<env>[\w.-]+-v\d+)(_\d+)?")  # a folder of rl-baselines3-zoo
_OF_SEVERAL = re.compile(r"\d+\.monitor\.csv")
_CLEANRL = re.compile(r"(?P<env>[\w.-]+?)__\w")  # environment, file, seed and time, with two underscores between


class Peer(NamedTuple):
    """What `NAME=PATH` or `NAME@ENVIRONMENT=PATH` says: env is empty where the files are to tell."""

    name: str
    path: Path
    env: str = ""


class PeerRun(NamedTuple):
    """What one run of another library recorded. points: (step, return); episodes: those of single training episodes."""

    env: str
    points: list[tuple[int, float]]
    episodes: bool = False


def parse_peer(word: str) -> Peer:
    """Raises DeeprlError for a word without a name or a path, and for a path that is not there."""
    name, equals, path = word.partition("=")
    name, _, env = name.partition("@")
    if not (name and equals and path):
        raise DeeprlError(f"{word!r}: name it, NAME=PATH, or NAME@ENVIRONMENT=PATH where its files do not tell")
    if not Path(path).exists():
        raise DeeprlError(f"{path}: no such file or directory")
    return Peer(name, Path(path), env)


def read_peer(peer: Peer) -> dict[str, list[Curve]]:
    """The curve of every seed by environment, of a file or of all files of one kind below a directory.

    Of a directory evaluations count where there are any, then monitors, then events of TensorBoard.

    Raises DeeprlError where nothing can be read, a file is broken or does not tell its environment.
    """
    runs = [run for run in _runs(peer.path) if run.points]
    if not runs:
        kinds = "evaluations.npz, monitor.csv, events of TensorBoard or a CSV export of W&B"
        raise DeeprlError(f"{peer.path}: no returns of another library found there; have {kinds}")
    by_env: dict[str, list[PeerRun]] = {}
    for run in runs:
        by_env.setdefault(peer.env or run.env, []).append(run)
    if "" in by_env:
        raise DeeprlError(f"{peer.path} does not tell its environment: {peer.name}@ENVIRONMENT={peer.path}")
    return {env: _curves(runs) for env, runs in by_env.items()}


def is_peer(path: Path) -> bool:
    """Whether a path holds what `read_peer` reads, by its names and first lines."""
    if path.is_dir():
        return any(_files(path))
    name = path.name
    if name.endswith(".npz") or "tfevents" in name or name.endswith("monitor.csv"):
        return True
    with path.open(encoding="utf-8", errors="replace") as file:
        first = next(csv.reader(file), [])
    return len(first) > 1 and first[0].lower() in STEP_COLUMNS


def _files(path: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Evaluations, monitors and events at or below a path."""
    if path.is_file() and _OF_SEVERAL.fullmatch(path.name):  # of a run in several environments
        return [], sorted(p for p in path.parent.glob("*.monitor.csv") if _OF_SEVERAL.fullmatch(p.name)), []
    every = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    evaluations = [p for p in every if p.suffix == ".npz" and (p == path or p.name == "evaluations.npz")]
    monitors = [p for p in every if p.name.endswith("monitor.csv")]
    return evaluations, monitors, [p for p in every if "tfevents" in p.name]


def _runs(path: Path) -> list[PeerRun]:
    evaluations, monitors, events = _files(path)
    if evaluations:
        return [_evaluations(file) for file in evaluations]
    if monitors:
        return [_monitor([p for p in monitors if p.parent == folder]) for folder in _folders(monitors)]
    if events:
        return [_events(path if path.is_file() else folder) for folder in _folders(events)]
    return _export(path) if path.is_file() else []


def _folders(files: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(file.parent for file in files))


def _env_of(path: Path) -> str:
    """The environment that the nearest folder is named after; empty where none is."""
    for part in reversed(path.parts):
        if found := _CLEANRL.match(part) or _NAMED.fullmatch(part):
            return found["env"]
    return ""


def _evaluations(path: Path) -> PeerRun:
    try:
        with np.load(path) as stored:
            steps, results = stored["timesteps"], np.asarray(stored["results"], np.float64)
        means = results.reshape(len(results), -1).mean(axis=1)
        points = [(int(s), float(m)) for s, m in zip(steps, means, strict=True)]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DeeprlError(f"{path}: not the evaluations of stable-baselines3 ({error})") from error
    return PeerRun(_env_of(path), points)


def _monitor(files: Sequence[Path]) -> PeerRun:
    """The episodes of all environments of a run in order of time: each has a file that counts its own steps."""
    episodes: list[tuple[float, int, float]] = []
    env = ""
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            try:
                about = json.loads(file.readline().removeprefix("#"))
                env = env or str(about.get("env_id") or "")
                for row in csv.DictReader(file):
                    episodes.append((about["t_start"] + float(row["t"]), int(row["l"]), float(row["r"])))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DeeprlError(f"{path}: no monitor file of stable-baselines3 ({error!r})") from error
    step, points = 0, []
    for _, length, ret in sorted(episodes, key=lambda episode: episode[0]):
        step += length
        points.append((step, ret))
    return PeerRun(env if env not in ("", "None") else _env_of(files[0]), points, episodes=True)


def _events(path: Path) -> PeerRun:
    """The events of one run: its folder, or a single file. No points where none of the tags is there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(path), size_guidance={"scalars": 0})
    reader.Reload()
    tag = next((tag for tag in TAGS if tag in reader.Tags()["scalars"]), "")
    points = [(int(e.step), float(e.value)) for e in reader.Scalars(tag)] if tag else []
    return PeerRun(_env_of(path), points, episodes=tag == TAGS[0])


def _export(path: Path) -> list[PeerRun]:
    """W&B's CSV of a panel: the step, then of each run METRIC, and its least and greatest value, which are left out."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0][0].lower() not in STEP_COLUMNS:
        return []
    columns = [k for k, name in enumerate(lines[0]) if " - " in name and not name.endswith(("__MIN", "__MAX"))]
    runs = []
    for k in columns:
        name, _, metric = lines[0][k].rpartition(" - ")
        try:
            points = [(int(float(line[0])), float(line[k])) for line in lines[1:] if line and line[k].strip()]
        except (IndexError, ValueError) as error:
            raise DeeprlError(f"{path}: column {lines[0][k]!r} is broken: {error}") from error
        runs.append(PeerRun(_env_of(Path(name)), points, episodes="episodic_return" in metric))
    return runs


def _curves(runs: Sequence[PeerRun]) -> list[Curve]:
    """Curves of runs in one environment, those of training episodes at the same steps in all."""
    ended = [max(step for step, _ in run.points) for run in runs if run.episodes]
    grid = [round(min(ended) * k / POINTS) for k in range(1, POINTS + 1)] if ended else []
    return [_averaged(run.points, grid) if run.episodes else dict(sorted(run.points)) for run in runs]


def _averaged(points: Sequence[tuple[int, float]], grid: Sequence[int]) -> Curve:
    """The mean of the last `EPISODES` returns up to each step of the grid; none before the first one has ended."""
    ordered = sorted(points, key=lambda point: point[0])
    steps, returns = np.array([s for s, _ in ordered]), np.array([r for _, r in ordered])
    counts: Mapping[int, int] = {step: int(np.searchsorted(steps, step, side="right")) for step in grid}
    return {step: float(returns[max(0, n - EPISODES) : n].mean()) for step, n in counts.items() if n}
