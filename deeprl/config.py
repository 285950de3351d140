"""Settings that all algorithms share, and the rules for all settings: per-agent fields, types, identity.

An algorithm's `Config` extends `OnlineConfig`, or `OfflineConfig` of `deeprl.data.offline`, by its own fields. A field
made with `per_agent(default)` may hold one value for all agents or a tuple with one value for each entry of `seeds`;
all other fields are shared by the population.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from deeprl.convert import converted
from deeprl.errors import DeeprlError, nearest
from deeprl.fields import Json, PerAgent, PerAgentOrAuto, PerAgentText, Seeds, parse_seeds, plain_json, require_finite

__all__ = [
    "Json",
    "OnlineConfig",
    "PerAgent",
    "PerAgentOrAuto",
    "PerAgentText",
    "RunConfig",
    "Seeds",
    "added",
    "build",
    "config_hash",
    "identity",
    "identity_of",
    "parse_seeds",
    "per_agent",
    "per_agent_fields",
    "setting",
]
C = TypeVar("C", bound="RunConfig")


def per_agent(default: Any, added: bool = False) -> Any:
    """A field that may differ between the agents of one population. added: see there."""
    return field(default=default, metadata={"per_agent": True, "added": added})


def added(default: Any) -> Any:
    """A field that came when there were runs without it. Its default is what these do.

    At its default it is no part of `config_hash`, so that older runs are found under the same name.
    """
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class RunConfig:
    """One run: a population of agents."""

    # --- what ---
    env: str = ""
    """Gymnasium id; `module:Id-v0` imports `module` first."""
    env_kwargs: Json = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    wrappers: tuple[str, ...] = ()
    """Gymnasium wrappers around each environment, innermost first, as `module:Class`."""
    seeds: Seeds = (0,)
    """One agent per seed, such as `0-7`."""
    steps: int = 1_000_000
    """Steps of each agent: in the environment, or of the gradient if it learns from a dataset."""
    net: str = ""
    """Own networks: `module:function`, called as function(spec, config)."""
    # --- records ---
    out: str = ""
    """Run directory; default runs/ALGORITHM/ENV/HASH. The same command again continues there."""
    label: str = ""
    """Name of this group of settings in reports."""
    eval_every: int = 5_000
    """Steps between evaluations; 0 evaluates only the final policy."""
    eval_episodes: int = 10
    """Episodes of each evaluation, without exploration; 0 never evaluates."""
    log_every: int = 1_000
    """Steps between rows of metrics.csv; the last step has one too."""
    tensorboard: bool = True
    """Write TensorBoard events beside the CSV files."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints with everything that an exact resume needs; 0 keeps only the last state."""
    keep_checkpoints: int = 2
    """The newest checkpoints that are kept while a run goes on; of a finished one the last is."""
    snapshot_every: int = 0
    """Steps between snapshots of the agents, which are all kept: for `dataset create`, `deeprl evaluate --step` and
    `deeprl.load(..., step=)`; 0 keeps none."""
    max_hours: float = 0.0
    """Stop after this time with a checkpoint, and the same command continues; 0 sets no limit."""
    # --- how ---
    device: str = "cpu"
    """cpu, cuda, cuda:N, or auto."""
    backend: Literal["vmap", "loop"] = "vmap"
    """`loop` computes the agents in turn, bit-equal to each agent alone."""
    compile: Literal["auto", "on", "off"] = "auto"
    """`auto` compiles runs that are long enough to earn it back: from 2,000 calls of the update on."""
    precision: Literal["strict", "fast", "bf16"] = "fast"
    """`strict` f32; `fast` f32 by the library's fastest path (TF32 on CUDA); `bf16` matrix products."""
    threads: int = 0
    """Threads of PyTorch; 0 takes all cores."""
    cuda_graphs: bool = True
    """On a GPU, compiled functions are recorded and replayed with one launch each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "env_kwargs", plain_json("env_kwargs", self.env_kwargs))  # a copy of our own
        _require(len(self.seeds) > 0, "seeds: at least one is needed")
        _require(all(0 <= s < 2**32 for s in self.seeds), "seeds: must be in 0 .. 2^32 - 1")
        for each in dataclasses.fields(self):
            require_finite(each.name, getattr(self, each.name))
        for name in ("steps", "log_every", "keep_checkpoints"):
            _require(getattr(self, name) > 0, f"{name}: must be positive, not {getattr(self, name)}")
        for name in ("eval_every", "eval_episodes", "snapshot_every", "threads", "checkpoint_minutes", "max_hours"):
            _require(getattr(self, name) >= 0, f"{name}: must not be negative")
        for name in per_agent_fields(type(self)):
            value = getattr(self, name)
            count = len(value) if isinstance(value, tuple) else len(self.seeds)
            _require(count == len(self.seeds), f"{name}: {count} values for {len(self.seeds)} seeds")
        alone = [self.member(i) for i in range(len(self.seeds))] if len(self.seeds) > 1 else []
        members = [(m.seeds, *(getattr(m, f) for f in per_agent_fields(type(self)))) for m in alone]
        twice = next((m[0][0] for i, m in enumerate(members) if m in members[:i]), None)
        _require(twice is None, f"seeds: {twice} twice: two agents have the same seed and settings")

    def member(self: C, index: int) -> C:
        """The settings of one agent: a population of one, with a single value in every per-agent field."""
        values = {name: getattr(self, name) for name in per_agent_fields(type(self))}
        own = {name: v[index] if isinstance(v, tuple) else v for name, v in values.items()}
        return dataclasses.replace(self, seeds=(self.seeds[index],), **own)

    def require_within(self, name: str, low: float, high: float) -> None:
        """Raise DeeprlError unless a numeric setting, of every agent, is in [low, high], or `auto`."""
        value = getattr(self, name)
        values = value if isinstance(value, tuple) else (value,)
        outside = [v for v in values if v != "auto" and not low <= v <= high]
        _require(not outside, f"{name}: must be in {low:g} .. {high:g}, not {outside[0] if outside else ''}")

    def require_positive(self, *names: str) -> None:
        """Raise DeeprlError unless each of these settings is greater than 0, and finite."""
        for name in names:
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name}: must be positive and finite, not {value}")

    def refuse_idle(self, reason: str, *names: str) -> None:
        """Raise DeeprlError unless each of these settings, which have no effect here, has its default."""
        for field_ in dataclasses.fields(self):
            if field_.name in names:
                value = getattr(self, field_.name)
                own = value if isinstance(value, tuple) else (value,)
                _require(set(own) == {field_.default}, f"{field_.name}: {value} has no effect with {reason}")

    def require_layers(self, *names: str) -> None:
        """Raise DeeprlError unless each layer that these settings name has units."""
        for name in names:
            units = getattr(self, name)
            _require(min(units, default=1) > 0, f"{name}: layers need at least one unit, not {units}")

    def require_range(self, name: str) -> None:
        """Raise DeeprlError unless a setting is two bounds, the lower one first."""
        bounds = getattr(self, name)
        ordered = len(bounds) == 2 and bounds[0] < bounds[1]
        _require(ordered, f"{name}: a lower and an upper bound are needed, not {bounds}")

    def require_learning(self, learning_starts: int) -> None:
        """Raise DeeprlError unless steps are left after the warm-up."""
        _require(
            learning_starts < self.steps,
            f"learning_starts: {learning_starts} random steps leave none of {self.steps} to learn",
        )

    def scalars(self, *names: str) -> dict[str, float]:
        """Per-agent settings of a single member by name."""
        values = {name: getattr(self, name) for name in names}
        for name, value in values.items():
            _require(not isinstance(value, tuple), f"{name}: still has a value per agent; take config.member(i) first")
        return {name: float(value) for name, value in values.items()}

    def varied(self) -> list[str]:
        """The per-agent fields in which the members of this population differ."""
        return [f for f in per_agent_fields(type(self)) if isinstance(v := getattr(self, f), tuple) and len(set(v)) > 1]

    @property
    def task(self) -> str:
        """What the agents learn, in a few words: the name of a run's directory and title."""
        return self.env

    def shared_bytes(self) -> int:
        """Bytes that all agents share, beside those that each of them needs."""
        return 0


@dataclass(frozen=True)
class OnlineConfig(RunConfig):
    """One run of agents that act in an environment while they learn."""

    env: str = "HalfCheetah-v5"
    """Gymnasium id; `module:Id-v0` imports `module` first."""
    envs_per_agent: int = 1
    """Environments that each agent acts in at once."""
    env_backend: Literal["sync", "async", "envpool"] = "sync"
    """`async`: each environment in a process of its own, for slow simulators; `envpool`: in threads of C++."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.envs_per_agent > 0, f"envs_per_agent: must be positive, not {self.envs_per_agent}")
        _require(
            self.steps >= self.envs_per_agent,
            f"steps: {self.steps} are less than one of each of the {self.envs_per_agent} environments",
        )


# Fields that do not change what a run computes.
NOT_IDENTITY = {"out", "label", "max_hours", "checkpoint_minutes", "keep_checkpoints", "snapshot_every"}
NOT_IDENTITY |= {"tensorboard", "cuda_graphs"}


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that make two runs the same run, as plain JSON values."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return {k: v for k, v in plain.items() if k not in NOT_IDENTITY}


def identity_of(stored: Mapping[str, Any], config: type[RunConfig]) -> dict[str, Any]:
    """`identity` of stored settings. Those that the version which stored them did not have are at their defaults."""
    return {k: stored.get(k, default) for k, default in defaults(config).items() if k not in NOT_IDENTITY}


def defaults(config: type[RunConfig]) -> dict[str, Any]:
    fields = dataclasses.fields(config)
    made = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}
    return json.loads(json.dumps(made))


def config_hash(algorithm: str, config: RunConfig) -> str:
    """Twelve hex digits that name (algorithm, settings)."""
    default = defaults(type(config))
    late = {f.name for f in dataclasses.fields(config) if f.metadata.get("added")}
    named = {k: v for k, v in identity(config).items() if k not in late or v != default[k]}
    text = json.dumps([algorithm, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def per_agent_fields(config: type[RunConfig]) -> list[str]:
    """Names of the fields that may differ inside a population."""
    return [f.name for f in dataclasses.fields(config) if f.metadata.get("per_agent")]


def build(config: type[C], values: Mapping[str, Any]) -> C:
    """A config from plain values (TOML, JSON, keyword arguments). Raises DeeprlError that begins with the wrong key."""
    hints = typing.get_type_hints(config)
    known = [f.name for f in dataclasses.fields(config)]
    for key in values:
        if key not in known:
            raise DeeprlError(f"{key}: unknown setting{nearest(key, known)}")
    return config(**{k: converted(k, v, hints[k]) for k, v in values.items()})


def setting(config: type[RunConfig], key: str, value: Any) -> Any:
    """One value as `build` would store it, without the rules for how settings go together. Raises as it does."""
    hints = typing.get_type_hints(config)
    if key not in hints:
        raise DeeprlError(f"{key}: unknown setting{nearest(key, hints)}")
    return converted(key, value, hints[key])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DeeprlError(message)
