"""Trained agents, read back from the directory of their run."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import deeprl
from deeprl.config import RunConfig, build
from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.objects import load_object
from deeprl.core.population import resolve_device, stack
from deeprl.core.process import torch_defaults
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import load_flat, tree_map
from deeprl.errors import DeeprlError, nearest
from deeprl.run import checkpoint, snapshots
from deeprl.run.own_networks import networks_digest, with_fixed
from deeprl.run.records import read_about

OwnNet = Callable[..., Any] | str | None  # a function (spec, config), "module:name" of one, or the paper's networks


def algorithm_module(name: str) -> ModuleType:
    """The module of an algorithm. Raises DeeprlError with the nearest names for one that is not there."""
    if name not in deeprl.ALGORITHMS:
        hint = nearest(name, deeprl.ALGORITHMS) or f"; known: {', '.join(deeprl.ALGORITHMS)}"
        raise DeeprlError(f"unknown algorithm {name!r}{hint}")
    return importlib.import_module(deeprl.ALGORITHMS[name].module)


def stored_config(about: Mapping[str, Any]) -> RunConfig:
    """The settings of a run from its `config.json`."""
    return build(algorithm_module(about["algorithm"]).Config, about["config"])


class Population(NamedTuple):
    """A trained population read back: settings, modules, stacked state, seeds and settings of the members, its step.

    digests: of the data that each dataset's source held (offline runs; a snapshot has none).
    """

    module: ModuleType
    config: Any
    net: Any
    state: Any
    spec: EnvSpec
    members: list[dict[str, Any]]
    step: int
    digests: dict[str, str]

    def act(self, explore: bool = False) -> Callable[..., Any]:
        """The action function of one agent: (state, carry, obs, is_first, key)."""
        acting = memory.remembering(self.module.act, self._init_carry)
        return functools.partial(acting, self.net, self.config, explore=explore)

    @property
    def begin(self) -> memory.Begin:
        """What one agent remembers as so many episodes begin."""
        return functools.partial(self._init_carry, self.net, self.config)

    @property
    def _init_carry(self) -> memory.InitCarry:
        return getattr(self.module, "init_carry", memory.no_carry)


@torch_defaults()
def load_population(
    run_dir: str | Path, net: OwnNet = None, device: str = "cpu", step: int | None = None
) -> Population:
    """All agents of a run at its newest checkpoint (or snapshot, if it has none), or at the snapshot of a step.

    Warns of own networks that compute something else than those of the run. Raises DeeprlError where `run_dir` holds no
    trained agents, or none of that step.
    """
    directory, device = Path(run_dir), resolve_device(device)
    about = read_about(directory)
    if about.get("custom_net") and net is None:
        raise DeeprlError(
            f"{directory} has networks of its own ({about['custom_net']}): pass net= from Python; commands find those"
            " that a run was given by name, as --net module:function"
        )
    module = algorithm_module(about["algorithm"])
    config = stored_config(about)
    spec = EnvSpec.from_json(about["spec"])
    modules = module.build_net(spec, config, load_object(net, "net") if isinstance(net, str) else net, device)
    if about.get("net_digest") not in (None, networks_digest(modules)):
        changed = (
            "its own networks are not what they were when the run began: these may act otherwise than it was trained"
        )
        warnings.warn(f"{directory}: {changed}", stacklevel=3)
    kept = snapshots.snapshot_steps(directory)
    at = functools.partial(checkpoint.load_checkpoint, directory / "checkpoints", histories=False)
    if step is None:
        found = at() or (snapshots.load_snapshot(directory, kept[-1]) if kept else None)
    else:
        found = snapshots.load_snapshot(directory, step) or at(step=step)
    if found is None and step is not None:
        known = ", ".join(map(str, kept))
        raise DeeprlError(f"{directory} has no snapshot of step {step}; it has {known or 'none (--snapshot-every)'}")
    if found is None:
        raise DeeprlError(f"{directory} has no checkpoint yet; stop the run (Ctrl-C), or lower --checkpoint-minutes")
    fresh = [module.init(modules, config.member(i), rng.key(s, "init")) for i, s in enumerate(config.seeds)]
    state = tree_map(lambda leaf: leaf.to(device), stack(fresh))
    try:
        load_flat(state, with_fixed(found[1]["agents"], modules, state.fixed, "state."), "state.")
    except DeeprlError as error:
        raise DeeprlError(f"{directory}: {error}") from error
    digests = found[1].get("data", {}).get("digests", {})
    return Population(module, config, modules, state, spec, about["members"], found[0], digests)
