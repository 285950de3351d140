"""Small tasks: Catch, which pixels can be asked of, and a T-maze, which cannot be solved without a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from deeprl.core import rng
from deeprl.core.spec import EnvSpec
from deeprl.envs.device.base import Outcome

Whole = Int[Tensor, ""]


class Falling(NamedTuple):
    """Row and column of the ball, column of the paddle."""

    row: Whole
    column: Whole
    paddle: Whole


class Catch:
    """Catch of bsuite (Osband et al. 2020, arXiv 1908.03568): move the paddle under the ball that falls a row a step.

    The ball begins in the first row in any column, the paddle in the middle of the last one; actions move it left, not,
    or right. The reward, 1 or -1, comes as the ball arrives. size: rows and columns. An observation is the board as a
    vector of zeros and ones, or with `pixels` an image [rows, columns, 3] of bytes, the ball red and the paddle blue.
    """

    def __init__(self, size: Sequence[int] = (10, 5), pixels: bool = False):
        self.size, self.pixels = (int(size[0]), int(size[1])), pixels
        if min(self.size) < 2:
            raise ValueError(f"size: at least 2 rows and 2 columns, not {self.size}")
        self.limit = self.size[0]  # more steps than an episode has
        shape = (*self.size, 3) if pixels else (self.size[0] * self.size[1],)
        self.spec = EnvSpec(shape, 0, (), (), "uint8" if pixels else "float32", actions=3)

    def reset(self, key: rng.Key) -> Falling:
        column = rng.randint(key, (), self.size[1])
        return Falling(torch.zeros_like(column), column, torch.full_like(column, self.size[1] // 2))

    def observe(self, state: Falling) -> Shaped[Tensor, "*O"]:
        rows, columns = (torch.arange(n, device=state.row.device) for n in self.size)
        ball = (rows == state.row)[:, None] & (columns == state.column)
        paddle = (rows == self.size[0] - 1)[:, None] & (columns == state.paddle)
        if self.pixels:
            return torch.stack([ball, torch.zeros_like(ball), paddle], -1).to(torch.uint8) * 255
        return (ball | paddle).to(torch.float32).flatten()

    def step(self, state: Falling, action: Whole, key: rng.Key) -> Outcome:
        paddle = (state.paddle + action - 1).clamp(0, self.size[1] - 1)
        after = Falling(state.row + 1, state.column, paddle)
        arrived = after.row == self.size[0] - 1
        caught = torch.where(after.column == paddle, 1.0, -1.0)
        return Outcome(after, torch.where(arrived, caught, 0.0), arrived)


class Maze(NamedTuple):
    """Where the agent is, [x, y]; on which side the goal is, 1 or -1; steps so far; whether it has been shown."""

    x: Whole
    y: Whole
    goal: Whole
    steps: Whole
    shown: Whole


class TMaze:
    """A T-maze (Bakker 2001; as in Ni et al. 2023, arXiv 2307.03864): what is seen first says where to turn at the end.

    A corridor of `length` cells ends in a junction with the goal above or below it. Actions: right, up, left, down;
    what is blocked leaves the agent where it is. Passive: it begins where the goal is shown; active: one cell to
    the right, and has to go and look. Observations [2]: [0, goal] as it is at the shown cell for the first time,
    [1, y] at the junction and beyond, else [0, 0]. An episode has `length` + 1 steps, two more if active; its last
    one is worth 1 at the goal. penalty: of each step that was not on the straightest way, 0 or negative. Without a
    memory half of the episodes succeed.
    """

    def __init__(self, length: int = 10, active: bool = False, penalty: float = 0.0):
        if length < 1:
            raise ValueError(f"length: at least 1, not {length}")
        self.length, self.active, self.penalty = length, int(active), penalty
        self.limit = length + 2 + 2 * self.active  # more steps than an episode has
        self.spec = EnvSpec((2,), 0, (), (), actions=4)

    def reset(self, key: rng.Key) -> Maze:
        goal = 2 * rng.randint(key, (), 2) - 1
        zero, start = torch.zeros_like(goal), torch.full_like(goal, self.active)
        return Maze(start, zero, goal, zero, zero)

    def observe(self, state: Maze) -> Shaped[Tensor, "2"]:
        ahead = state.x >= self.active + self.length
        first = (state.x == 0) & (state.shown == 0)
        side = torch.where(ahead, state.y, torch.where(first, state.goal, 0))
        return torch.stack([ahead.to(torch.float32), side.to(torch.float32)])

    def step(self, state: Maze, action: Whole, key: rng.Key) -> Outcome:
        end = self.active + self.length
        seen = torch.where(state.x == 0, 1, state.shown)
        level, junction = state.y == 0, state.x == end
        along = torch.where(level, (action == 0).to(torch.int64) - (action == 2).to(torch.int64), 0)
        turn = torch.where(junction & level, (action == 1).to(torch.int64) - (action == 3).to(torch.int64), 0)
        back = torch.where(action == 3, state.y > 0, (action == 1) & (state.y < 0))
        y = torch.where(back, 0, state.y + turn)
        after = Maze((state.x + along).clamp(0, end), y, state.goal, state.steps + 1, seen)
        over = after.steps >= self.length + 1 + 2 * self.active
        late = after.x < after.steps - self.active
        reward = torch.where(over, (after.y == after.goal).to(torch.float32), torch.where(late, self.penalty, 0.0))
        return Outcome(after, reward, over)
