"""The datasets of a run that learns from them: read one after the other, and the environment to evaluate it in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deeprl.core.spec import EnvSpec
from deeprl.data.datasets import Dataset, load_dataset, peek
from deeprl.data.offline import DatasetConfig, OfflineData, best_episodes
from deeprl.data.source import find_again
from deeprl.errors import DeeprlError
from deeprl.run.directory import evaluation_of
from deeprl.run.loop import Run
from deeprl.run.progress import show


def open_data(run: Run, best: float = 1.0, evaluate: bool = True) -> OfflineData:
    """Read the datasets of a run and set it up for evaluations. best: the share of episodes to keep, by their returns.

    evaluate: not where the agents act in environments as well, in which they are evaluated.

    Where no environment can be made for a dataset, and none was asked for, says so; the run is never evaluated then.
    Raises DeeprlError for what is wrong with a dataset, and for datasets that are not of one kind.
    """
    config: Any = run.config  # a `DatasetConfig`
    if "" in config.datasets():
        raise DeeprlError("dataset: name a file (.hdf5, .h5, .npz) or a Minari id")
    places, sources = dict[str, str](), dict[str, dict[str, str]]()
    for source in config.datasets():
        places[source], sources[source] = find_again(source, (run.stored or {}).get("datasets", {}))
    rows = sum(peek(place).rows for place in places.values()) if len(places) > 1 else 0
    return OfflineData(_read(run, config, best, places, evaluate), rows, config, run.execution.device, sources)


def _read(
    run: Run, config: DatasetConfig, best: float, places: Mapping[str, str], evaluate: bool
) -> Iterator[tuple[str, Dataset]]:
    """The datasets, one after the other; in a rehearsal without their rows. places: where they are read."""
    outline = run.execution.device == "meta"
    name, kind = "", dict[str, Any]()
    for source, place in places.items():
        how = config.env, config.env_kwargs or None, config.clip_actions, outline, config.wrappers
        dataset = load_dataset(place, *how)
        own = _kind(dataset)
        for note in () if outline else dataset.notes:
            show(f"{dataset.name}: {note}")
        if not kind:
            name, kind = dataset.name, own
            if evaluate and dataset.env and not dataset.env_problem:
                run.evaluate_in(evaluation_of(dataset, run.directory))
            elif evaluate:
                problem = dataset.env_problem or f"{name} names no environment; give one with --env"
                show(f"no evaluations: {problem}")
        elif own != kind:
            differ = "; ".join(f"{what} {own[what]} and {kind[what]}" for what in own if own[what] != kind[what])
            raise DeeprlError(f"dataset: {source} and {name} are of different kinds: {differ}")
        yield source, dataset if best == 1.0 or outline else best_episodes(dataset, best)


def _kind(dataset: Dataset) -> dict[str, Any]:
    """What datasets of one population must have in common, by what it is called in messages."""
    return {
        "environment": dataset.env or "not named",
        "its arguments": dataset.env_kwargs,
        "its wrappers": dataset.wrappers or "none",
        **spaces_of(dataset.spec),
        "score range": dataset.spec.score_range or "none",
    }


def spaces_of(spec: EnvSpec) -> dict[str, Any]:
    """What agents of vectors and continuous actions must find alike, by what it is called in messages."""
    return {
        "numbers of an observation": spec.obs_dim,
        "numbers of an action": spec.action_dim,
        "lower bounds of actions": spec.action_low,
        "upper bounds of actions": spec.action_high,
        "steps of an action": spec.action_repeat,
    }
