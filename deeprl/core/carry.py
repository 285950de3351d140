"""What agents remember from step to step: a `carry`, which begins anew in every episode.

An algorithm whose policy has a memory defines beside `act`, for one agent,

    init_carry(net, config, n) -> carry       as n episodes begin: a tree of tensors [n, ...]

and its `act` takes and returns such trees. A carry with a field `action` [n, A] gets there what was done last, also
where this was drawn at random. Without `init_carry` there is nothing to remember: ().
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeprl.core.tree import tree_leaves, tree_map

Begin = Callable[[int], Any]  # n -> the carry of one agent as n episodes begin
InitCarry = Callable[[Any, Any, int], Any]


def no_carry(net: Any, config: Any, n: int) -> tuple[()]:
    """The memory of those who have none."""
    return ()


def remembering(act: Callable[..., Any], init_carry: InitCarry) -> Callable[..., Any]:
    """`act` of an algorithm, whose carry begins anew in the rows of which `is_first` is true."""
    return act if init_carry is no_carry else functools.partial(_remembered, act, init_carry)


def _remembered(
    act: Callable[..., Any],
    init_carry: InitCarry,
    net: Any,
    config: Any,
    state: Any,
    carry: Any,
    obs: Tensor,
    is_first: Tensor,
    key: Any,
    *,
    explore: bool,
) -> Any:
    begun = fresh(functools.partial(init_carry, net, config), len(obs), obs.device)
    now = where_rows(is_first, begun, carry)
    return act(net, config, state, now, obs, is_first, key, explore=explore)


def where_rows(which: Bool[Tensor, " n"], new: Any, old: Any) -> Any:
    """A carry with the rows of `new` where `which` is true, and of `old` elsewhere."""

    def chosen(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(which.reshape(-1, *[1] * (other.dim() - 1)), one, other)

    return tree_map(chosen, new, old)


def fresh(begin: Begin, n: int, device: torch.device | str = "cpu") -> Any:
    """The carry of an agent, [n, ...], as n episodes begin."""
    with torch.device(device):
        return begin(n)


def fresh_of_all(begin: Begin, agents: int, n: int, device: torch.device | str = "cpu") -> Any:
    """That of a population, [S, n, ...]."""
    return tree_map(lambda leaf: leaf.expand(agents, *leaf.shape).clone(), fresh(begin, n, device))


def with_action(carry: Any, action: Float[Tensor, "*N A"]) -> Any:
    """The carry of agents that have done `action`."""
    return carry._replace(action=action) if "action" in getattr(carry, "_fields", ()) else carry


def width(carry: Any, otherwise: int = 0) -> int:
    """The number of episodes of an agent's carry; where there is nothing to remember, `otherwise`."""
    return next((len(leaf) for leaf in tree_leaves(carry)), otherwise)
