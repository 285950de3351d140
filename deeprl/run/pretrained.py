"""Runs that other runs begin from: `--from RUN_DIR`, or `RUN_DIR@STEP` for one of its snapshots.

What has to be known of such a run, its algorithm, settings and spaces, goes into the `source` of the settings of the
run that begins from it, and what it has recorded into `pretraining.csv`, so that this is complete without the other.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from deeprl.config import RunConfig, build
from deeprl.config.runs import identity_of, per_agent_fields
from deeprl.core.optim import Moments
from deeprl.core.population import member as take_member
from deeprl.core.spec import EnvSpec
from deeprl.envs.make import EnvFactory
from deeprl.errors import DeeprlError
from deeprl.run.directory import evaluated_in
from deeprl.run.logger import read_column
from deeprl.run.open_data import spaces_of
from deeprl.run.own_networks import MakeNet
from deeprl.run.records import COMPLETE, read_about, read_status
from deeprl.run.trained import algorithm_module, load_population, stored_config

C = TypeVar("C", bound=RunConfig)
_OVER = {"actor_lr_decay": False, "bc_steps": 0}  # settings of schedules, after their end


def run_and_step(name: str) -> tuple[Path, int | None]:
    """The directory and the step of RUN_DIR or RUN_DIR@STEP; a directory of the whole name counts first."""
    place, at, step = name.rpartition("@")
    if at and step.isdigit() and not Path(name).is_dir():
        return Path(place), int(step)
    return Path(name), None


def with_source(config: C, algorithms: Sequence[str]) -> C:
    """Settings with `source`, and that run's environment and dataset where none is named. algorithms: it may be of.

    Raises DeeprlError for a run that is not complete, of another algorithm, or that differs from the others of `init`.
    """
    own: Any = config
    names = own.inits()
    if names == [""] or own.source:
        return config
    sources = {name: _source(name, algorithms) for name in names}
    first, source = next(iter(sources.items()))
    for name, other in sources.items():
        differ = [k for k in source if k != "step" and source[k] != other[k]]
        if differ == ["config"]:
            differ = [k for k in source["config"] if source["config"][k] != other["config"].get(k)]
        if differ:
            raise DeeprlError(f"init: {first} and {name} are of different kinds: {', '.join(differ)}")
    values: dict[str, Any] = {"source": source}
    about = read_about(run_and_step(first)[0])
    if own.keep_data > 0.0 and not any(own.datasets()) and isinstance(about["config"]["dataset"], str):
        values["dataset"] = about["config"]["dataset"]
    if not own.env:
        make = evaluated_in(about)
        values |= {"env": make.env, "env_kwargs": {**make.env_kwargs, **own.env_kwargs}}
        values |= {"wrappers": own.wrappers or make.wrappers}
    return dataclasses.replace(config, **values)


def _source(name: str, algorithms: Sequence[str]) -> dict[str, Any]:
    """What is kept of a run; of its settings those that several runs of one `init` must share."""
    directory, step = run_and_step(name)
    about, status = read_about(directory), read_status(directory)
    if about["algorithm"] not in algorithms:
        known = ", ".join(algorithms)
        raise DeeprlError(f"init: {directory} is a run of {about['algorithm']}; one of these is needed: {known}")
    if step is None and status.get("state") not in COMPLETE:
        state = f"{status.get('state', 'not begun')} at step {status.get('step', 0):,}"
        raise DeeprlError(
            f"init: {directory} is {state}: resume it until it has finished, or name a snapshot, {directory}@STEP"
        )
    kind = type(stored_config(about))
    passed_over = {f.name for f in dataclasses.fields(RunConfig)} - {"net"} | set(per_agent_fields(kind))
    kept = {k: v for k, v in identity_of(about["config"], kind).items() if k not in passed_over}
    at = status["step"] if step is None else step
    return {"algorithm": about["algorithm"], "config": kept, "spec": about["spec"], "step": at}


def source_module(config: Any) -> tuple[ModuleType, Any]:
    """The algorithm of the run that this one began from, and its settings, as far as they are kept.

    What a schedule offline would do, a decay of the learning rate or first steps of cloning, is over.
    """
    return _built(config.source["algorithm"], json.dumps(config.source["config"], sort_keys=True))


@functools.lru_cache(maxsize=16)  # asked for at every step of the environments, where acting is not compiled
def _built(algorithm: str, settings: str) -> tuple[ModuleType, Any]:
    module, known = algorithm_module(algorithm), json.loads(settings)
    return module, build(module.Config, known | {name: value for name, value in _OVER.items() if name in known})


def source_net(spec: EnvSpec, config: Any, custom: MakeNet | None, device: str) -> Any:
    """The networks of the run that this one began from. Raises DeeprlError where it was for other spaces than `spec`.

    custom: own networks of that run that have no name.
    """
    before = spaces_of(EnvSpec.from_json(config.source["spec"]))
    for what, mine in spaces_of(spec).items():
        if mine != before[what]:
            raise DeeprlError(f"init: {what} of {config.env}: {mine}; the run that it begins from has {before[what]}")
    module, settings = source_module(config)
    return module.build_net(spec, settings, custom, device)


def starts(config: Any, custom: MakeNet | None = None) -> list[Any]:
    """The state that each agent begins from: of the agent with its seed, or of the only one there is.

    Raises DeeprlError where no agent or several fit, and for one that has diverged.
    """
    found, populations = [], dict[str, Any]()
    for i, seed in enumerate(config.seeds):
        name = config.member(i).init
        directory, step = run_and_step(name)
        if name not in populations:
            populations[name] = load_population(directory, custom, step=step)
        population = populations[name]
        agent = _agent_for(seed, population.members, directory)
        frozen = {f["member"]: f for f in read_status(directory).get("frozen", [])}.get(agent["member"])
        if frozen is not None and (step is None or step >= frozen.get("step", 0)):
            raise DeeprlError(
                f"init: the agent with seed {agent['seed']} of {directory} diverged at step"
                f" {frozen.get('step', 0):,}; leave its seed out, or name a snapshot from before, {directory}@STEP"
            )
        found.append(take_member(population.state, agent["member"]))
    return found


def _agent_for(seed: int, members: Sequence[dict[str, Any]], directory: Path) -> dict[str, Any]:
    """The entry of the agent that one with this seed begins from, among the `members` of a run."""
    agents = members if len(members) == 1 else [m for m in members if m["seed"] == seed]
    if len(agents) != 1:
        there = ", ".join(f"{m['seed']}" for m in members)
        raise DeeprlError(f"init: {len(agents)} agents of {directory} have seed {seed}; there are seeds {there}")
    return agents[0]


def taken_over(new: Any, before: Any, init_std: float, new_critics: bool) -> Any:
    """A new agent of WSRL with all that the one before has to give: see the head of `offline/wsrl.py`.

    new, before: `State` of each. init_std: sigma of a policy that had none.
    """
    actor = {name: before.actor.get(name, torch.full_like(p, math.log(init_std))) for name, p in new.actor.items()}
    found: dict[str, Any] = {"actor": actor, "facts": before.facts}
    if before.actor.keys() == new.actor.keys() and hasattr(before, "log_alpha"):
        found |= {"actor_moments": before.actor_moments, "log_alpha": before.log_alpha}
        (name,), old = new.alpha_moments.m, before.alpha_moments
        m, v = ({name: next(iter(moment.values()))} for moment in (old.m, old.v))
        found["alpha_moments"] = Moments(m, v, old.beta1_power, old.beta2_power)
    if not new_critics:
        found |= {name: getattr(before, name) for name in ("critic", "target_critic", "critic_moments")}
    return new._replace(**found, fixed={name: held for name, held in before.fixed.items() if name in new.fixed})


def origins(config: Any) -> dict[str, Any]:
    """What `config.json` keeps of the runs that agents begin from, so that it is known without these what they were.

    origins: `runs`, their own `config.json` by the names of `init`; `agents`, of each agent the run, the member there
    and its step.
    """
    agents, runs = [], {}
    for i, seed in enumerate(config.seeds):
        name = config.member(i).init
        directory, step = run_and_step(name)
        runs[name] = read_about(directory)
        at = read_status(directory)["step"] if step is None else step
        member = _agent_for(seed, runs[name]["members"], directory)["member"]
        agents.append({"run": name, "member": member, "step": at})
    return {"origins": {"runs": runs, "agents": agents}}


def records(config: Any) -> list[dict[str, Any]]:
    """Rows of `pretraining.csv`: for each agent, what the one that it begins from had recorded when it was taken over.

    step: gradient steps, counted from there (<= 0). return: the mean over the episodes of the evaluation at that step,
    q: the metric `train/q`; empty where there was none. Returns of another environment than `config` names are not
    comparable and left out. Raises DeeprlError for a file that cannot be read.
    """
    columns = {name: _columns(run_and_step(name)[0], config) for name in config.inits()}
    rows = []
    for i, seed in enumerate(config.seeds):
        name = config.member(i).init
        directory, step = run_and_step(name)
        end = read_status(directory)["step"] if step is None else step
        member = _agent_for(seed, read_about(directory)["members"], directory)["member"]
        returns, q = (column.get(member, {}) for column in columns[name])
        for at in sorted({*returns, *q}):
            values = {"return": returns.get(at, ""), "q": q.get(at, "")}
            rows += [{"step": at - end, "member": i, "seed": seed} | values] if at <= end else []
    return rows


def _columns(directory: Path, config: Any) -> list[dict[int, dict[int, float]]]:
    """Returns and Q-values that a run has recorded, each by member and step."""
    here = EnvFactory(config.env, config.env_kwargs, config.wrappers)
    there = read_about(directory).get("evaluated_in")
    comparable = there == json.loads(json.dumps(dataclasses.asdict(here), default=str))
    returns = read_column(directory / "evaluations.csv", "return") if comparable else {}
    return [returns, read_column(directory / "metrics.csv", "train/q")]
