"""Settings that all algorithms share, and the rules for all settings: per-agent fields, types, identity.

An algorithm's `Config` extends `OffPolicyConfig`, or `OfflineConfig` of `deeprl.data.offline`, by its own fields. A
field made with `per_agent(default, low, high)` may hold one value for all agents or a tuple with one value for each
entry of `seeds`; all other fields are shared by the population. What a field may be stands beside its default
(`per_agent`, `within`, `positive`, `layers`) and is checked by `RunConfig`; a class that changes a default keeps it.
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

from deeprl.config.convert import converted
from deeprl.config.fields import (
    Json,
    PerAgent,
    PerAgentOrAuto,
    PerAgentText,
    Seeds,
    parse_seeds,
    plain_json,
    require_finite,
)
from deeprl.config.schedules import Schedule, require_steps
from deeprl.errors import DeeprlError, nearest

__all__ = [
    "Json",
    "OffPolicyConfig",
    "OnlineConfig",
    "PerAgent",
    "PerAgentOrAuto",
    "PerAgentText",
    "RunConfig",
    "Schedule",
    "Seeds",
    "added",
    "build",
    "config_hash",
    "identity",
    "identity_of",
    "layers",
    "parse_seeds",
    "per_agent",
    "per_agent_fields",
    "positive",
    "require_changeable",
    "setting",
    "within",
]
C = TypeVar("C", bound="RunConfig")


def per_agent(default: Any, low: float = 0.0, high: float = 1.0, *, at_start: bool = False, added: bool = False) -> Any:
    """A field that may differ between the agents of one population; a number, or `auto`, is in [low, high].

    It is a 0-d tensor of its name in the `hparams` of an agent's state, unless it is text, or only how an agent starts
    (at_start). added: see there.
    """
    rules = {"per_agent": True, "bounds": (low, high), "at_start": at_start, "added": added}
    return field(default=default, metadata=rules)


def within(default: Any, low: float, high: float) -> Any:
    """A field with a number in [low, high], the same for all agents of a population."""
    return field(default=default, metadata={"bounds": (low, high)})


def positive(default: Any) -> Any:
    """A field with a number that is greater than 0, and finite."""
    return field(default=default, metadata={"positive": True})


def layers(*default: int) -> Any:
    """A field with the units of each hidden layer."""
    return field(default=default, metadata={"layers": True})


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
    schedule: Schedule = field(default=(), metadata={"added": True})
    """TOML file of settings of all agents from some steps on (docs/tuning.md); its content is kept with the run."""
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
    track: Literal["none", "wandb"] = "none"
    """Send what the CSV files get to Weights & Biases as well, a run there for each agent. Its own environment
    variables say where: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ..."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints with everything that an exact resume needs; 0 keeps only the last state."""
    keep_checkpoints: int = 2
    """The newest checkpoints that are kept while a run goes on; of a finished one the last is."""
    keep_replay: bool = False
    """Keep in the last checkpoint of a finished run all that `deeprl extend` needs to train it further: the replay, the
    environments. Runs that learn from datasets alone go on without."""
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
    """`auto` compiles runs that are long enough to earn it back: from 500 calls of the update on."""
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
        for each in dataclasses.fields(self):
            self._keep_to(each.name, _rules(type(self), each.name))
        self._begin_schedule()
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
        outside = [v for v in values if not isinstance(v, str) and not low <= v <= high]
        _require(not outside, f"{name}: must be in {low:g} .. {high:g}, not {outside[0] if outside else ''}")

    def _keep_to(self, name: str, rules: Mapping[str, Any]) -> None:
        """Raise DeeprlError unless a setting keeps to the rules of its field."""
        value = getattr(self, name)
        if "bounds" in rules:
            self.require_within(name, *rules["bounds"])
        if "positive" in rules:
            _require(0 < value < math.inf, f"{name}: must be positive and finite, not {value}")
        if "layers" in rules:
            _require(min(value, default=1) > 0, f"{name}: layers need at least one unit, not {value}")

    def _begin_schedule(self) -> None:
        """Take settings from the beginning of the schedule. Raise DeeprlError for what no schedule can do."""
        object.__setattr__(self, "schedule", tuple(plain_json("schedule", self.schedule)))  # a copy of our own
        require_steps(self.schedule)
        for entry in self.schedule:
            where = f"schedule: step {entry['step']}"
            for name, value in entry.items():
                if name == "step":
                    continue
                if entry["step"] == 0:
                    _require(name not in self.varied(), f"{where}: {name}: sets all agents alike; name no other values")
                    require_changeable(type(self), name, where)
                else:
                    self.require_free(name, where)
                number = not isinstance(value, bool) and isinstance(value, int | float)
                _require(number, f"{where}: {name}: expected a number, not {value!r}")
                low, high = _rules(type(self), name)["bounds"]
                _require(low <= value <= high, f"{where}: {name}: must be in {low:g} .. {high:g}, not {value}")
                if entry["step"] == 0:
                    object.__setattr__(self, name, float(value))

    def require_free(self, name: str, where: str) -> None:
        """Raise DeeprlError, beginning with `where`, for a setting that cannot change in the course of this run."""
        require_changeable(type(self), name, where)
        ready = name in self.prepared_with()
        _require(not ready, f"{where}: {name}: data are prepared with it, so that it cannot change in this run")

    def prepared_with(self) -> set[str]:
        """Per-agent settings that data are prepared with as a run begins."""
        return set()

    def refuse_idle(self, reason: str, *names: str) -> None:
        """Raise DeeprlError unless each of these settings, which have no effect here, has its default."""
        for field_ in dataclasses.fields(self):
            if field_.name in names:
                value = getattr(self, field_.name)
                usual = value == field_.default or (isinstance(value, tuple) and set(value) == {field_.default})
                _require(usual, f"{field_.name}: {value} has no effect with {reason}")

    def require_range(self, name: str) -> None:
        """Raise DeeprlError unless a setting is two bounds, the lower one first."""
        bounds = getattr(self, name)
        ordered = len(bounds) == 2 and bounds[0] < bounds[1]
        _require(ordered, f"{name}: a lower and an upper bound are needed, not {bounds}")

    def scalars(self, *names: str) -> dict[str, float]:
        """Per-agent settings of a single member by name."""
        values = {name: getattr(self, name) for name in names}
        for name, value in values.items():
            _require(not isinstance(value, tuple), f"{name}: still has a value per agent; take config.member(i) first")
        return {name: float(value) for name, value in values.items()}

    def hparams(self, **auto: float) -> dict[str, float]:
        """The per-agent numbers of a single member that its updates use. auto: what `auto` stands for in a field."""
        names = [n for n in per_agent_fields(type(self)) if not _rules(type(self), n)["at_start"]]
        automatic = {name: auto[name] for name in names if getattr(self, name) == "auto"}
        numbers = [n for n in names if n not in automatic and not isinstance(getattr(self, n), str)]
        return self.scalars(*numbers) | automatic

    def varied(self) -> list[str]:
        """The per-agent fields in which the members of this population differ."""
        return [f for f in per_agent_fields(type(self)) if isinstance(v := getattr(self, f), tuple) and len(set(v)) > 1]

    @property
    def task(self) -> str:
        """What the agents learn, in a few words: the name of a run's directory and title."""
        return self.env

    def updates(self) -> int:
        """Updates that the run will do, all agents together: one for each step of each agent."""
        return self.steps * len(self.seeds)

    def shared_bytes(self) -> int:
        """Bytes that all agents share, beside those that each of them needs."""
        return 0

    def over_all_steps(self) -> list[str]:
        """The settings whose schedule runs over all `steps`: with more of them each step would be another."""
        return []


@dataclass(frozen=True)
class OnlineConfig(RunConfig):
    """One run of agents that act in an environment while they learn."""

    env: str = "HalfCheetah-v5"
    """Gymnasium id; `module:Id-v0` imports `module` first."""
    envs_per_agent: int = 1
    """Environments that each agent acts in at once."""
    env_backend: Literal["sync", "async", "envpool", "threads", "device", "warp"] = "sync"
    """`async`: each environment in a process of its own, for slow simulators; `envpool`: in threads of C++; `threads`:
    MuJoCo's in threads, with the numbers of `sync`; `device`: as functions of tensors (`deeprl.envs.device`); `warp`:
    MuJoCo's on a GPU, in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.envs_per_agent > 0, f"envs_per_agent: must be positive, not {self.envs_per_agent}")
        _require(
            self.steps >= self.envs_per_agent,
            f"steps: {self.steps} are less than one of each of the {self.envs_per_agent} environments",
        )


@dataclass(frozen=True)
class OffPolicyConfig(OnlineConfig):
    """One run of agents that learn from a replay of what they have done."""

    # --- schedule ---
    learning_starts: int = positive(10_000)
    """Uniformly random steps before the first update."""
    utd: float = positive(1.0)
    """Updates per environment step of one agent; may be fractional."""
    batch_size: int = positive(256)
    """Transitions in each update."""
    buffer_size: int = positive(1_000_000)
    """Transitions that the replay of an agent holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.learning_starts < self.steps,
            f"learning_starts: {self.learning_starts} random steps leave none of {self.steps} to learn",
        )

    def updates(self) -> int:
        """As there, `utd` for each step of each agent."""
        return math.ceil(self.steps * self.utd) * len(self.seeds)


# Fields that do not change what a run computes.
NOT_IDENTITY = {"out", "label", "max_hours", "checkpoint_minutes", "keep_checkpoints", "snapshot_every"}
NOT_IDENTITY |= {"tensorboard", "track", "cuda_graphs", "keep_replay"}


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
    late = {f.name for f in dataclasses.fields(config) if _rules(type(config), f.name).get("added")}
    named = {k: v for k, v in identity(config).items() if k not in late or v != default[k]}
    text = json.dumps([algorithm, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def per_agent_fields(config: type[RunConfig]) -> list[str]:
    """Names of the fields that may differ inside a population."""
    return [f.name for f in dataclasses.fields(config) if _rules(config, f.name).get("per_agent")]


def require_changeable(config: type[RunConfig], name: str, where: str) -> None:
    """Raise DeeprlError, beginning with `where`, for a setting that cannot change in the course of a run."""
    known = [f.name for f in dataclasses.fields(config)]
    rules, usual = _rules(config, name), per_agent_fields(config)
    changeable = [n for n in usual if not _rules(config, n)["at_start"] and not isinstance(_text_of(config, n), str)]
    _require(name in known, f"{where}: {name}: unknown setting{nearest(name, changeable)}")
    _require(name in usual, f"{where}: {name}: is shared by a population, and stays as it is in a run")
    _require(not rules["at_start"], f"{where}: {name}: is only how an agent starts, and cannot change in a run")
    _require(name in changeable, f"{where}: {name}: is no number, and cannot change in a run")


def _text_of(config: type[RunConfig], name: str) -> Any:
    """The default of a field; nothing for `auto`, which stands in the place of a number."""
    default = config.__dataclass_fields__[name].default
    return None if default == "auto" else default


def _rules(config: type[RunConfig], name: str) -> Mapping[str, Any]:
    """The rules of a field: its own, or where it only has another default, those of the class that first had it."""
    for kind in config.__mro__:
        own = vars(kind).get("__dataclass_fields__", {}).get(name)
        if own is not None and own.metadata:
            return own.metadata
    return {}


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
