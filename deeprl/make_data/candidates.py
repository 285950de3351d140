"""Policies to record, from files and from runs, each under a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeprl.core.population import member as take_member
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import tree_map
from deeprl.envs.spaces import to_env_action
from deeprl.errors import DeeprlError, nearest
from deeprl.make_data.policies import FilePolicy, read_policies
from deeprl.make_data.recorder import WIDTH, Seats, Source
from deeprl.run import snapshots
from deeprl.run.trained import Population, load_population


def uniform_source(spec: EnvSpec) -> Source:
    """Uniformly random actions."""
    low, high = spec.action_bounds
    return Source("random", lambda obs, noise, _: noise.uniform(low, high, (len(obs), len(low))))


def file_sources(path: str, spec: EnvSpec, env: str, mean_action: bool) -> list[Source]:
    """The policies of a file. Raises DeeprlError for a file that is none, or whose policies cannot act in `env`."""
    policies = read_policies(path)
    policies[0].check(spec, env)

    def source(policy: FilePolicy) -> Source:
        return Source(policy.name, lambda obs, noise, _: policy(obs, None if mean_action else noise))

    return [source(policy) for policy in policies]


def run_sources(run_dir: str, spec: EnvSpec, env: str, seed: int | None, mean_action: bool) -> list[Source]:
    """The agents of a run at each of its snapshots and at its end, acting as they do in training.

    With mean_action they act as in an evaluation. Raises DeeprlError where the run has no such agent or is of an
    environment with other spaces.
    """
    newest = load_population(run_dir)
    own = newest.spec
    if (own.obs_shape, own.action_low, own.action_high) != (spec.obs_shape, spec.action_low, spec.action_high):
        raise DeeprlError(f"{run_dir}: trained in {newest.config.env}, whose spaces are not those of {env}")
    members = [m for m in newest.members if seed in (None, m["seed"])]
    if not members:
        known = ", ".join(str(m["seed"]) for m in newest.members)
        raise DeeprlError(f"{run_dir}: no agent of seed {seed}; it has {known}")
    found = []
    for step in snapshots.snapshot_steps(run_dir):
        if step != newest.step:
            found += _agents(run_dir, load_population(run_dir, step=step), members, mean_action, f"_step_{step}")
    return found + _agents(run_dir, newest, members, mean_action)


def _agents(
    run_dir: str, population: Population, members: Sequence[dict[str, Any]], mean_action: bool, moment: str = ""
) -> list[Source]:
    """Some agents of a population. moment: what their names end in."""
    spec, act = population.spec, population.act(explore=not mean_action)

    def source(about: dict[str, Any]) -> Source:
        state, carries = take_member(population.state, about["member"]), population.begin(WIDTH)

        @torch.no_grad()
        def actor(obs: np.ndarray, noise: np.random.Generator, seats: Seats) -> np.ndarray:
            key, rows = torch.from_numpy(noise.integers(2**32, size=4)), torch.from_numpy(seats.number)
            carry = tree_map(lambda leaf: leaf[rows], carries)
            action, after = act(state, carry, torch.from_numpy(obs), torch.from_numpy(seats.is_first), key)
            tree_map(lambda leaf, new: leaf.index_copy_(0, rows, new), carries, after)
            return to_env_action(spec, action.numpy())

        shared = sum(m["seed"] == about["seed"] for m in population.members) > 1
        member = f"_member_{about['member']}" if shared else ""
        return Source(f"{Path(run_dir).resolve().name}:seed_{about['seed']}{member}{moment}", actor)

    return [source(about) for about in members]


def named(candidates: Sequence[Source], name: str, option: str) -> Source:
    """The candidate of a name, or of a name that ends in `:name`. Raises DeeprlError if there is none, or several."""
    fitting = [c for c in candidates if c.name == name or c.name.endswith(f":{name}")]
    if len(fitting) != 1:
        names = [c.name for c in candidates]
        raise DeeprlError(
            f"{option} {name}: {len(fitting)} policies fit{nearest(name, names)}; have {', '.join(names)}"
        )
    return fitting[0]
