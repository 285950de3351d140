"""Search spaces of the algorithms, with their sources. All are per-agent settings, so that trials train together.

Ranges of learning rate, discount, target rate and exploration are those of rl-baselines3-zoo (`hyperparams_opt.py`),
which has one learning rate for all networks, as have these. What only our algorithms have is searched around its
published values, by the factors that are named beside it.
"""

from __future__ import annotations

from typing import Any

from deeprl.config import RunConfig
from deeprl.errors import DeeprlError
from deeprl.tuning.spaces import Space, space_of

_ZOO = "rl-baselines3-zoo, hyperparams_opt.py"
_DISCOUNT = {"low": 0.97, "high": 0.9999, "scale": "complement"}
_TAU = {"low": 0.001, "high": 0.08, "scale": "log"}


def _lr(*settings: str, low: float = 1e-5, high: float = 2e-3) -> dict[str, Any]:
    return {"settings": list(settings), "low": low, "high": high, "scale": "log"}


def _log(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high, "scale": "log"}


_SAC = {"lr": _lr("actor_lr", "critic_lr", "alpha_lr"), "discount": _DISCOUNT, "tau": _TAU}
_TD3 = {"lr": _lr("actor_lr", "critic_lr"), "discount": _DISCOUNT, "tau": _TAU}
_IQL = {
    "lr": _lr("actor_lr", "critic_lr", "value_lr"),
    "expectile": {"low": 0.5, "high": 0.95},
    "temperature": _log(0.5, 10.0),
}

SPACES: dict[str, tuple[dict[str, Any], str]] = {
    "bc": (
        {"lr": _lr("actor_lr"), "weight_decay": _log(1e-6, 1e-1)},
        f"learning rate: {_ZOO}; decay of AdamW around 1e-2",
    ),
    "cql": (
        {"cql_alpha": _log(0.5, 20.0), "actor_lr": _log(1e-5, 1e-3), "critic_lr": _log(1e-5, 2e-3), "tau": _TAU},
        "alpha around the 1 to 10 of its recipes (arXiv 2006.04779, 2210.07105); learning rates around its own",
    ),
    "dqn": (
        {
            "lr": _lr("lr"),
            "discount": _DISCOUNT,
            "epsilon_end": {"low": 0.0, "high": 0.2},
            "epsilon_steps": {"low": 0.005, "high": 0.5, "times_steps": True},
        },
        _ZOO,
    ),
    "edac": ({"eta": _log(0.1, 1000.0), **_SAC}, f"eta from 0.1 to 1000 as in arXiv 2110.01548; {_ZOO}"),
    "iql": (_IQL, "expectile 0.7 to 0.9, temperature 0.5 to 10 (arXiv 2110.06169, App. B), and beside them"),
    "rebrac": (
        {"actor_penalty": _log(0.0005, 0.5), "critic_penalty": _log(0.0005, 0.5), "lr": _lr("actor_lr", "critic_lr")},
        "penalties: from the smallest to the largest of its recipes (arXiv 2305.09836)",
    ),
    "riql": (
        {**_IQL, "quantile": {"low": 0.05, "high": 0.5}, "huber_threshold": _log(0.1, 100.0)},
        "quantile, and sigma from 0.1 to 3, of its recipes (arXiv 2310.12955), and beside them",
    ),
    "rlpd": (_SAC, _ZOO),
    "sac": (_SAC, _ZOO),
    "simba": (_SAC | {"weight_decay": _log(1e-4, 1e-1)}, f"{_ZOO}; weight decay around 1e-2 (arXiv 2410.09754)"),
    "simba_v2": (
        _SAC | {"final_lr_share": {"low": 0.0, "high": 1.0}},
        f"{_ZOO}; decay of the learning rate from none to all (arXiv 2502.15280: one half)",
    ),
    "srl": ({"lr": _lr("actor_lr", "critic_lr", "model_lr", "alpha_lr"), "discount": _DISCOUNT, "tau": _TAU}, _ZOO),
    "td3": (
        _TD3 | {"exploration_noise": {"low": 0.0, "high": 0.5}},
        f"{_ZOO}; noise up to five times that of arXiv 1802.09477",
    ),
    "td3_bc": ({"alpha": _log(0.1, 40.0), **_TD3}, f"alpha around the 1 to 4 of arXiv 2106.06860; {_ZOO}"),
    "wsrl": (_SAC, _ZOO),
}


def published_space(algorithm: str, config: type[RunConfig]) -> Space:
    """The library's own space of an algorithm. Raises DeeprlError for one that has none."""
    if algorithm not in SPACES:
        raise DeeprlError(f"{algorithm} has no search space of its own; name one with --space FILE")
    tables, source = SPACES[algorithm]
    return space_of(tables, config, source)
