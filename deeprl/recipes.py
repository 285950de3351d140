"""Recipes: the settings of published experiments by name, with their sources. `deeprl train simba --recipe dmc ...`

A recipe gives other defaults; settings that are named beside it count more. A run stores its settings, not the name of
a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deeprl.errors import DeeprlError, nearest


class Recipe(NamedTuple):
    """Settings that differ from an algorithm's defaults, and where they were published."""

    settings: dict[str, Any]
    source: str


def discount_of(episode_steps: int, action_repeat: int = 1) -> float:
    """A discount with a horizon of a fifth of an episode, in [0.95, 0.995] (TD-MPC2, arXiv 2310.16828, App. H).

    episode_steps: simulator steps of a whole episode; the discount is that of one decision.
    """
    fifth = episode_steps / action_repeat / 5.0
    return min(max((fifth - 1.0) / fifth, 0.95), 0.995)


# The DeepMind Control Suite never terminates: SimBa and SimbaV2 have one critic there, without the pessimism of a
# minimum over two. A million simulator steps are half as many decisions. The discount is that of its episodes; a recipe
# does not follow when other settings make them shorter.
_DMC = {
    "env": "dmc/walker-run",
    "env_kwargs": {"action_repeat": 2},
    "steps": 500_000,
    "utd": 2.0,
    "learning_starts": 5_000,
    "discount": discount_of(1000, 2),
}
_MUJOCO = {"steps": 1_000_000, "utd": 2.0, "learning_starts": 5_000, "discount": discount_of(1000), "critics": 2}

# Dopamine's: an update for every four decisions, Adam with a large epsilon.
_DOPAMINE = {"train_every": 4, "utd": 0.25, "batch_size": 32}

_IQL = "arXiv 2110.06169, App. B; ikostrikov/implicit_q_learning, configs"
_RARE = {"eval_every": 100_000, "eval_episodes": 100}  # AntMaze: a return is 0 or 1

# RIQL's (sigma, alpha, K) on halfcheetah, walker2d and hopper for each attack and element.
_RIQL_TABLE = {
    "random-observation": ((0.1, 0.1, 5), (0.1, 0.25, 5), (0.1, 0.25, 3)),
    "random-action": ((0.5, 0.25, 3), (0.5, 0.1, 5), (0.1, 0.25, 5)),
    "random-reward": ((3.0, 0.25, 5), (3.0, 0.1, 5), (1.0, 0.25, 3)),
    "random-dynamics": ((3.0, 0.25, 5), (1.0, 0.25, 3), (1.0, 0.5, 5)),
    "adversarial-observation": ((0.1, 0.1, 5), (1.0, 0.25, 5), (1.0, 0.25, 5)),
    "adversarial-action": ((1.0, 0.1, 5), (1.0, 0.1, 5), (1.0, 0.25, 5)),
    "adversarial-reward": ((1.0, 0.1, 5), (3.0, 0.1, 5), (0.1, 0.25, 5)),
    "adversarial-dynamics": ((1.0, 0.1, 5), (1.0, 0.25, 5), (1.0, 0.5, 5)),
}
_RIQL = {
    f"{env}-{attack}": Recipe(
        {"huber_threshold": 1.0 / sigma**2, "quantile": alpha, "critics": critics, "steps": 3_000_000},
        "arXiv 2310.12955; YangRui2015/RIQL, RIQL_config.py",
    )
    for attack, row in _RIQL_TABLE.items()
    for env, (sigma, alpha, critics) in zip(("halfcheetah", "walker2d", "hopper"), row, strict=True)
}

# ReBRAC's weights of the two penalties, (policy, critic), on each dataset, and what its domains differ in.
_REBRAC_TABLE = {
    "halfcheetah": {
        "random": (0.001, 0.1), "medium": (0.001, 0.01), "expert": (0.01, 0.01),
        "medium-expert": (0.01, 0.1), "medium-replay": (0.01, 0.001), "full-replay": (0.001, 0.1),
    },
    "hopper": {
        "random": (0.001, 0.01), "medium": (0.01, 0.01), "expert": (0.1, 0.1),
        "medium-expert": (0.1, 0.01), "medium-replay": (0.05, 0.5), "full-replay": (0.01, 0.01),
    },
    "walker2d": {
        "random": (0.01, 0.0), "medium": (0.05, 0.1), "expert": (0.01, 0.5),
        "medium-expert": (0.01, 0.01), "medium-replay": (0.05, 0.01), "full-replay": (0.01, 0.01),
    },
    "antmaze": {
        "umaze": (0.003, 0.002), "medium-play": (0.001, 0.0005), "large-play": (0.002, 0.001),
        "umaze-diverse": (0.003, 0.001), "medium-diverse": (0.001, 0.0), "large-diverse": (0.002, 0.002),
    },
    "maze2d": dict.fromkeys(("umaze", "medium", "large"), (0.003, 0.001)),
    "pen": {"human": (0.1, 0.5), "cloned": (0.05, 0.5), "expert": (0.01, 0.01)},
    "door": {"human": (0.1, 0.1), "cloned": (0.01, 0.1), "expert": (0.05, 0.01)},
    "hammer": {"human": (0.01, 0.5), "cloned": (0.1, 0.5), "expert": (0.01, 0.01)},
    "relocate": {"human": (0.1, 0.01), "cloned": (0.1, 0.01), "expert": (0.05, 0.01)},
}  # fmt: skip
_SMALL = {"batch_size": 256, "actor_lr": 3e-4, "critic_lr": 3e-4}
_REBRAC_DOMAINS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("pen", "door", "hammer", "relocate"), _SMALL),
    "maze2d": _SMALL | {"eval_episodes": 100},
    "antmaze": _SMALL
    | {"critic_lr": 5e-5, "discount": 0.999, "rewards": "times-100", "eval_every": 50_000, "eval_episodes": 100},
}
_REBRAC = {
    f"{task}-{data}": Recipe(
        {"actor_penalty": actor, "critic_penalty": critic} | _REBRAC_DOMAINS.get(task, {}),
        "arXiv 2305.09836; corl-team/CORL, configs/offline/rebrac",
    )
    for task, row in _REBRAC_TABLE.items()
    for data, (actor, critic) in row.items()
}

# CORL's and Cal-QL's CQL, but for a learned scale and offset of log sigma (at first 1 and -1), CORL's default layers of
# the policy, its second critic (3 layers whatever the first has), its rewards on hopper-medium (5000 / (best - worst
# return of an episode) r - 1) and Cal-QL's clip of data's actions to 0.99999. Cal-QL's binary Adroit data are prepared
# before: failed episodes left out, the others cut at their last success, every success a terminal.
_CORL_CQL = {"bc_steps": 0, "start": "orthogonal-small-head", "log_std_range": (-20.0, 2.0), "init_lagrange": math.e}
_CALQL = _CORL_CQL | {"calibrated": True, "sparse_rewards": True, "backup": "min-then-max", "eval_episodes": 20}

# WSRL's networks, which are the same offline and online; log sigma between the logarithms of 1e-5 and 10.
_WSRL_NETS = {"critics": 10, "target_critics": 2, "critic_layer_norm": True, "start": "orthogonal-small-last"}
_WSRL_CQL = _WSRL_NETS | {"actor_layer_norm": True, "actor_hidden": (256, 256), "critic_hidden": (256, 256)}
_WSRL_CQL |= {"log_std_range": (math.log(1e-5), math.log(10.0)), "bc_steps": 0, "backup": "min-then-max"}
_WSRL_CQL |= {"steps": 250_000, "eval_every": 20_000, "eval_episodes": 20}
_WSRL = "arXiv 2412.07762; zhouzypaul/wsrl, experiments"

_RLPD = "arXiv 2302.02948; ikostrikov/rlpd, README"
_RLPD_SPARSE = {"backup_entropy": False, "actor_hidden": (256, 256, 256), "critic_hidden": (256, 256, 256)}

RECIPES: dict[str, dict[str, Recipe]] = {
    "bc": {"ten-percent": Recipe({"best": 0.1}, "10%BC, arXiv 2106.01345, Sec. 5.1, by episodes as in CORL")},
    "cql": {
        "wsrl-pretrain": Recipe(_WSRL_CQL, _WSRL),
        "antmaze": Recipe(
            {"rewards": "cql-antmaze", "lagrange": 1.0, "eval_episodes": 100},  # theirs: 5, of cql_alpha * gap
            "arXiv 2006.04779; aviralkumar2907/CQL, README and d4rl/examples/cql_antmaze_new.py",
        ),
        "corl-mujoco": Recipe(
            _CORL_CQL | {"cql_alpha": 10.0, "actor_lr": 3e-5, "normalize_obs": "obs"},
            "arXiv 2210.07105; corl-team/CORL, configs/offline/cql",
        ),
        "corl-adroit": Recipe(
            _CORL_CQL | {"cql_alpha": 1.0, "normalize_obs": "obs"},
            "arXiv 2210.07105; corl-team/CORL, configs/offline/cql/pen/human_v1.yaml",
        ),
        "corl-maze2d": Recipe(
            _CORL_CQL
            | {"cql_alpha": 10.0, "actor_lr": 3e-5, "lagrange": 5.0, "normalize_obs": "obs", "eval_episodes": 100},
            "arXiv 2210.07105; corl-team/CORL, configs/offline/cql/maze2d",
        ),
        "corl-antmaze": Recipe(
            _CORL_CQL
            | {"rewards": "calql-antmaze", "lagrange": 0.8, "gap_floor": -200.0, "backup": "min-then-max"}
            | {"critic_hidden": (256,) * 5, "eval_every": 50_000, "eval_episodes": 100},
            "arXiv 2210.07105; corl-team/CORL, configs/offline/cql/antmaze",
        ),
        "calql-antmaze": Recipe(
            _CALQL
            | {"rewards": "calql-antmaze", "lagrange": 0.8, "eval_every": 50_000}
            | {"actor_hidden": (256, 256), "critic_hidden": (256,) * 4},
            "arXiv 2303.05479, offline phase; nakamotoo/Cal-QL, scripts/run_antmaze.sh",
        ),
        "calql-adroit": Recipe(
            _CALQL
            | {"rewards": "calql-adroit", "cql_alpha": 1.0, "steps": 20_000, "eval_every": 2_000}
            | {"actor_hidden": (512, 512), "critic_hidden": (512,) * 3},
            "arXiv 2303.05479, offline phase on binary rewards; nakamotoo/Cal-QL, scripts/run_adroit.sh",
        ),
    },
    "dqn": {
        "classic": Recipe(
            _DOPAMINE
            | {"env": "CartPole-v1", "steps": 100_000, "learning_starts": 500, "batch_size": 128, "buffer_size": 50_000}
            | {"target_every": 100, "lr": 1e-3, "adam_eps": 3.125e-4, "epsilon_steps": 1.0, "epsilon_end": 0.01}
            | {"hidden": (256, 256), "eval_every": 5_000},
            "arXiv 1812.06110; google/dopamine, dqn_cartpole.gin, but for its 512 units and scaled observations",
        ),
        "minatar": Recipe(
            _DOPAMINE
            | {"env": "MinAtar/Breakout-v1", "steps": 5_000_000, "learning_starts": 5_000, "buffer_size": 100_000}
            | {"target_every": 1_000, "lr": 2.5e-4, "adam_eps": 3.125e-4}
            | {"epsilon_steps": 100_000.0, "epsilon_end": 0.1, "eval_every": 20_000},
            "arXiv 2011.14826, google/dopamine; exploration and warm-up of arXiv 1903.03176",
        ),
        "atari": Recipe(
            _DOPAMINE
            | {"env": "ALE/Pong-v5", "steps": 50_000_000, "learning_starts": 20_000, "buffer_size": 1_000_000}
            | {"target_every": 8_000, "lr": 6.25e-5, "adam_eps": 1.5e-4, "reward_clip": 1.0}
            | {"epsilon_steps": 250_000.0, "epsilon_end": 0.01, "eval_epsilon": 0.001, "eval_every": 250_000},
            "arXiv 1812.06110, with Adam and squared error; google/dopamine",
        ),
    },
    "iql": {
        "wsrl-pretrain": Recipe({"critics": 10, "critic_layer_norm": True, "steps": 250_000}, _WSRL),
        "mujoco": Recipe({"rewards": "return-range", "expectile": 0.7, "temperature": 3.0}, _IQL),
        "antmaze": Recipe({"rewards": "minus-one", "expectile": 0.9, "temperature": 10.0} | _RARE, _IQL),
        "kitchen": Recipe({"expectile": 0.7, "temperature": 0.5, "dropout": 0.1}, _IQL),
        "adroit": Recipe({"expectile": 0.7, "temperature": 0.5, "dropout": 0.1}, _IQL),
    },
    "rebrac": _REBRAC,
    "riql": _RIQL,
    "rlpd": {
        "locomotion": Recipe({"steps": 250_000}, _RLPD),
        "antmaze": Recipe(
            _RLPD_SPARSE | {"target_critics": 1, "rewards": "minus-one", "steps": 300_000, "eval_episodes": 100}, _RLPD
        ),
        "adroit": Recipe(_RLPD_SPARSE | {"steps": 1_000_000}, _RLPD),
    },
    "sac": {
        "dmc": Recipe(
            _DMC | {"log_std": "tanh", "log_std_range": (-10.0, 2.0)},
            "the baseline of SimBa (arXiv 2410.09754): SonyResearch/simba, configs/agent/sac.yaml",
        )
    },
    "simba": {
        "dmc": Recipe(
            _DMC | {"critics": 1},
            "arXiv 2410.09754; SonyResearch/simba, configs/env/dmc_hard.yaml (easy and medium tasks: half the steps)",
        ),
        "mujoco": Recipe(_MUJOCO, "arXiv 2502.15280, where SimBa ran on Gymnasium; DAVIAN-Robotics/SimbaV2, configs"),
    },
    "simba_v2": {
        "dmc": Recipe(
            _DMC | {"critics": 1, "lr_horizon": 500_000},
            "arXiv 2502.15280; DAVIAN-Robotics/SimbaV2, configs/agent/simbaV2.yaml and configs/env/dmc.yaml",
        ),
        "mujoco": Recipe(
            _MUJOCO | {"lr_horizon": 1_000_000}, "arXiv 2502.15280; DAVIAN-Robotics/SimbaV2, configs/env/mujoco.yaml"
        ),
    },
}


def with_recipe(algorithm: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which `recipe`, if it is there, has been replaced by those that it names: ours, or a file `X.toml`.

    Raises DeeprlError with the nearest names for a recipe that the algorithm does not have, or of a file that is none.
    """
    settings = dict(values)
    name = settings.pop("recipe", None)
    if name is None:
        return settings
    known = RECIPES.get(algorithm, {})
    if str(name).endswith(".toml"):
        known = {name: read_recipe(name, algorithm)}
    if name not in known:
        has = f"{algorithm} has {', '.join(known)}" if known else f"{algorithm} has none"
        raise DeeprlError(f"recipe: unknown recipe {name!r}{nearest(str(name), known)}; {has}")
    named = settings.get("env_kwargs")
    if named and isinstance(named, Mapping):  # action_repeat stays when a camera is named, and goes where {} is
        settings["env_kwargs"] = {**known[name].settings.get("env_kwargs", {}), **named}
    return known[name].settings | settings


def read_recipe(path: str | Path, algorithm: str) -> Recipe:
    """A recipe from a file such as `deeprl tune` writes: algorithm, source, and a table of settings.

    Raises DeeprlError, naming the file, for one that cannot be read or is of another algorithm.
    """
    from deeprl.config.toml import read_toml  # `deeprl list` must not wait for what that package imports

    try:
        _, content = read_toml(path)
    except DeeprlError as error:
        raise DeeprlError(f"recipe: {error}") from error
    if content.get("algorithm") != algorithm:
        raise DeeprlError(f"recipe: {path} is of {content.get('algorithm', 'no algorithm')}, not of {algorithm}")
    if not isinstance(content.get("settings"), dict):
        raise DeeprlError(f"recipe: {path} has no table [settings]")
    return Recipe(content["settings"], str(content.get("source", "")))
