import dataclasses
import json

import pytest

from deeprl.config import NOT_IDENTITY, RunConfig, build, config_hash, identity, parse_seeds, per_agent_fields
from deeprl.errors import DeeprlError
from deeprl.online import sac
from deeprl.online.sac import Config


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
        ({"target_entropy": "car"}, r"target_entropy: expected float or a list of float or auto, not 'car'"),
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
        ({"seeds": (1, 1)}, "seeds: two agents have the same seed and settings"),
        ({"seeds": (1, 1), "actor_lr": (0.1, 0.1)}, "seeds: two agents have the same seed and settings"),
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
    "max_hours": 0.5,
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
    assert records | {"cuda_graphs"} == NOT_IDENTITY


def test_hash_is_stable_and_names_the_algorithm():
    assert config_hash("sac", Config()) == config_hash("sac", Config())
    assert config_hash("sac", Config()) != config_hash("td3", Config())
    assert len(config_hash("sac", Config())) == 12
    int(config_hash("sac", Config()), 16)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3
