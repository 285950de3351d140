"""Plans: actions that are carried out one after the other, without looking at the environment in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Playing(NamedTuple):
    """What agents remember that carry out plans: the carry of one agent in N environments.

    ahead: the plan, its next action first, [N, L, A]; left: how many of its actions are still to be done, [N];
    action: what was done last, zeros as an episode begins, [N, A].
    """

    ahead: Float[Tensor, "N L A"]
    left: Int[Tensor, " N"]
    action: Float[Tensor, "N A"]


def no_plan(n: int, longest: int, action_dim: int) -> Playing:
    """As n episodes begin. longest: L, of the longest plan."""
    return Playing(torch.zeros(n, longest, action_dim), torch.zeros(n, dtype=torch.int64), torch.zeros(n, action_dim))


def play(
    carry: Playing, plan: Callable[[Float[Tensor, "N A"]], Float[Tensor, "N L A"]], length: int | Int[Tensor, " N"]
) -> tuple[Float[Tensor, "N A"], Playing]:
    """The next action of each plan; where one has ended, of a new one, of which `length` actions will be done.

    plan: new ones, after these last actions. length: 1 <= length <= L.
    """
    anew = carry.left == 0
    ahead = torch.where(anew[:, None, None], plan(carry.action), carry.ahead)
    left = torch.where(anew, length, carry.left) - 1
    action = ahead[:, 0].clone()  # a view would have another layout in the next carry, and be compiled for anew
    return action, Playing(torch.cat([ahead[:, 1:], ahead[:, :1]], 1), left, action)


def held(action: Float[Tensor, "N A"], longest: int) -> Float[Tensor, "N L A"]:
    """The plan of doing the same for so long."""
    return action.unsqueeze(1).expand(-1, longest, -1)
