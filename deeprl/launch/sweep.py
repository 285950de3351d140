"""Sweeps: a TOML file of algorithms x environments x settings x seeds, trained as few populations as possible.

    out = "runs/my_sweep"                 # default: runs/ and the name of the file

    [defaults]                            # settings of every experiment
    eval_episodes = 10

    [[experiment]]
    algorithm = "sac"                     # one name or a list
    env = ["Pendulum-v1", "Hopper-v5"]    # one id or a list
    # dataset = ["a.hdf5", "b.hdf5"]      # of offline algorithms; env may be left out then
    seeds = "0-4"
    steps = 100_000
    # recipe = "dmc"                      # defaults of a published experiment (deeprl.recipes)

    [experiment.grid]                     # every combination of these
    actor_lr = [1e-4, 3e-4]
    hidden = [[64, 64], [256, 256]]

Agents that differ only in their seed and in per-agent settings (learning rates, discount, ...) train in one
population. Everything else, such as `hidden`, makes a population of its own. A sweep that is called again skips what
is finished and continues what is not; with more `steps` it trains on what was finished with fewer, where that is exact
(`deeprl.run.extension`; online algorithms need keep_replay = true). Called twice at once, each process takes the
populations that the other is not at; `Launching` says how one call has many workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deeprl.config import RunConfig, build, config_hash, per_agent_fields, setting
from deeprl.config.toml import read_toml
from deeprl.errors import DeeprlError, nearest
from deeprl.launch.glance import write_plan
from deeprl.launch.launcher import Launching, launch
from deeprl.launch.planned import Planned
from deeprl.recipes import with_recipe
from deeprl.reporting.report import write_report
from deeprl.run.progress import show
from deeprl.run.targets import check_sweep
from deeprl.run.trained import algorithm_module

_TOP = ("out", "defaults", "experiment")
_OWN = ("algorithm", "env", "dataset", "grid")  # keys of an experiment that are no settings


def run_sweep(file: str | Path, launching: Launching | None = None) -> Path:
    """Train everything in a sweep file and write its report. Returns the path of `report/index.html`.

    Raises DeeprlError (file, line, key) before anything is trained if the file or an environment is wrong or a cluster
    cannot be reached, and after all else is trained and reported if worker processes failed.
    """
    launching = launching or Launching()
    out, plan = read_sweep(file)
    launching.reach()
    try:
        check_sweep(out)
        for planned in plan:
            with contextlib.chdir("."):  # which environments may change
                planned.check()
    except DeeprlError as error:
        raise DeeprlError(f"{file}: {error}") from error
    agents = sum(len(p.config.seeds) for p in plan)
    show(f"{file}: {agents} agents in {len(plan)} populations, records in {out}")
    write_plan(out, plan)
    outcomes = launch(plan, out, launching)
    failed = [outcome.unit.name for outcome in outcomes if outcome.state == "failed"]
    if len(failed) == len(plan):
        raise DeeprlError(f"{file}: all {len(plan)} populations failed; nothing to report")
    page = write_report(out)
    if failed:
        named = ", ".join(failed[:3]) + (", ..." if len(failed) > 3 else "")
        again = "the same command tries them again"
        raise DeeprlError(f"{file}: {len(failed)} of {len(plan)} populations failed ({named}); {again}; report: {page}")
    return page


def read_sweep(file: str | Path) -> tuple[Path, list[Planned]]:
    """The output directory and the populations of a sweep file, checked. Raises DeeprlError naming file and line."""
    path = Path(file)
    text, content = read_toml(path)
    source = _Source(path, text)
    for key in content:
        if key not in _TOP:
            raise source.error(key, f"{key}: unknown key{nearest(key, _TOP)}", "")
    for key, kind in (("out", str), ("defaults", dict)):
        if not isinstance(content.get(key, kind()), kind):
            raise source.error(key, f"{key}: expected {'text' if kind is str else 'a table'}, not {content[key]!r}", "")
    out = Path(content.get("out", f"runs/{path.stem}"))
    experiments = content.get("experiment", [])
    if not isinstance(experiments, list) or not experiments:
        raise DeeprlError(f"{path}: no [[experiment]] in it")
    plan = [
        (number, planned)
        for number, experiment in enumerate(experiments, 1)
        for planned in _populations(source, number - 1, content.get("defaults", {}), experiment, out)
    ]
    for (number, one), (other, two) in itertools.combinations(plan, 2):
        if one.directory == two.directory:
            raise DeeprlError(f"{path}: {_clash(number, one, other, two)}")
    return out, [planned for _, planned in plan]


def _clash(number: int, one: Planned, other: int, two: Planned) -> str:
    """What is wrong with two populations, of these experiments, that would write to the same directory."""
    if config_hash(one.algorithm, one.config) == config_hash(two.algorithm, two.config):
        return f"experiments {number} and {other} train the same, {one.name}; leave one of them out"
    if number == other:
        return (
            f"experiment {number} would write two populations to {one.directory}; make two experiments of them,"
            " one with a label"
        )
    return f"experiments {number} and {other} would write to {one.directory}; give one of them a label"


class _Source:
    """The text of a sweep file, to name the line of a key that is wrong."""

    def __init__(self, path: Path, text: str):
        self._path, self._lines = path, text.splitlines()

    def error(self, key: str, message: str, *sections: str) -> DeeprlError:
        """`FILE:LINE: message` with the line of `key` in the first of the sections ("" is the top) that has it."""
        for section in sections:
            for number, line in enumerate(self._lines, 1):
                if self._section(number) == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                    return DeeprlError(f"{self._path}:{number}: {message}")
        return DeeprlError(f"{self._path}: {message}")

    def _section(self, upto: int) -> str:
        """Which table a line is in: "defaults", "experiment 0", "experiment 0 grid", ..."""
        section, count = "", -1
        for line in self._lines[:upto]:
            if line.strip().startswith("[[experiment]]"):
                count += 1
                section = f"experiment {count}"
            elif match := re.match(r"\s*\[experiment\.(\w+)\]", line):
                section = f"experiment {count} {match[1]}"
            elif match := re.match(r"\s*\[(\w+)\]", line):
                section = match[1]
        return section


def _populations(
    source: _Source, number: int, defaults: Mapping[str, Any], experiment: Mapping[str, Any], out: Path
) -> Iterator[Planned]:
    here = f"experiment {number}"
    grid = experiment.get("grid", {})
    if not isinstance(grid, dict):
        raise source.error("grid", "grid: expected one table [experiment.grid]", here)
    for key, there in (("algorithm", "algorithm" in experiment), ("env", {"env", "dataset"} & {*experiment, *grid})):
        if not there:
            raise DeeprlError(f"{source.error('', f'experiment {number + 1} has no {key}')}")
    settings = {**defaults, **{k: v for k, v in experiment.items() if k not in _OWN}}
    if "out" in settings:
        raise source.error("out", "out: belongs at the top of the file", here, "defaults")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise source.error(key, f"{key}: a grid lists the values to try", f"{here} grid", here)
    _refuse_twice(source, "algorithm", _listed(experiment["algorithm"]), here)
    tasks = {key: _listed(experiment[key]) for key in ("env", "dataset") if key in experiment}
    for algorithm, *task in itertools.product(_listed(experiment["algorithm"]), *tasks.values()):
        try:
            module = algorithm_module(algorithm)
        except DeeprlError as error:
            raise source.error("algorithm", str(error), here) from error
        for key, values in (*grid.items(), *tasks.items()):
            _refuse_twice(source, key, [_stored(module.Config, key, v) for v in values], f"{here} grid", here)
        for shared, cells in _cells(module.Config, grid):
            try:
                config = _population(
                    module.Config,
                    with_recipe(algorithm, {**settings, **dict(zip(tasks, task, strict=True)), **shared}),
                    cells,
                )
            except DeeprlError as error:
                key = str(error).partition(":")[0]
                raise source.error(key, str(error), f"{here} grid", here, "defaults") from error
            label = " ".join(filter(None, [config.label, *(f"{k}={_short(v)}" for k, v in shared.items())]))
            # One folder beside the other, never inside: a run below another run would be taken for a part of it.
            name = re.sub(r"[^\w.,=+-]+", "_", " ".join(filter(None, [config.task, label])))
            planned = Planned(algorithm, dataclasses.replace(config, out=str(out / algorithm / name), label=label))
            yield planned


def _stored(config: type[RunConfig], key: str, value: Any) -> Any:
    """A value as a run stores it; as it is where it is wrong, which is said elsewhere."""
    try:
        return setting(config, key, value)
    except DeeprlError:
        return value


def _refuse_twice(source: _Source, key: str, values: list[Any], *sections: str) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            shown = list(value) if isinstance(value, tuple) else value
            raise source.error(key, f"{key}: {shown} twice", *sections)


def _cells(config: type[RunConfig], grid: Mapping[str, list]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Combinations of the settings that a population shares, each with those of its agents."""
    own = per_agent_fields(config)
    shared = {k: v for k, v in grid.items() if k not in own}
    single = {k: v for k, v in grid.items() if k in own}
    cells = [dict(zip(single, values, strict=True)) for values in itertools.product(*single.values())]
    for values in itertools.product(*shared.values()):
        yield dict(zip(shared, values, strict=True)), cells


def _population(config: type[RunConfig], settings: Mapping[str, Any], cells: list[dict[str, Any]]) -> RunConfig:
    """One population: every cell of per-agent settings with every seed."""
    base = build(config, settings)
    if cells == [{}]:
        return base
    for cell in cells:
        build(config, {**settings, **cell})  # each value must be right by itself
    values = {k: [cell[k] for cell in cells for _ in base.seeds] for k in cells[0]}
    return build(config, {**settings, **values, "seeds": base.seeds * len(cells)})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
