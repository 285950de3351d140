"""The Python face: train a population, load a trained agent."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from deeprl.config import RunConfig, build
from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.footprint import Needs, rehearse
from deeprl.core.population import member as take_member
from deeprl.core.process import torch_defaults
from deeprl.envs.spaces import to_env_action
from deeprl.errors import DeeprlError
from deeprl.nets import FixedNorm, put
from deeprl.recipes import with_recipe
from deeprl.run.extension import extend_record
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import name_of
from deeprl.run.progress import show
from deeprl.run.records import read_about
from deeprl.run.trained import OwnNet, Population, algorithm_module, load_population, stored_config

__all__ = [
    "OwnNet",
    "Policy",
    "Population",
    "algorithm_module",
    "dry_run",
    "extend",
    "load",
    "load_population",
    "train",
]


def train(algorithm: str, *, net: OwnNet = None, callback: Callback | None = None, **settings: Any) -> Run:
    """Train a population and return its `Run` (`run.directory`, `run.step`, `run.frozen`).

    settings: fields of the algorithm's `Config`, such as env, seeds (a list, or text such as "0-7"), steps, out; and
    recipe, a name of `deeprl.recipes.RECIPES[algorithm]` for the defaults of all others.
    net: a function (spec, config) that returns the modules of one agent, as the algorithm's `make_net` does. Given by
    its name, "module:name", it is found again by `resume`, `load` and all commands.
    callback(run) is called after every step of the population; returning True stops with a checkpoint.

    Raises DeeprlError for wrong settings or names.
    """
    module = algorithm_module(algorithm)
    config, make = _asked(module, algorithm, net, settings)
    return module.train(config, net=make, callback=callback)


def _asked(
    module: ModuleType, algorithm: str, net: OwnNet, settings: dict[str, Any]
) -> tuple[RunConfig, Callable[..., Any] | None]:
    """Settings, and own networks that have no name among them."""
    named = {"net": net} if isinstance(net, str) else {}
    return build(module.Config, with_recipe(algorithm, settings | named)), None if isinstance(net, str) else net


def extend(run_dir: str | Path, steps: int, *, net: OwnNet = None, callback: Callback | None = None) -> Run:
    """Train a run further, to `steps` of each agent, as if it had had so many from the start. Returns its `Run`.

    Called again it goes on, as `train` does. net: own networks that were passed as a function.

    Raises DeeprlError where a longer run would have been another (a schedule over all steps, named), and where a
    finished run has not kept what it needs: `keep_replay`, of algorithms that act in environments.
    """
    about = read_about(Path(run_dir))
    module, before = algorithm_module(about["algorithm"]), stored_config(about)
    if steps < before.steps:
        raise DeeprlError(f"steps: {run_dir} has {before.steps:,} already, and cannot be made shorter")
    config = dataclasses.replace(before, steps=steps, out=str(run_dir))
    make = None if isinstance(net, str) else net
    if told := extend_record(Path(run_dir), about["algorithm"], config, module.train, name_of(make) if make else ""):
        show(told)
    return module.train(config, net=make, callback=callback)


def dry_run(algorithm: str, *, net: OwnNet = None, **settings: Any) -> Needs:
    """What `train` with the same arguments would keep in memory, of which nothing is allocated.

    `needs.groups` has the bytes of one agent, `needs.total` those of the population, `needs.fit()` tells whether they
    are available now, `print(needs.table())` shows all. Raises DeeprlError for wrong settings or names.
    """
    module = algorithm_module(algorithm)
    return rehearse(module.train, *_asked(module, algorithm, net, settings))


@torch_defaults()
def load(
    run_dir: str | Path,
    seed: int | None = None,
    member: int | None = None,
    net: OwnNet = None,
    device: str = "cpu",
    step: int | None = None,
) -> Policy:
    """A trained agent of a run, at its newest checkpoint, or at the snapshot of a step (`snapshot_every`).

    seed: the agent's seed (may be left out in a run of one agent); member: its number, where several agents with
    different settings share a seed. net: the run's own networks, if it had any. Raises DeeprlError if no or several
    agents fit.
    """
    population = load_population(run_dir, net, device, step)
    fitting = [
        m for m in population.members if seed in (None, m["seed"]) and member in (None, m["member"])
    ]  # fmt: skip
    if len(fitting) != 1:
        known = ", ".join(f"member={m['member']} (seed {m['seed']}{_text(m['settings'])})" for m in population.members)
        raise DeeprlError(f"{run_dir}: {len(fitting)} agents fit seed={seed}, member={member}; there are {known}")
    return Policy(population, fitting[0]["member"])


# Threads that ask for a few actions take turns: they would trip over each other in the interpreter, and eight of them
# get half as many actions a second. Larger batches are computed side by side.
_FEW, _TURN = 64, threading.RLock()


class Policy:
    """A trained agent without exploration: `policy(obs)` with NumPy arrays in and out.

    obs: [*O] or a batch [B, *O] in the environment's own units. Returns actions [A] or [B, A] in the environment's
    units, clipped to its bounds, of the type of its actions (mostly float32); of a discrete environment an int64 number
    or [B] of them. seed, settings: which agent this is; spec: shapes and bounds of its environment.

    Any number of threads may call one policy, or several of one run, at the same time, and take its modules. A policy
    that keeps some randomness draws anew in each call, by the number of the call: which thread gets which number is not
    determined.

    A policy that remembers (`has_memory`) takes each call for the next step of the same episodes: call `reset` as new
    ones begin. Each thread has a memory of its own.
    """

    def __init__(self, population: Population, member: int):
        about = population.members[member]
        self.seed, self.settings, self.spec = about["seed"], about["settings"], population.spec
        self._net, self._config, self._act = population.net, population.config, population.act()
        self._begin, self._plan = population.begin, getattr(population.module, "plan", None)
        self._own = threading.local()
        self._state = take_member(population.state, member)
        self._device = self._state.step.device
        self._draws = itertools.count(1)

    @torch_defaults()
    def modules(self) -> dict[str, torch.nn.Module]:
        """Copies of the agent's networks with its parameters, as ordinary modules: actor and critic, q of DQN, ...

        What they take and return, `Net` of the algorithm tells; actions are in [-1, 1]. In a run that normalises
        observations there is `obs_norm` too, through which they must go first.
        """
        found: dict[str, torch.nn.Module] = {}
        for name, module in self._net._asdict().items():
            values = getattr(self._state, {"obs_norm": "obs_stats", "q": "params"}.get(name, name), None)
            if isinstance(module, torch.nn.Module) and values is not None:
                found[name] = copy.deepcopy(module)
                put(found[name], values | self._state.fixed.get(name, {}))
        if getattr(self._config, "normalize_obs", False) in (False, "off"):
            found.pop("obs_norm", None)
        elif facts := getattr(self._state, "facts", None):
            found["obs_norm"] = FixedNorm(facts.obs_mean, facts.obs_std)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own = threading.local()

    @property
    def has_memory(self) -> bool:
        """Whether actions depend on what was seen and done before in the episode."""
        return memory.width(self._begin(1)) > 0

    def reset(self) -> None:
        """The next call begins new episodes, of any number; without a memory there is nothing to do."""
        self._own.carry = None

    @torch_defaults()
    @torch.no_grad()
    def plan(self, obs: Any, length: int | None = None) -> np.ndarray:
        """The actions [L, A] that the agent would carry out from an observation [*O] with which an episode begins.

        For a batch [B, *O] [B, L, A]. length: L, by default that of its training. Leaves its memory as it is. Raises
        DeeprlError for an agent of an algorithm that does not plan, and for a length below 1.
        """
        if self._plan is None:
            raise DeeprlError("plan: agents of this algorithm decide anew at each step")
        length = self._config.sequence_length if length is None else length
        if length < 1:
            raise DeeprlError(f"length: must be positive, not {length}")
        rows, alone = self._rows(np.asarray(obs))
        previous = torch.zeros(len(rows), self.spec.action_dim, device=self._device)
        found = self._plan(self._net, self._config, self._state, rows, previous, length)
        plans = to_env_action(self.spec, found.cpu().numpy())
        return plans[0] if alone else plans

    def __call__(self, obs: Any) -> np.ndarray | np.int64:
        given = np.asarray(obs)
        few = not self.spec.image and given.size <= _FEW * self.spec.obs_dim
        with _TURN if few else contextlib.nullcontext():
            return self._answer(given)

    @torch_defaults()
    @torch.no_grad()
    def _answer(self, given: np.ndarray) -> np.ndarray | np.int64:
        rows, alone = self._rows(given)
        key = rng.key(self.seed, "eval", device=self._device)
        key[3] = next(self._draws)  # one step of the interpreter: no two threads get the same
        carry = getattr(self._own, "carry", None)
        is_first = torch.full((len(rows),), carry is None, device=self._device)
        if carry is None:
            carry = memory.fresh(self._begin, len(rows), self._device)
        elif (before := memory.width(carry, len(rows))) != len(rows):
            raise ValueError(f"obs has {len(rows)} rows, and the call before had {before}: reset() begins new episodes")
        found, self._own.carry = self._act(self._state, carry, rows, is_first, key)
        action = to_env_action(self.spec, found.cpu().numpy())
        return action[0] if alone else action

    def _rows(self, given: np.ndarray) -> tuple[torch.Tensor, bool]:
        """Observations [B, *O] of one, which stands alone, or of several."""
        if self.spec.image and not np.can_cast(given.dtype, self.spec.obs_dtype):
            raise ValueError(f"obs is {given.dtype}; expected {self.spec.obs_dtype}, as the environment gives it")
        values = given.astype(self.spec.obs_dtype)
        shape = self.spec.obs_shape
        if values.shape != shape and values.shape[1:] != shape:
            raise ValueError(f"obs has shape {values.shape}; expected {shape} or a batch of them")
        return torch.as_tensor(values.reshape(-1, *shape), device=self._device), values.shape == shape


def _text(settings: Mapping[str, Any]) -> str:
    return "".join(f", {k}={v}" for k, v in settings.items())
