"""`deeprl dataset create`: transitions of a mixture of policies as a dataset, in the manner of D4RL.

Fu et al. 2020 (arXiv 2004.07219) made the locomotion sets with one agent at several moments of its training. Those are
the snapshots of a run (`--snapshot-every`) or of a file; `KINDS` tells which of them make which dataset. Underneath, a
dataset is a list of `Share`s: policies, and how much of each.
Each policy's last episode is cut where its share is complete; it is marked like one of a time limit, but in the list of
complete episodes it is not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.core.process import torch_defaults
from deeprl.core.spec import EnvSpec
from deeprl.data.scores import normalized_score, score_range
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError, nearest
from deeprl.make_data.candidates import file_sources, named, run_sources, uniform_source
from deeprl.make_data.recorder import Recorder, Share, Source, collect
from deeprl.make_data.writers import Origin, RecordedEpisode, check_target, write_dataset
from deeprl.run import provenance
from deeprl.run.directory import evaluated_in
from deeprl.run.progress import Progress, show
from deeprl.run.records import read_about

KINDS = {
    "random": "uniformly random actions",
    "medium": "the policy whose return is nearest to a third of the way from random actions to the expert",
    "expert": "the policy of the highest return",
    "medium-expert": "medium, then expert, half of the transitions each",
    "medium-replay": "equal shares of all policies whose return is not above the medium one's",
    "full-replay": "equal shares of all policies",
}
_EPISODES = 5  # of each policy, to choose the medium and the expert one
_LONGEST = 10_000  # steps: where an episode that tells a policy's return ends at the latest


@dataclass(frozen=True)
class Request:
    """What `create` shall make.

    target: a file `.hdf5` or `.h5`, or a Minari id. env: may be left out if there are runs. policies: files that
    `make_data.policies` reads, each of their snapshots a candidate; runs: run directories, each agent a candidate at
    each of its snapshots and at its end, or those of `agent_seed`. medium, expert: candidates by name, such as `500` of
    a file or `seed_0_step_5000` of a run; found by their returns if left out. mean_action: without the policies' own
    noise, runs without exploration.
    """

    target: str
    env: str
    kind: str
    steps: int
    seed: int = 0
    policies: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    agent_seed: int | None = None
    medium: str = ""
    expert: str = ""
    mean_action: bool = False
    env_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What was made. mean_return, mean_length: over complete episodes, or all if none is; score: NaN without range."""

    target: str
    sources: tuple[str, ...]
    transitions: int
    episodes: int
    complete: int
    mean_return: float
    mean_length: float
    score: float

    def __str__(self) -> str:
        score = "" if math.isnan(self.score) else f", normalised score {self.score:.1f}"
        return (
            f"{self.target}: {self.transitions:,} transitions, {self.episodes:,} episodes ({self.complete:,} complete)"
            f"; of {'the complete' if self.complete else 'all'} ones: mean return {self.mean_return:,.1f}, mean length"
            f" {self.mean_length:,.1f}{score}"
        )


# --- what a kind of dataset is made of ---


def choose(
    kind: str, candidates: Sequence[Source], returns: Callable[[], list[float]], medium: str = "", expert: str = ""
) -> list[Share]:
    """The shares of a dataset of one of `KINDS`.

    returns: mean returns of random actions and of the candidates, measured only where the choice depends on them.
    medium, expert: names of candidates that are not to be chosen. Raises DeeprlError where there are too few.
    """
    if kind not in KINDS:
        raise DeeprlError(f"unknown kind {kind!r}{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
    least = {"medium": 1, "expert": 1}.get(kind, 2)
    if len(candidates) < least:
        raise DeeprlError(f"kind {kind}: needs {least} or more policies (files or runs), not {len(candidates)}")
    if kind == "full-replay":
        return [Share(c) for c in candidates]
    chosen = {o: named(candidates, text, f"--{o}") for o, text in (("medium", medium), ("expert", expert)) if text}
    if len(candidates) == 1:
        return [Share(chosen.get(kind, candidates[0]))]
    wanted = {"medium-replay": ["medium"]}.get(kind, kind.split("-"))
    if kind == "medium-replay" or not set(wanted) <= set(chosen):
        random, *rest = returns()
        best = chosen.setdefault("expert", candidates[int(np.argmax(rest))])
        third = random + (rest[candidates.index(best)] - random) / 3.0
        chosen.setdefault("medium", candidates[int(np.argmin(np.abs(np.array(rest) - third)))])
        told = ", ".join(f"{option} {c.name} {rest[candidates.index(c)]:,.0f}" for option, c in chosen.items())
        show(f"mean returns of {_EPISODES} episodes: random {random:,.0f}, {told}; a third of the way is {third:,.0f}")
        if kind == "medium-replay":
            bar = rest[candidates.index(chosen["medium"])]
            return [Share(c) for c, value in zip(candidates, rest, strict=True) if value <= bar]
    return [Share(chosen[option]) for option in wanted]


def _measured(recorder: Recorder, candidates: Sequence[Source], seed: int) -> list[float]:
    """Mean returns of `_EPISODES` episodes of random actions and of each candidate."""
    sources = [uniform_source(recorder.spec), *candidates]
    progress, found = Progress(f"measuring {len(sources)} policies", len(sources) * _EPISODES), []
    for i, source in enumerate(sources):
        played = recorder.episodes(source, _EPISODES * _LONGEST, (seed, 1, i), _EPISODES)
        found.append(float(np.mean([episode.reward.sum(dtype=np.float64) for episode in played])))
        progress.update((i + 1) * _EPISODES)
    progress.close()
    return found


# --- the whole ---


@torch_defaults()
def create(request: Request) -> Summary:
    """Make a dataset and tell what it is. The same request makes the same transitions.

    Raises DeeprlError for wrong input, before anything is recorded.
    """
    _check(request)
    check_target(request.target)
    env, kwargs, wrappers = _environment(request)
    recorder = Recorder(lambda: make_env(env, kwargs, wrappers))
    try:
        spec = recorder.spec
        if spec.discrete or spec.image:
            raise DeeprlError(f"{env}: datasets are of vectors and continuous actions (flat Boxes)")
        candidates = [] if request.kind == "random" else _candidates(request, spec, env)
        returns = functools.partial(_measured, recorder, candidates, request.seed)
        shares = [Share(uniform_source(spec))]
        if request.kind != "random":
            shares = choose(request.kind, candidates, returns, request.medium, request.expert)
        origin = _origin(request, env, kwargs, wrappers, shares, alone=len(candidates) == 1)
        tally = _Tally(request.steps, f"recording {request.target}")
        episodes = tally.counted(collect(recorder, shares, request.steps, request.seed))
        write_dataset(request.target, recorder.envs[0], episodes, origin)
    finally:
        recorder.close()
    return tally.summary(request.target, shares, origin.score_range)


def _check(request: Request) -> None:
    """Raise DeeprlError for values out of range, and for options that would do nothing."""
    if request.steps < 1:
        raise DeeprlError(f"steps: must be positive, not {request.steps}")
    if not 0 <= request.seed < 2**32:
        raise DeeprlError(f"seed: must be in 0 .. 2^32 - 1, not {request.seed}")
    if request.kind == "random" and (request.policies or request.runs):
        raise DeeprlError("kind random: acts without policies and runs")
    for option, why in _idle(request).items():
        value = getattr(request, option)
        if not (value is None or value is False or value == ""):
            raise DeeprlError(f"--{option.replace('_', '-')}: does nothing {why}")


def _idle(request: Request) -> dict[str, str]:
    """The options that nothing depends on in this request, and why."""
    kind = request.kind
    if kind == "random":
        return dict.fromkeys(("medium", "expert", "agent_seed", "mean_action"), "for kind random")
    idle = {} if request.runs else {"agent_seed": "without --run"}
    if kind in ("full-replay", "expert"):
        idle["medium"] = f"for kind {kind}"
    if kind == "full-replay":
        idle["expert"] = f"for kind {kind}"
    if kind in ("medium", "medium-replay") and request.medium:
        idle["expert"] = f"for kind {kind} where --medium is named"
    return idle


def _candidates(request: Request, spec: EnvSpec, env: str) -> list[Source]:
    found = [s for path in request.policies for s in file_sources(path, spec, env, request.mean_action)]
    for run in request.runs:
        found += run_sources(run, spec, env, request.agent_seed, request.mean_action)
    return found


def _environment(request: Request) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Id, arguments and wrappers of the environment: those of the first run, unless the request names another one."""
    if request.runs:
        own = evaluated_in(read_about(Path(request.runs[0])))
        if request.env in ("", own.env):
            return own.env, request.env_kwargs or own.env_kwargs, own.wrappers
    if not request.env:
        raise DeeprlError("--env: name the environment")
    return request.env, request.env_kwargs, ()


def _origin(
    request: Request, env: str, kwargs: dict[str, Any], wrappers: tuple[str, ...], shares: Sequence[Share], alone: bool
) -> Origin:
    """What the dataset tells of itself. alone: there was but one policy to choose from."""
    sources = [share.source.name for share in shares]
    about: dict[str, Any] = {
        "recipe": f"{request.kind}, the only policy given" if alone else _recipe(request),
        "env": env,
        "policies": sources,
        "noise": "mean actions" if request.mean_action else "sampled actions",
        "steps": request.steps,
        "seed": request.seed,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    if wrappers:
        about["wrappers"] = list(wrappers)
    names = {name.partition(":")[0] for name in sources}
    return Origin(env, kwargs, ", ".join(sorted(names)), about, score_range(env, kwargs, wrappers))


def _recipe(request: Request) -> str:
    """How the policies were chosen."""
    named = {o: name for o in ("medium", "expert") if (name := getattr(request, o))}
    rule = KINDS[request.kind]
    if request.kind in named:
        rule = f"the policy named {named.pop(request.kind)}"
    return "; ".join([f"{request.kind}, {rule}", *(f"{o}: the policy named {name}" for o, name in named.items())])


class _Tally:
    """Counts the episodes that pass."""

    def __init__(self, steps: int, title: str):
        self._progress = Progress(title, steps)
        self._steps = 0
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._complete: list[bool] = []

    def counted(self, episodes: Iterable[RecordedEpisode]) -> Iterator[RecordedEpisode]:
        for episode in episodes:
            self._returns.append(float(episode.reward.sum(dtype=np.float64)))
            self._lengths.append(len(episode.reward))
            self._complete.append(episode.complete)
            self._steps += len(episode.reward)
            yield episode
            self._progress.update(self._steps)
        self._progress.close()

    def summary(self, target: str, shares: Sequence[Share], score_range: tuple[float, ...]) -> Summary:
        counted = np.array(self._complete) | (not any(self._complete))
        mean = float(np.array(self._returns)[counted].mean())
        score = normalized_score(mean, score_range) if score_range else math.nan
        names = tuple(share.source.name for share in shares)
        length = float(np.array(self._lengths)[counted].mean())
        return Summary(target, names, self._steps, len(self._returns), sum(self._complete), mean, length, score)
