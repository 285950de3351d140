"""The Python face: train a population, load a trained agent."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

import deeprl
from deeprl import checkpoint, rng
from deeprl.config import RunConfig, build
from deeprl.directory import read_about
from deeprl.errors import DeeprlError, nearest
from deeprl.memory import Needs, rehearse
from deeprl.population import member as take_member
from deeprl.population import stack
from deeprl.recipes import with_recipe
from deeprl.run import Callback, Run
from deeprl.spaces import to_env_action
from deeprl.spec import EnvSpec
from deeprl.tree import load_flat, tree_map


def algorithm_module(name: str) -> ModuleType:
    """The module of an algorithm. Raises DeeprlError with the nearest names for one that is not there."""
    if name not in deeprl.ALGORITHMS:
        hint = nearest(name, deeprl.ALGORITHMS) or f"; known: {', '.join(deeprl.ALGORITHMS)}"
        raise DeeprlError(f"unknown algorithm {name!r}{hint}")
    return importlib.import_module(deeprl.ALGORITHMS[name].module)


def train(
    algorithm: str, *, net: Callable[..., Any] | None = None, callback: Callback | None = None, **settings: Any
) -> Run:
    """Train a population and return its `Run` (`run.directory`, `run.step`, `run.frozen`).

    settings: fields of the algorithm's `Config`, such as env, seeds (a list, or text such as "0-7"), steps, out; and
    recipe, a name of `deeprl.recipes.RECIPES[algorithm]` for the defaults of all others.
    net: a function (spec, config) that returns the modules of one agent, as the algorithm's `make_net` does.
    callback(run) is called after every step of the population; returning True stops with a checkpoint.

    Raises DeeprlError for wrong settings or names.
    """
    module = algorithm_module(algorithm)
    return module.train(build(module.Config, with_recipe(algorithm, settings)), net=net, callback=callback)


def dry_run(algorithm: str, *, net: Callable[..., Any] | None = None, **settings: Any) -> Needs:
    """What `train` with the same arguments would keep in memory, of which nothing is allocated.

    `needs.groups` has the bytes of one agent, `needs.total` those of the population, `needs.fit()` tells whether they
    are available now, `print(needs.table())` shows all. Raises DeeprlError for wrong settings or names.
    """
    module = algorithm_module(algorithm)
    return rehearse(module.train, build(module.Config, with_recipe(algorithm, settings)), net)


class Population(NamedTuple):
    """A trained population read back: settings, modules, stacked state, seeds and settings of the members."""

    module: ModuleType
    config: Any
    net: Any
    state: Any
    spec: EnvSpec
    members: list[dict[str, Any]]

    def act(self) -> Callable[..., Any]:
        """The action function of one agent, without exploration: (state, carry, obs, is_first, key)."""
        return functools.partial(self.module.act, self.net, self.config, explore=False)


def load_population(run_dir: str | Path, net: Callable[..., Any] | None = None, device: str = "cpu") -> Population:
    """All agents of a run at its newest checkpoint. Raises DeeprlError where `run_dir` holds no trained agents."""
    directory = Path(run_dir)
    about = read_about(directory)
    if about.get("custom_net") and net is None:
        raise DeeprlError(f"{directory} has networks of its own ({about['custom_net']}): use Python and pass net=")
    module = algorithm_module(about["algorithm"])
    config = stored_config(about)
    spec = EnvSpec.from_json(about["spec"])
    modules = module.build_net(spec, config, net, device)
    found = checkpoint.load(directory / "checkpoints", histories=False)
    if found is None:
        raise DeeprlError(f"{directory} has no checkpoint yet")
    fresh = [module.init(modules, config.member(i), rng.key(s, "init")) for i, s in enumerate(config.seeds)]
    state = tree_map(lambda leaf: leaf.to(device), stack(fresh))
    try:
        load_flat(state, found[1]["agents"], "state.")
    except DeeprlError as error:
        raise DeeprlError(f"{directory}: {error}") from error
    return Population(module, config, modules, state, spec, about["members"])


def load(
    run_dir: str | Path,
    seed: int | None = None,
    member: int | None = None,
    net: Callable[..., Any] | None = None,
    device: str = "cpu",
) -> Policy:
    """A trained agent of a run, at its newest checkpoint.

    seed: the agent's seed (may be left out in a run of one agent); member: its number, where several agents with
    different settings share a seed. net: the run's own networks, if it had any. Raises DeeprlError if no or several
    agents fit.
    """
    population = load_population(run_dir, net, device)
    fitting = [
        m for m in population.members if seed in (None, m["seed"]) and member in (None, m["member"])
    ]  # fmt: skip
    if len(fitting) != 1:
        known = ", ".join(f"member={m['member']} (seed {m['seed']}{_text(m['settings'])})" for m in population.members)
        raise DeeprlError(f"{run_dir}: {len(fitting)} agents fit seed={seed}, member={member}; there are {known}")
    return Policy(population, fitting[0]["member"])


class Policy:
    """A trained agent without exploration: `policy(obs)` with NumPy arrays in and out.

    obs: [*O] or a batch [B, *O] in the environment's own units. Returns actions [A] or [B, A] in the environment's
    units (float32), clipped to its bounds; of a discrete environment an int64 number or [B] of them. seed, settings:
    which agent this is.
    """

    def __init__(self, population: Population, member: int):
        about = population.members[member]
        self.seed, self.settings, self.spec = about["seed"], about["settings"], population.spec
        self._act = population.act()
        self._state = take_member(population.state, member)
        self._device = self._state.step.device
        self._key = rng.key(self.seed, "eval", device=self._device)

    @torch.no_grad()
    def __call__(self, obs: Any) -> np.ndarray | np.int64:
        given = np.asarray(obs)
        if self.spec.image and not np.can_cast(given.dtype, self.spec.obs_dtype):
            raise ValueError(f"obs is {given.dtype}; expected {self.spec.obs_dtype}, as the environment gives it")
        values = given.astype(self.spec.obs_dtype)
        shape = self.spec.obs_shape
        if values.shape != shape and values.shape[1:] != shape:
            raise ValueError(f"obs has shape {values.shape}; expected {shape} or a batch of them")
        rows = torch.as_tensor(values.reshape(-1, *shape), device=self._device)
        is_first = torch.zeros(len(rows), dtype=torch.bool, device=self._device)
        self._key[3] += 1  # another draw in every call, for policies that keep some randomness
        action = to_env_action(self.spec, self._act(self._state, (), rows, is_first, self._key)[0].cpu().numpy())
        return action[0] if values.shape == shape else action


def stored_config(about: Mapping[str, Any]) -> RunConfig:
    """The settings of a run from its `config.json`."""
    return build(algorithm_module(about["algorithm"]).Config, about["config"])


def _text(settings: Mapping[str, Any]) -> str:
    return "".join(f", {k}={v}" for k, v in settings.items())
