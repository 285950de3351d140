"""MinAtar's games as pure functions of tensors (Young & Tian 2019, arXiv 1903.03176), all but Seaquest.

Written from the rules of the games. Each step is that of the package `minatar` 1.0.15 where chance decides alike; what
is different from it:

- Chance comes from keys: `draws` decides all of a step, and `step_with` plays it.
- A reset takes the action before for `NOOP`, as `deeprl.envs.make.SeededStart` does with a seed. Sticky actions there
  remember the last action of the game before; here an episode depends on its keys and actions alone.
- Seaquest (`deeprl.envs.device.minatar_seaquest`) has a fixed number of places for what moves.
- Rewards are float32.

Games have the same six actions (`NOOP` .. `FIRE`), of which each environment has its own set. A frame is bool
[row, column, plane], row 0 on top. A timer at 0 is wound up again as what it times is done; others go down by 1.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deeprl.core import rng
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import tree_map
from deeprl.envs.device.base import Outcome

NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)

Whole = Int[Tensor, ""]
Flag = Bool[Tensor, ""]
Number = Float[Tensor, ""]
Plane = Bool[Tensor, "10 10"]
Frame = Bool[Tensor, "10 10 C"]


def line(like: Tensor) -> Int[Tensor, "10"]:
    """0 .. 9, the rows or the columns."""
    return torch.arange(10, device=like.device)


def cell(y: Whole, x: Whole) -> Plane:
    """A plane with that cell alone, none where it is off the grid.

    By the number of the cell: compiled code would find row and column of each by divisions.
    """
    at = torch.arange(100, device=y.device)
    return ((at == 10 * y + x) & (x >= 0) & (x <= 9)).unflatten(-1, (10, 10))


def in_lanes(lanes: Bool[Tensor, "*n 8 10"]) -> Bool[Tensor, "*n 10 10"]:
    """Planes from their rows 1 .. 8, with nothing in the others."""
    at = line(lanes)
    return lanes.index_select(-2, (at - 1).clamp(0, 7)) & ((at >= 1) & (at <= 8))[:, None]


def shifted(planes: Bool[Tensor, "*n 10 10"], by: int, axis: int) -> Bool[Tensor, "*n 10 10"]:
    """Moved by 1 or -1 along the rows (axis -2) or columns (-1); what leaves the grid is gone."""
    at = line(planes)
    stay = at != (0 if by > 0 else 9)
    return planes.roll(by, axis) & (stay[:, None] if axis == -2 else stay)


def moved(action: Whole, less: int, more: int) -> Whole:
    """-1, 0 or 1 for two opposite actions and the others."""
    return (action == more).long() - (action == less).long()


def frame(*planes: Plane) -> Frame:
    return torch.stack(planes, -1)


class MinAtarState(NamedTuple):
    """A game, and the action that was carried out last."""

    game: Any
    last: Whole


class MinAtarChance(NamedTuple):
    """What chance decides in a step. repeat: the last action instead of the one given; game: the game's own draws."""

    repeat: Flag
    game: Any


class MinAtarGame(abc.ABC):
    """What the games have in common: sets of actions, and sticky ones.

    use_minimal_action_set: the actions that matter (ids -v1), else all six (-v0). sticky_action_prob: of a step that
    repeats the action carried out last. difficulty_ramping: whether games get faster, of those that can.
    """

    planes: int
    minimal: tuple[int, ...]
    numbers = 0  # that a step of the game draws
    limit = 0

    def __init__(
        self, use_minimal_action_set: bool = True, sticky_action_prob: float = 0.1, difficulty_ramping: bool = True
    ):
        self.actions = self.minimal if use_minimal_action_set else tuple(range(6))
        self.sticky, self.ramping = sticky_action_prob, difficulty_ramping
        self.spec = EnvSpec((10, 10, self.planes), 0, (), (), "bool", len(self.actions))

    @abc.abstractmethod
    def begin_game(self, key: rng.Key) -> Any:
        """The state of a new game."""

    def chances(self, numbers: Float[Tensor, " n"]) -> Any:
        """What chance decides in a step of the game, from its `numbers` in [0, 1)."""
        return ()

    @abc.abstractmethod
    def play(self, game: Any, action: Whole, chance: Any) -> Outcome:
        """A step of the game itself."""

    @abc.abstractmethod
    def show(self, game: Any) -> Frame:
        """The frame of a game."""

    def reset(self, key: rng.Key) -> MinAtarState:
        game = tree_map(torch.clone, self.begin_game(key))  # no two parts in one memory: a traced step tells them apart
        return MinAtarState(game, torch.zeros((), dtype=torch.int64, device=key.device))

    def observe(self, state: MinAtarState) -> Frame:
        return self.show(state.game)

    def draws(self, key: rng.Key) -> MinAtarChance:
        """All that chance decides in a step."""
        numbers = rng.uniform(key, (1 + self.numbers,))
        return MinAtarChance(numbers[0] < self.sticky, self.chances(numbers[1:]))

    def step(self, state: MinAtarState, action: Whole, key: rng.Key) -> Outcome:
        return self.step_with(state, action, self.draws(key))

    def step_with(self, state: MinAtarState, action: Whole, chance: MinAtarChance) -> Outcome:
        """A step in which chance has decided."""
        number = action
        for i, one in enumerate(self.actions):
            number = torch.where(action == i, one, number) if i != one else number
        number = torch.where(chance.repeat, state.last, number)
        after = self.play(state.game, number, chance.game)
        return Outcome(MinAtarState(after.state, number), after.reward.to(torch.float32), after.terminated)


class BreakoutState(NamedTuple):
    """Ball, the cell that it came from, its direction (0 up left, 1 up right, 2 down right, 3 down left), and paddle.

    struck: whether there was a brick in its way in the step before; it breaks no other right after that.
    """

    x: Whole
    y: Whole
    last_x: Whole
    last_y: Whole
    heading: Whole
    paddle: Whole
    bricks: Plane
    struck: Flag


class Breakout(MinAtarGame):
    """Throw the ball back at the bricks, 1 each; over when it is missed. New bricks come when all are gone."""

    planes = 4
    minimal = (NOOP, LEFT, RIGHT)

    def begin_game(self, key: rng.Key) -> BreakoutState:
        right = rng.uniform(key, ()) < 0.5
        zero = torch.zeros_like(right, dtype=torch.int64)
        x, heading = torch.where(right, 9, zero), torch.where(right, 3, zero + 2)
        return BreakoutState(x, zero + 3, x, zero + 3, heading, zero + 4, self._wall(zero), torch.zeros_like(right))

    def _wall(self, like: Tensor) -> Plane:
        at = torch.arange(100, device=like.device)
        return ((at >= 10) & (at < 40)).unflatten(-1, (10, 10))

    def play(self, game: BreakoutState, action: Whole, chance: tuple[()]) -> Outcome:
        paddle = (game.paddle + moved(action, LEFT, RIGHT)).clamp(0, 9)
        heading, bricks = game.heading, game.bricks
        x = game.x + torch.where((heading == 1) | (heading == 2), 1, -1)
        y = game.y + torch.where(heading >= 2, 1, -1)
        heading = torch.where((x < 0) | (x > 9), heading ^ 1, heading)
        x = x.clamp(0, 9)
        ahead = cell(y, x)
        brick = (ahead & bricks).any()
        hit, top, bottom = brick & ~game.struck, y < 0, y == 9
        bricks = torch.where(bottom & ~bricks.any(), self._wall(x), bricks & ~(ahead & hit))
        straight = bottom & (game.x == paddle)
        corner = bottom & ~straight & (x == paddle)
        heading = torch.where(top | hit | straight, 3 - heading, torch.where(corner, heading ^ 2, heading))
        y = torch.where(top, 0, torch.where(hit | straight | corner, game.y, y))
        after = BreakoutState(x, y, game.x, game.y, heading, paddle, bricks, brick)
        return Outcome(after, hit, bottom & ~straight & ~corner)

    def show(self, game: BreakoutState) -> Frame:
        paddle = cell(torch.full_like(game.paddle, 9), game.paddle)
        return frame(paddle, cell(game.y, game.x), cell(game.last_y, game.last_x), game.bricks)


class AsterixState(NamedTuple):
    """The player, and one place a row from row 1 on: where something is, how it moves, whether it is gold."""

    x: Whole
    y: Whole
    there: Bool[Tensor, "8"]
    lane_x: Int[Tensor, "8"]
    right: Bool[Tensor, "8"]
    gold: Bool[Tensor, "8"]
    spawn_timer: Whole
    spawn_speed: Whole
    move_timer: Whole
    move_speed: Whole
    ramp_timer: Whole
    ramps: Whole


class AsterixChance(NamedTuple):
    """What comes: whether to the right, whether gold, and in which of the n free rows: that of number `row` * n."""

    right: Flag
    gold: Flag
    row: Number


class Asterix(MinAtarGame):
    """Collect gold, 1 each, among enemies that end the game. Both come more often and move faster with time."""

    planes = 4
    minimal = (NOOP, LEFT, UP, RIGHT, DOWN)
    numbers = 3

    def begin_game(self, key: rng.Key) -> AsterixState:
        zero = torch.zeros((), dtype=torch.int64, device=key.device)
        nowhere = torch.zeros(8, dtype=torch.int64, device=key.device)
        no = torch.zeros_like(nowhere, dtype=torch.bool)
        timers = [zero + n for n in (10, 10, 5, 5, 100, 0)]
        return AsterixState(zero + 5, zero + 5, no, nowhere, no, no, *timers)

    def chances(self, numbers: Float[Tensor, "3"]) -> AsterixChance:
        right, gold, row = numbers.unbind()
        return AsterixChance(right < 0.5, gold < 1 / 3, row)

    def play(self, game: AsterixState, action: Whole, chance: AsterixChance) -> Outcome:
        game = self._spawned(game, chance)
        x = (game.x + moved(action, LEFT, RIGHT)).clamp(0, 9)
        y = (game.y + moved(action, UP, DOWN)).clamp(1, 8)
        mine = line(x)[1:9] == y
        met = game.there & mine & (game.lane_x == x)
        reward, caught = (met & game.gold).any(), (met & ~game.gold).any()
        there = game.there & ~(met & game.gold)
        now = game.move_timer == 0
        lane_x = game.lane_x + torch.where(game.right, 1, -1) * now
        there = there & (lane_x >= 0) & (lane_x <= 9)
        met = there & mine & (lane_x == x)
        reward = reward.long() + (met & game.gold).any()
        caught = caught | (met & ~game.gold).any()
        there = there & ~(met & game.gold)
        move_timer = torch.where(now, game.move_speed, game.move_timer) - 1
        after = game._replace(x=x, y=y, there=there, lane_x=lane_x, move_timer=move_timer)
        return Outcome(self._ramped(after._replace(spawn_timer=game.spawn_timer - 1)), reward, caught)

    def _spawned(self, game: AsterixState, chance: AsterixChance) -> AsterixState:
        now = game.spawn_timer == 0
        free = ~game.there
        row = (chance.row * free.sum()).long()
        new = free & (free.cumsum(0) == row + 1) & now
        return game._replace(
            there=game.there | new,
            lane_x=torch.where(new, torch.where(chance.right, 0, 9), game.lane_x),
            right=torch.where(new, chance.right, game.right),
            gold=torch.where(new, chance.gold, game.gold),
            spawn_timer=torch.where(now, game.spawn_speed, game.spawn_timer),
        )

    def _ramped(self, game: AsterixState) -> AsterixState:
        if not self.ramping:
            return game
        slow = (game.spawn_speed > 1) | (game.move_speed > 1)
        ramp = slow & (game.ramp_timer < 0)
        return game._replace(
            ramp_timer=torch.where(ramp, 100, game.ramp_timer - slow.long()),
            move_speed=game.move_speed - (ramp & (game.move_speed > 1) & (game.ramps % 2 == 1)).long(),
            spawn_speed=game.spawn_speed - (ramp & (game.spawn_speed > 1)).long(),
            ramps=game.ramps + ramp,
        )

    def show(self, game: AsterixState) -> Frame:
        columns, there, gold = line(game.x), game.there[:, None], game.gold[:, None]
        at = (columns == game.lane_x[:, None]) & there
        behind = (columns == (game.lane_x - torch.where(game.right, 1, -1))[:, None]) & there
        return frame(cell(game.y, game.x), *in_lanes(torch.stack([at & ~gold, behind, at & gold])).unbind())


class FreewayState(NamedTuple):
    """The chicken's row, timers, and a car a row from row 1 on: still for `speed` steps, negative to the left."""

    y: Whole
    wait: Whole
    clock: Whole
    x: Int[Tensor, "8"]
    speed: Int[Tensor, "8"]
    timer: Int[Tensor, "8"]


class Freeway(MinAtarGame):
    """Cross the road, 1 each time; a car that is met puts the chicken back. Over after 2,501 steps, as `terminated`."""

    planes = 7
    minimal = (NOOP, UP, DOWN)
    numbers = 8

    def begin_game(self, key: rng.Key) -> FreewayState:
        speed = self.chances(rng.uniform(key, (8,)))
        zero = torch.zeros_like(speed[0])
        return FreewayState(zero + 9, zero + 3, zero + 2500, torch.zeros_like(speed), speed, speed.abs())

    def chances(self, numbers: Float[Tensor, "8"]) -> Int[Tensor, "8"]:
        """New speeds of the cars, should there be any."""
        tenth = (numbers * 10).long()
        return (tenth % 5 + 1) * torch.where(tenth >= 5, 1, -1)

    def play(self, game: FreewayState, action: Whole, chance: Int[Tensor, "8"]) -> Outcome:
        go = moved(action, UP, DOWN) * (game.wait == 0)
        y = (game.y + go).clamp(0, 9)
        wait = torch.where(go != 0, 3, game.wait)
        home = y == 0
        speed = torch.where(home, chance, game.speed)
        timer = torch.where(home, chance.abs(), game.timer)
        y = torch.where(home, 9, y)
        mine = line(y)[1:9] == y
        now = timer == 0
        x = torch.remainder(game.x + torch.sign(speed) * now, 10)
        hit = (mine & ((game.x == 4) | (x == 4))).any()
        after = FreewayState(
            y=torch.where(hit, 9, y),
            wait=(wait - 1).clamp(min=0),
            clock=game.clock - 1,
            x=x,
            speed=speed,
            timer=torch.where(now, speed.abs(), timer - 1),
        )
        return Outcome(after, home, after.clock < 0)

    def show(self, game: FreewayState) -> Frame:
        columns, sizes = line(game.y), line(game.y)[1:6]
        cars = columns == game.x[:, None]
        behind = columns == torch.remainder(game.x - torch.sign(game.speed), 10)[:, None]
        trails = behind & (game.speed.abs() == sizes[:, None])[..., None]
        return frame(cell(game.y, torch.full_like(game.y, 4)), in_lanes(cars), *in_lanes(trails).unbind())


class SpaceInvadersState(NamedTuple):
    """The cannon's column, what is in each cell, which way aliens move (-1, 1), and timers.

    interval: what the timer of their moves begins at, or the number of aliens where that is less.
    """

    cannon: Whole
    aliens: Plane
    friendly: Plane
    enemy: Plane
    heading: Whole
    interval: Whole
    move_timer: Whole
    shot_timer: Whole
    cooldown: Whole


class SpaceInvaders(MinAtarGame):
    """Shoot aliens, 1 each, before they or their bullets reach the cannon. A new fleet moves more often."""

    planes = 6
    minimal = (NOOP, LEFT, RIGHT, FIRE)

    def begin_game(self, key: rng.Key) -> SpaceInvadersState:
        zero = torch.zeros((), dtype=torch.int64, device=key.device)
        fleet = self._fleet(zero)
        none = torch.zeros_like(fleet)
        return SpaceInvadersState(zero + 5, fleet, none, none, zero - 1, zero + 12, zero + 12, zero + 10, zero)

    def _fleet(self, like: Tensor) -> Plane:
        at = line(like)
        return (at < 4)[:, None] & (at >= 2) & (at <= 7)

    def play(self, game: SpaceInvadersState, action: Whole, chance: tuple[()]) -> Outcome:
        shoot = (action == FIRE) & (game.cooldown == 0)
        cannon = (game.cannon + moved(action, LEFT, RIGHT)).clamp(0, 9)
        own = cell(torch.full_like(cannon, 9), cannon)
        friendly = shifted(game.friendly | (own & shoot), -1, -2)
        enemy = shifted(game.enemy, 1, -2)
        lost = ((enemy | game.aliens) & own).any()
        aliens, heading, move_timer, landed = self._marched(game)
        lost = lost | landed | (aliens & own).any()
        fire = game.shot_timer == 0
        enemy = enemy | (self._shooter(aliens, cannon) & fire)
        dead = aliens & friendly
        aliens, friendly = aliens & ~dead, friendly & ~dead
        won = ~aliens.any()
        after = SpaceInvadersState(
            cannon=cannon,
            aliens=torch.where(won, self._fleet(cannon), aliens),
            friendly=friendly,
            enemy=enemy,
            heading=heading,
            interval=game.interval - (won & (game.interval > 6)).long() if self.ramping else game.interval,
            move_timer=move_timer - 1,
            shot_timer=torch.where(fire, 10, game.shot_timer) - 1,
            cooldown=(torch.where(shoot, 5, game.cooldown) - 1).clamp(min=0),
        )
        return Outcome(after, dead.sum(), lost)

    def _marched(self, game: SpaceInvadersState) -> tuple[Plane, Whole, Whole, Flag]:
        """Aliens, their direction and timer after their turn, and whether they would go down from the last row."""
        aliens, now = game.aliens, game.move_timer == 0
        timer = torch.where(now, torch.minimum(aliens.sum(), game.interval), game.move_timer)
        ahead = torch.where(game.heading < 0, aliens[:, 0].any(), aliens[:, 9].any())
        turn = now & ahead
        sideways = torch.where(game.heading < 0, aliens.roll(-1, 1), aliens.roll(1, 1))
        moved_on = torch.where(ahead, aliens.roll(1, 0), sideways)
        heading = torch.where(turn, -game.heading, game.heading)
        return torch.where(now, moved_on, aliens), heading, timer, turn & aliens[9].any()

    def _shooter(self, aliens: Plane, cannon: Whole) -> Plane:
        """The lowest alien of the column nearest to the cannon, the left one of two."""
        at = line(cannon)
        far = torch.where(aliens.any(0), 2 * (at - cannon).abs() + (at > cannon), 99)
        column = (far == far.min()) & aliens
        below = column.flip(0).cumsum(0).flip(0)  # aliens from here on down
        return column & (below == 1)

    def show(self, game: SpaceInvadersState) -> Frame:
        left = game.heading < 0
        own = cell(torch.full_like(game.cannon, 9), game.cannon)
        return frame(own, game.aliens, game.aliens & left, game.aliens & ~left, game.friendly, game.enemy)
