import dataclasses
import json
import typing

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro

import deeprl
from deeprl.config import (
    PerAgent,
    RunConfig,
    added,
    build,
    config_hash,
    identity,
    parse_seeds,
    per_agent,
    per_agent_fields,
)
from deeprl.config.runs import NOT_IDENTITY
from deeprl.core import rng
from deeprl.core.spec import EnvSpec
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError
from deeprl.online import sac
from deeprl.online.sac import Config
from deeprl.run.directory import stored_run
from deeprl.run.records import write_json
from deeprl.run.trained import algorithm_module


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["7"], (7,)),
        (["0-3"], (0, 1, 2, 3)),
        (["0,2,5-7"], (0, 2, 5, 6, 7)),
        (["0", "2", "5-7"], (0, 2, 5, 6, 7)),
        ([" 1 - 2 , 4 "], (1, 2, 4)),
        (["3-3"], (3,)),
        (["100-102", "0"], (100, 101, 102, 0)),
    ],
)
def test_parse_seeds_by_hand(words, seeds):
    assert parse_seeds(words) == seeds


@pytest.mark.parametrize("word", ["", "a", "1-", "-1", "1.5", "1,,2", "3-1", "1-2-3", "0x3"])
def test_parse_seeds_refuses(word):
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds([word])


# --- build ---


def test_build_converts_plain_values():
    config = build(
        Config,
        {"env": "Pendulum-v1", "seeds": [3, 4], "hidden": [8, 8], "utd": 2, "actor_lr": [1, 0.5], "wrappers": []},
    )
    assert config == Config(env="Pendulum-v1", seeds=(3, 4), hidden=(8, 8), utd=2.0, actor_lr=(1.0, 0.5))
    assert isinstance(config.utd, float)
    assert all(isinstance(v, float) for v in config.actor_lr)


class Index:
    """What Python takes for an index, and no integer."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("seeds", [np.int64(3)], (3,)),
        ("seeds", np.int64(3), (3,)),
        ("seeds", np.arange(3), (0, 1, 2)),
        ("seeds", range(2), (0, 1)),
        ("seeds", torch.tensor([4, 5]), (4, 5)),
        ("seeds", [Index()], (7,)),
        ("steps", np.int32(30_000), 30_000),
        ("steps", Index(), 7),
        ("hidden", np.array([8, 9]), (8, 9)),
        ("utd", np.float32(0.5), 0.5),
        ("utd", np.int8(2), 2.0),
        ("actor_lr", np.float64(0.25), 0.25),
        ("actor_lr", np.array([0.25]), (0.25,)),
        ("tensorboard", np.bool_(False), False),
        ("label", np.str_("a"), "a"),
    ],
)
def test_build_takes_the_numbers_of_numpy_and_stores_plain_ones(name, given, expected):
    found = getattr(build(Config, {"learning_starts": 1, "steps": 100} | {name: given}), name)
    assert found == expected
    parts = found if isinstance(found, tuple) else (found,)
    assert {type(part) for part in parts} <= {int, float, bool, str}
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [("steps", np.float64(3.0)), ("steps", np.bool_(True)), ("utd", np.bool_(True)), ("tensorboard", np.int64(1))],
)
def test_build_refuses_numbers_of_another_kind_from_numpy_as_well(name, given):
    with pytest.raises(DeeprlError, match=rf"^{name}: expected"):
        build(Config, {name: given})


@pytest.mark.parametrize(("seeds", "expected"), [("0-2", (0, 1, 2)), (5, (5,)), ("1,4", (1, 4)), ([1, 4], (1, 4))])
def test_build_takes_seeds_as_text_number_or_list(seeds, expected):
    assert build(Config, {"seeds": seeds}).seeds == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, r"batchsize: unknown setting; did you mean batch_size"),
        ({"Steps": 3}, r"Steps: unknown setting; did you mean steps"),
        ({"zzzz": 3}, r"zzzz: unknown setting$"),
        ({"steps": "many"}, r"steps: expected int, not 'many'"),
        ({"steps": 1e5}, r"steps: expected int, not 100000\.0"),
        ({"steps": True}, r"steps: expected int, not True"),
        ({"utd": "1"}, r"utd: expected float, not '1'"),
        ({"utd": False}, r"utd: expected float, not False"),
        ({"tensorboard": 1}, r"tensorboard: expected bool, not 1"),
        ({"hidden": 256}, r"hidden: expected a list of int, not 256"),
        ({"hidden": [256, 0.5]}, r"hidden: expected int, not 0\.5"),
        ({"env": 3}, r"env: expected str, not 3"),
        ({"env_kwargs": [1]}, r"env_kwargs: expected dict"),
        ({"backend": "jax"}, r"backend: expected vmap, loop, not 'jax'"),
        ({"log_std": "softplus"}, r"log_std: expected clamp, tanh"),
        ({"actor_lr": "big"}, r"actor_lr: expected float or a list of float, not 'big'"),
        ({"target_entropy": "car"}, r"target_entropy: expected float or a list of float/auto or auto, not 'car'"),
        ({"seeds": "a-b"}, r"seeds: seeds are numbers and ranges"),
        ({"seeds": [0.5]}, r"seeds: expected int, not 0\.5"),
        ({"seeds": True}, r"seeds: expected a list of int, not True"),
    ],
)
def test_build_refuses_with_the_key_first(values, message):
    with pytest.raises(DeeprlError, match="^" + message):
        build(Config, values)


def test_build_inverts_the_stored_form():
    config = Config(seeds=(1, 2), actor_lr=(1e-3, 1e-4), env_kwargs={"a": [1]}, wrappers=("m:W",), target_entropy=-2.0)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert build(Config, stored) == config


# --- checks of values ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": ()}, "seeds: at least one"),
        ({"seeds": (-1,)}, r"seeds: must be in 0 \.\. 2\^32 - 1"),
        ({"seeds": (2**32,)}, "seeds: must be in"),
        ({"seeds": (0, 1, 1)}, "seeds: 1 twice: two agents have the same seed and settings"),
        ({"seeds": (1, 1), "actor_lr": (0.1, 0.1)}, "seeds: 1 twice: two agents have the same seed and settings"),
        ({"seeds": (1, 2), "actor_lr": (0.1, 0.2, 0.3)}, "actor_lr: 3 values for 2 seeds"),
        ({"seeds": (1, 2), "discount": (0.9,)}, "discount: 1 values for 2 seeds"),
        ({"steps": 0}, "steps: must be positive, not 0"),
        ({"envs_per_agent": 0}, "envs_per_agent: must be positive"),
        ({"log_every": 0}, "log_every: must be positive"),
        ({"eval_every": -1}, "eval_every: must not be negative"),
        ({"max_hours": -1.0}, "max_hours: must not be negative"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: must be positive"),
        ({"utd": 0.0}, "utd: must be positive"),
        ({"log_std_range": (1.0,)}, "log_std_range: a lower and an upper"),
    ],
)
def test_impossible_values_raise_with_the_key_first(values, message):
    with pytest.raises(DeeprlError, match="^" + message):
        Config(**values)


def test_same_seed_with_other_settings_is_allowed():
    assert Config(seeds=(1, 1), actor_lr=(0.1, 0.2)).varied() == ["actor_lr"]


def test_largest_seed_is_allowed():
    assert Config(seeds=(2**32 - 1,)).seeds == (2**32 - 1,)


# --- members ---


def test_member_has_single_values():
    config = Config(seeds=(5, 6), actor_lr=(1e-3, 1e-4), critic_lr=1e-2, steps=77, learning_starts=7)
    member = config.member(1)
    assert (member.seeds, member.actor_lr, member.critic_lr, member.steps) == ((6,), 1e-4, 1e-2, 77)
    assert config.member(0).actor_lr == 1e-3
    assert isinstance(member, Config)


def test_member_of_a_population_of_one_equals_it():
    config = Config(seeds=(5,))
    assert config.member(0) == config


def test_varied_lists_fields_with_different_values_only():
    config = Config(seeds=(5, 6), actor_lr=(1e-3, 1e-4), critic_lr=(0.1, 0.1), tau=0.1)
    assert config.varied() == ["actor_lr"]


def test_scalars_refuse_a_value_per_agent():
    config = Config(seeds=(5, 6), actor_lr=(1e-3, 1e-4))
    assert config.member(1).scalars("actor_lr", "tau") == {"actor_lr": 1e-4, "tau": 0.005}
    with pytest.raises(DeeprlError, match=r"^actor_lr: still has a value per agent"):
        config.scalars("actor_lr")


def test_per_agent_fields_of_sac():
    names = ["actor_lr", "critic_lr", "alpha_lr", "discount", "tau", "init_alpha", "target_entropy"]
    assert per_agent_fields(sac.Config) == names
    assert per_agent_fields(RunConfig) == []


# --- identity ---

# A value other than the default for every field.
OTHER = {
    "env": "Ant-v5", "env_kwargs": {"a": 1}, "wrappers": ("m:W",), "seeds": (9,), "steps": 7, "envs_per_agent": 2,
    "env_backend": "async", "net": "m:f", "out": "x", "label": "x", "eval_every": 7, "eval_episodes": 3,
    "log_every": 7, "tensorboard": False, "checkpoint_minutes": 1.5, "keep_checkpoints": 9, "snapshot_every": 3,
    "max_hours": 0.5, "schedule": ({"step": 5, "tau": 0.7},), "keep_replay": True, "track": "wandb",
    "device": "cuda", "backend": "loop", "compile": "off", "precision": "strict", "threads": 3,
    "cuda_graphs": False,
    "learning_starts": 7, "utd": 0.5, "batch_size": 7, "buffer_size": 7, "actor_lr": 0.7, "critic_lr": 0.7,
    "alpha_lr": 0.7, "discount": 0.7, "tau": 0.7, "init_alpha": 0.7, "target_entropy": -0.7, "hidden": (7,),
    "critics": 7, "log_std": "tanh", "log_std_range": (-7.0, 1.0), "normalize_obs": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Config)])
def test_hash_changes_exactly_with_what_a_run_computes(name):
    start = {"steps": 100, "learning_starts": 5}
    config, other = Config(**start), Config(**(start | {name: OTHER[name]}))
    assert (config_hash("sac", config) != config_hash("sac", other)) == (name not in NOT_IDENTITY)
    assert (name in identity(config)) == (name not in NOT_IDENTITY)


def test_records_time_limits_and_ways_to_launch_are_no_identity():
    records = {"out", "label", "max_hours", "checkpoint_minutes", "keep_checkpoints", "snapshot_every", "tensorboard"}
    assert records | {"keep_replay", "track", "cuda_graphs"} == NOT_IDENTITY


def test_hash_is_stable_and_names_the_algorithm():
    assert config_hash("sac", Config()) == config_hash("sac", Config())
    assert config_hash("sac", Config()) != config_hash("td3", Config())
    assert len(config_hash("sac", Config())) == 12
    int(config_hash("sac", Config()), 16)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3


# --- settings of the environment are kept as JSON ---


def test_env_kwargs_are_copied_deeply_and_tuples_are_the_lists_that_a_resumed_run_would_get():
    given = {"sizes": (8, 16), "nested": {"gain": 7.0, "names": ["a"]}}
    config = Config(env_kwargs=given)
    given["nested"]["gain"] = 1.0
    given["nested"]["names"].append("b")
    assert config.env_kwargs == {"sizes": [8, 16], "nested": {"gain": 7.0, "names": ["a"]}}
    assert json.loads(json.dumps(config.env_kwargs)) == config.env_kwargs


class Number(int):
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({0: 1.0}, r"^env_kwargs.x: has the key 0; settings are kept as JSON, whose keys are text"),
        ({"a": [{True: 1}]}, r"^env_kwargs.x.a\[0\]: has the key True"),
        (np.zeros(2), r"^env_kwargs.x: is of type numpy.ndarray; settings are kept as JSON"),
        ([np.float64(1.0)], r"^env_kwargs.x\[0\]: is of type numpy.float64"),
        (np.int64(1), r"^env_kwargs.x: is of type numpy.int64"),
        (Number(3), r"^env_kwargs.x: is of type test_config.Number"),
        ({"s": {1, 2}}, r"^env_kwargs.x.s: is of type set"),
    ],
)
def test_env_kwargs_that_json_would_change_are_refused(value, message):
    with pytest.raises(DeeprlError, match=message):
        Config(env_kwargs={"x": value})


def test_every_environment_gets_settings_of_its_own():
    given = {"config": {"gain": 7.0}}
    made = [make_env("test_config:Popper-v0", given).unwrapped.gain for _ in range(3)]
    assert made == [7.0, 7.0, 7.0]
    assert given == {"config": {"gain": 7.0}}


class Popper(gym.Env):
    """Takes its setting out of the dict that it is given."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, config):
        self.gain = config.pop("gain", 1.0)


gym.register("Popper-v0", entry_point=Popper)


# --- settings that come later ---


@dataclasses.dataclass(frozen=True)
class Before(RunConfig):
    width: int = 4


@dataclasses.dataclass(frozen=True)
class After(RunConfig):
    width: int = 4
    depth: int = added(2)
    noise: PerAgent = per_agent(0.5, added=True)


def test_runs_from_before_a_setting_came_are_those_with_its_default(tmp_path):
    write_json(tmp_path / "config.json", {
        "format": 1, "algorithm": "sac", "config": dataclasses.asdict(Before()), "execution": {},
    })  # fmt: skip
    assert stored_run(tmp_path, "sac", After()) is not None
    with pytest.raises(DeeprlError, match=r"holds another run \(depth 2 there, 3 here\)"):
        stored_run(tmp_path, "sac", After(depth=3))
    with pytest.raises(DeeprlError, match=r"holds another run \(noise 0.5 there, 0.1 here\)"):
        stored_run(tmp_path, "sac", After(noise=0.1))


def test_a_setting_that_was_added_changes_no_name_at_its_default():
    assert config_hash("sac", After()) == config_hash("sac", Before())
    assert len({config_hash("sac", c) for c in (After(), After(depth=3), After(noise=0.1), After(width=5))}) == 4


# Of the settings that each algorithm had on 2026-11-29, or when it came. A setting that comes later is `added`, or
# every older run is lost under its default name: mend the field, not these numbers.
HASHES = {
    "bc": "d05e57aa8f4f", "cql": "1ca0f15e7ca5", "dqn": "9eedee4380d8", "edac": "ad49ad757529", "iql": "13511ef2b950",
    "rebrac": "0849c6ce7f54", "riql": "4eabb72f57e7", "rlpd": "f18b473902ec", "sac": "37301499446f",
    "simba": "5a956bc4d333", "simba_v2": "3a30663c1e60", "srl": "1479096b603b", "td3": "731865301ff7",
    "td3_bc": "e210762aacf2", "wsrl": "c1ca2a1b7e12",
}  # fmt: skip


@pytest.mark.parametrize("algorithm", deeprl.ALGORITHMS)
def test_default_runs_keep_their_names(algorithm):
    if algorithm in HASHES:  # algorithms that came later have no older runs
        assert config_hash(algorithm, algorithm_module(algorithm).Config()) == HASHES[algorithm]


# --- auto beside numbers ---


def test_auto_and_numbers_stand_side_by_side():
    config = build(Config, {"seeds": [1, 2, 3], "target_entropy": ["auto", -1, "auto"], "actor_lr": [1e-3, 1e-3, 1e-4]})
    assert config.target_entropy == ("auto", -1.0, "auto")
    assert [config.member(i).target_entropy for i in range(3)] == ["auto", -1.0, "auto"]
    net = sac.build_net(EnvSpec((3,), 2, (-1.0,) * 2, (1.0,) * 2), config)
    states = [sac.init(net, config.member(i), rng.key(0, "init")) for i in range(3)]
    assert [float(s.hparams["target_entropy"]) for s in states] == [-2.0, -1.0, -2.0]
    words = ["--seeds", "1", "2", "--target-entropy", "auto", "-3.5"]
    assert tyro.cli(Config, args=words).target_entropy == ("auto", -3.5)
    with pytest.raises(DeeprlError, match=r"^target_entropy: must be in -1e\+06 .. 1e\+06, not -10000000.0"):
        Config(seeds=(1, 2), target_entropy=("auto", -1e7))


# --- numbers that are none, and bounds ---


def _float_fields(algorithm: str) -> list[tuple[str, str]]:
    """(name, kind) of the settings of an algorithm that hold floats: one, one for each agent, or several."""
    hints = typing.get_type_hints(algorithm_module(algorithm).Config)
    found = []
    for field in dataclasses.fields(algorithm_module(algorithm).Config):
        text = str(hints[field.name])
        if "float" in text or hints[field.name] is float:
            kind = "per agent" if field.metadata.get("per_agent") else "several" if "tuple" in text else "one"
            found.append((field.name, kind))
    return found


ALL_FLOATS = [(a, *f) for a in deeprl.ALGORITHMS for f in _float_fields(a)]


@pytest.mark.parametrize(("algorithm", "name", "kind"), ALL_FLOATS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_setting_is_nan_or_infinite(algorithm: str, name: str, kind: str, number: float) -> None:
    config = algorithm_module(algorithm).Config
    values = {"one": [number], "several": [(number, 1.0), (0.0, number)], "per agent": [number, (0.5, number)]}[kind]
    for value in values:
        seeds = (0, 1) if isinstance(value, tuple) else (0,)
        with pytest.raises(DeeprlError, match=f"^{name}: ") as error:
            build(config, {name: value, "seeds": seeds})
        assert "\n" not in str(error.value)


def test_the_floats_of_every_algorithm_are_tried() -> None:
    assert {algorithm for algorithm, _, _ in ALL_FLOATS} == set(deeprl.ALGORITHMS)
    kinds = {(name, kind) for _, name, kind in ALL_FLOATS}
    assert kinds >= {("max_hours", "one"), ("log_std_range", "several"), ("discount", "per agent")}


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], {"deep": [{"er": float("nan")}]}])
def test_arguments_of_environments_are_numbers_that_json_has(value: object) -> None:
    with pytest.raises(DeeprlError, match=r"^env_kwargs\.speed\S*: must be a finite number, not (nan|inf)$"):
        Config(env_kwargs={"speed": value})


WITH_RANGE = [(a, n) for a, n, kind in ALL_FLOATS if kind == "several" and n.endswith("_range")]


@pytest.mark.parametrize(("algorithm", "name"), WITH_RANGE)
@pytest.mark.parametrize("bounds", [[2.0, -5.0], [-5.0], [-5.0, 0.0, 2.0], [1.0, 1.0]])
def test_a_range_is_two_bounds_in_their_order(algorithm: str, name: str, bounds: list[float]) -> None:
    config = algorithm_module(algorithm).Config
    with pytest.raises(DeeprlError, match=f"^{name}: a lower and an upper bound are needed, not"):
        build(config, {name: bounds})
    assert getattr(build(config, {name: [-4.0, 1.0]}), name) == (-4.0, 1.0)


def test_algorithms_with_a_range_are_tried() -> None:
    assert {("sac", "log_std_range"), ("cql", "log_std_range")} <= set(WITH_RANGE)
