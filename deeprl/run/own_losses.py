"""The algorithm that a run began from goes on with its own losses: what WSRL is compared with (`wsrl --loss own`).

Its networks, state and settings are taken over as they are (`pretrained.source_module`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from deeprl.core import rng
from deeprl.core.population import member as take_member
from deeprl.core.spec import Actions, Batch, Carry, First, Obs
from deeprl.run.pretrained import source_module

_DELAYED = {"td3_bc": -1, "rebrac": 0}  # in which of `policy_delay` updates the policy takes part
Update = Callable[[Any, Batch, rng.Key, Tensor | None], tuple[Any, dict[str, Tensor], tuple[()]]]


def own_init(net: Any, config: Any, key: rng.Key, before: Any = None) -> Any:
    """The state of an agent: `before`, or where that is restored later a new one like it."""
    module, settings = source_module(config)
    return module.init(net, settings, key) if before is None else before


def deterministic(config: Any) -> bool:
    """Whether its policy acts without noise of its own."""
    settings = source_module(config)[1]
    return config.source["algorithm"] in _DELAYED or getattr(settings, "actor", "") == "deterministic"


def own_act(
    net: Any, config: Any, state: Any, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1], with Gaussian noise of `config.exploration_noise` on those of a deterministic policy."""
    module, settings = source_module(config)
    action, carry = module.act(net, settings, state, carry, obs, is_first, key, explore=explore)
    if explore and deterministic(config):
        noise = rng.normal(rng.fold_in(key, 1), action.shape, action.dtype)
        action = (action + config.exploration_noise * noise).clamp(-1.0, 1.0)
    return action, carry


def updates(net: Any, config: Any) -> Sequence[Update]:
    """Its updates of one agent, (state, batch, key, returns) -> as `update` of an algorithm, each in its turn.

    Update number i is that of place i modulo their number. returns: G of the rows, for Cal-QL. The weight of imitation
    or conservatism falls from 1 to `config.penalty_end` in a line.
    """
    (module, settings), algorithm = source_module(config), config.source["algorithm"]
    total = max(config.updates() // len(config.seeds), 1)

    def own(state: Any, batch: Batch, key: rng.Key, returns: Tensor | None, **choice: bool) -> Any:
        done = ((state.step - config.source["step"]) / total).clamp(0.0, 1.0)
        faded = state._replace(hparams=_faded(algorithm, state.hparams, 1.0 + (config.penalty_end - 1.0) * done))
        more = {"cql": (returns,), "rebrac": (torch.full_like(batch.action, torch.nan),)}.get(algorithm, ())
        new, metrics, _ = module.update(net, settings, faded, batch, key, *more, **choice)
        return new._replace(hparams=state.hparams), metrics, ()

    if algorithm not in _DELAYED:
        return [own]
    turns: list[Update] = [functools.partial(own, policy=False)] * settings.policy_delay
    turns[_DELAYED[algorithm]] = functools.partial(own, policy=True)
    return turns


def _faded(algorithm: str, hparams: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """The settings of an agent where imitation or conservatism counts by `weight` of what it did."""
    if algorithm == "td3_bc":  # the weight of its critic, against imitation at 1
        return hparams | {"alpha": hparams["alpha"] / weight}
    name = {"cql": "cql_alpha", "rebrac": "actor_penalty"}.get(algorithm)
    return hparams | {name: hparams[name] * weight} if name else hparams


# --- returns, which Cal-QL's losses look at ---


def returns_of(config: Any) -> Literal["", "dense", "sparse"]:
    """Whether its losses look at the returns of rows, and where an episode's rewards are all alike, how."""
    if config.loss != "own" or not config.source["config"].get("calibrated"):
        return ""
    return "sparse" if config.source["config"]["sparse_rewards"] else "dense"


def rows_of(agents: Any, config: Any) -> tuple[Any, ...]:
    """What a learner of `wsrl` draws from: the replay's rows and their number, the kept rows, each agent's part there.

    agents: `OffPolicy`. Behind both kinds of rows stand their returns, where they are kept.
    """
    data: tuple[Any, ...] = (agents.replay.data,)
    kept, part = tuple[Any, ...](), tuple[Any, ...]()
    if agents.returns is not None:
        data += (agents.returns.values,)
    if agents.kept is not None:
        kept, part = (agents.kept.arrays,), (agents.kept.first, agents.kept.size)
    if agents.kept is not None and agents.returns is not None:
        discounts = agents.agents.state.hparams["discount"].tolist()
        facts = [take_member(agents.agents.state.facts, i) for i in range(len(discounts))]
        returns, start = agents.kept.returns_to_go(discounts, returns_of(config) == "sparse", facts)
        kept, part = (*kept, returns), (*part, start)
    return data, agents.replay.size, kept, part
