"""Seaquest of MinAtar (see `deeprl.envs.device.minatar`), with a fixed number of places for what there is.

The package keeps lists without an end. Here:

- Enemies have `ENEMIES` places, divers `DIVERS` and the player's bullets `SHOTS`, the newest first. What comes moves
  the others on by a place. An enemy or a diver that has no place then is lost, and counted in `SeaquestState.lost`;
  play does not come to that: an enemy is gone before 30 others have come, a diver before 2.
- The player's bullets are never more than 2, nor in one cell: 5 steps apart, they fly as fast as the submarine drives.
- Bullets of enemies are planes: two that fly alike in one cell are one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deeprl.core import rng
from deeprl.envs.device.base import Outcome
from deeprl.envs.device.minatar import (
    DOWN,
    FIRE,
    LEFT,
    NOOP,
    RIGHT,
    UP,
    Flag,
    Frame,
    MinAtarGame,
    Whole,
    cell,
    frame,
    line,
    moved,
    shifted,
)

ENEMIES, DIVERS, SHOTS = 32, 4, 2


class SeaquestShots(NamedTuple):
    """The player's bullets, the newest first."""

    there: Bool[Tensor, " n"]
    x: Int[Tensor, " n"]
    y: Int[Tensor, " n"]
    right: Bool[Tensor, " n"]


class SeaquestDivers(NamedTuple):
    """Divers, the newest first."""

    there: Bool[Tensor, " n"]
    x: Int[Tensor, " n"]
    y: Int[Tensor, " n"]
    right: Bool[Tensor, " n"]
    timer: Int[Tensor, " n"]


class SeaquestEnemies(NamedTuple):
    """Submarines and fish, the newest first. reload: steps to a submarine's next shot."""

    there: Bool[Tensor, " n"]
    x: Int[Tensor, " n"]
    y: Int[Tensor, " n"]
    right: Bool[Tensor, " n"]
    timer: Int[Tensor, " n"]
    sub: Bool[Tensor, " n"]
    reload: Int[Tensor, " n"]


class SeaquestState(NamedTuple):
    """The submarine, oxygen and divers on board, what is in the water, and timers.

    rescued: divers on board, -1 after all six have been brought up. torpedoes: of enemies, that fly to the left and to
    the right. lost: enemies and divers that had no place.
    """

    x: Whole
    y: Whole
    right: Flag
    oxygen: Whole
    rescued: Whole
    surfaced: Flag
    shots: SeaquestShots
    torpedoes: Bool[Tensor, "2 10 10"]
    enemies: SeaquestEnemies
    divers: SeaquestDivers
    spawn_timer: Whole
    spawn_speed: Whole
    diver_timer: Whole
    move_speed: Whole
    cooldown: Whole
    ramps: Whole
    lost: Whole


class SeaquestChance(NamedTuple):
    """What comes if the timers say so: from the left to the right, a submarine and no fish, in which row."""

    right: Flag
    sub: Flag
    row: Whole
    diver_right: Flag
    diver_row: Whole


def _come(swimmers: Any, now: Flag, new: Any) -> Any:
    """With a new one in the first place, and the others one place on."""
    first = torch.arange(len(swimmers.x), device=swimmers.x.device) == 0
    pairs = zip(swimmers, new, strict=True)
    return type(swimmers)(*(torch.where(now, torch.where(first, one, old.roll(1)), old) for old, one in pairs))


def _on(movers: Any, now: Bool[Tensor, " n"] | bool = True) -> Any:
    """One cell on, those off the grid gone."""
    x = movers.x + torch.where(movers.right, 1, -1) * now
    return movers._replace(x=x, there=movers.there & (x >= 0) & (x <= 9))


def _swum(swimmers: Any, speed: Whole | int) -> Any:
    """Those whose timers are 0 one cell on."""
    now = swimmers.timer == 0
    return _on(swimmers, now)._replace(timer=torch.where(now, speed, swimmers.timer - 1))


def _marked(place: Int[Tensor, " n"], on: Bool[Tensor, " n"], planes: int) -> Bool[Tensor, "p 10 10"]:
    """Planes with the cells at places (100 * plane + 10 * y + x) of those that are `on`."""
    size = 100 * planes
    marks = torch.zeros(size + 1, dtype=torch.bool, device=place.device)  # and one for all that are not
    return marks.scatter(0, torch.where(on, place, size), True)[:size].reshape(planes, 10, 10)


def _struck(
    enemies: SeaquestEnemies, shots: SeaquestShots, may: Bool[Tensor, " n"], turn: Int[Tensor, " n"]
) -> tuple[SeaquestEnemies, SeaquestShots, Whole]:
    """Enemies without those that are hit, bullets without those that hit, and how many did.

    A bullet hits one in its cell, of those that may be hit: that with the least `turn`.
    """
    met = (shots.x[:, None] == enemies.x) & (shots.y[:, None] == enemies.y) & shots.there[:, None]
    met = met & enemies.there & may
    least = torch.where(met, turn, 2 * ENEMIES).amin(1, keepdim=True)
    hit = (met & (turn == least)).any(0)
    enemies = enemies._replace(there=enemies.there & ~hit)
    return enemies, shots._replace(there=shots.there & ~met.any(1)), hit.sum()


class Seaquest(MinAtarGame):
    """Shoot fish and submarines, 1 each, pick up divers and bring them up before the oxygen is gone: six give the most.

    Each time up costs a diver, and the enemies come more often and faster from then on.
    """

    planes = 10
    minimal = (NOOP, LEFT, UP, RIGHT, DOWN, FIRE)
    numbers = 5

    def begin_game(self, key: rng.Key) -> SeaquestState:
        zero = torch.zeros((), dtype=torch.int64, device=key.device)
        no = zero > 0
        n, off = zero.expand(ENEMIES), no.expand(ENEMIES)
        enemies = SeaquestEnemies(off, n, n, off, n, off, n)
        divers = SeaquestDivers(*(leaf[:DIVERS] for leaf in enemies[:5]))
        shots = SeaquestShots(*(leaf[:SHOTS] for leaf in enemies[:4]))
        torpedoes = no.expand(2, 10, 10)
        timers = [zero + t for t in (20, 20, 30, 5, 0, 0, 0)]
        return SeaquestState(zero + 5, zero, no, zero + 200, zero, ~no, shots, torpedoes, enemies, divers, *timers)

    def chances(self, numbers: Float[Tensor, "5"]) -> SeaquestChance:
        right, sub, row, diver_right, diver_row = numbers.unbind()
        rows = [(number * 8).long() + 1 for number in (row, diver_row)]
        return SeaquestChance(right < 0.5, sub < 1 / 3, rows[0], diver_right < 0.5, rows[1])

    def play(self, game: SeaquestState, action: Whole, chance: SeaquestChance) -> Outcome:
        game = self._acted(self._spawned(game, chance), action)
        swimmers = game.enemies
        turn = ENEMIES * swimmers.sub - torch.arange(ENEMIES, device=swimmers.sub.device)  # fish first, the oldest
        enemies, shots, shot = _struck(swimmers, _on(game.shots), swimmers.there, turn)
        game = self._picked_up(game._replace(enemies=enemies, shots=shots))
        game, rammed, met = self._hunted(game)
        own = cell(game.y, game.x)
        met = met | (game.torpedoes & own).any()
        left, right = game.torpedoes.unbind()
        torpedoes = torch.stack([shifted(left, -1, -1), shifted(right, 1, -1)])
        met = met | (torpedoes & own).any()
        game = game._replace(
            torpedoes=torpedoes,
            spawn_timer=(game.spawn_timer - 1).clamp(min=0),
            diver_timer=(game.diver_timer - 1).clamp(min=0),
            cooldown=(game.cooldown - 1).clamp(min=0),
        )
        game, bonus, suffocated = self._breathed(game)
        return Outcome(game, shot + rammed + bonus, met | suffocated)

    def _spawned(self, game: SeaquestState, chance: SeaquestChance) -> SeaquestState:
        enemies, divers = game.enemies, game.divers
        due, diver_due = game.spawn_timer == 0, game.diver_timer == 0
        against = enemies.there & (enemies.y == chance.row) & (enemies.right != chance.right)
        come = due & ~against.any()
        yes, zero = torch.ones_like(due), torch.zeros_like(game.lost)
        x, diver_x = torch.where(chance.right, 0, zero + 9), torch.where(chance.diver_right, 0, zero + 9)
        enemy = SeaquestEnemies(yes, x, chance.row, chance.right, game.move_speed, chance.sub, zero + 10)
        diver = SeaquestDivers(yes, diver_x, chance.diver_row, chance.diver_right, zero + 5)
        return game._replace(
            enemies=_come(enemies, come, enemy),
            divers=_come(divers, diver_due, diver),
            spawn_timer=torch.where(due, game.spawn_speed, game.spawn_timer),
            diver_timer=torch.where(diver_due, 30, game.diver_timer),
            lost=game.lost + (come & enemies.there[-1]) + (diver_due & divers.there[-1]),
        )

    def _acted(self, game: SeaquestState, action: Whole) -> SeaquestState:
        shoot = (action == FIRE) & (game.cooldown == 0)
        return game._replace(
            shots=_come(game.shots, shoot, SeaquestShots(shoot, game.x, game.y, game.right)),
            cooldown=torch.where(shoot, 5, game.cooldown),
            x=(game.x + moved(action, LEFT, RIGHT)).clamp(0, 9),
            y=(game.y + moved(action, UP, DOWN)).clamp(0, 8),
            right=(action == RIGHT) | (game.right & (action != LEFT)),
        )

    def _picked_up(self, game: SeaquestState) -> SeaquestState:
        """Divers who touch the submarine, now or after they have swum, as long as there is room for them."""
        old, new = game.divers, _swum(game.divers, 5)
        touch, touch_then = (d.there & (d.x == game.x) & (d.y == game.y) for d in (old, new))
        reach = (touch | touch_then).long()
        room = game.rescued + reach.cumsum(0) <= 6
        picked = (reach > 0) & room
        return game._replace(divers=new._replace(there=new.there & ~picked), rescued=game.rescued + picked.sum())

    def _hunted(self, game: SeaquestState) -> tuple[SeaquestState, Whole, Flag]:
        """Enemies swim and submarines shoot. Also gives how many swam into bullets, and whether one met the player."""
        old, new = game.enemies, _swum(game.enemies, game.move_speed)
        touch, touch_then = (e.there & (e.x == game.x) & (e.y == game.y) for e in (old, new))
        ready = old.reload == 0
        new = new._replace(reload=torch.where(ready, 10, old.reload - 1))
        torpedoes = game.torpedoes | _marked(100 * new.right + 10 * new.y + new.x, new.there & new.sub & ready, 2)
        turn = torch.arange(ENEMIES, device=new.sub.device) - ENEMIES * new.sub.long()  # submarines first, the newest
        enemies, shots, rammed = _struck(new, game.shots, (old.timer == 0) & ~touch_then, turn)
        after = game._replace(enemies=enemies, shots=shots, torpedoes=torpedoes)
        return after, rammed, (touch | touch_then).any()

    def _breathed(self, game: SeaquestState) -> tuple[SeaquestState, Whole, Flag]:
        """Oxygen, and what happens on the surface: also gives the reward for it, and whether the game is over."""
        deep = game.y > 0
        up = ~deep & ~game.surfaced
        empty = up & (game.rescued == 0)
        breathe = up & ~empty
        all_six = breathe & (game.rescued == 6)
        slow = breathe & ((game.spawn_speed > 1) | (game.move_speed > 2)) if self.ramping else torch.zeros_like(deep)
        faster = slow & (game.move_speed > 2) & (game.ramps % 2 == 1)
        after = game._replace(
            oxygen=torch.where(breathe, 200, game.oxygen - deep.long()),
            rescued=torch.where(all_six, 0, game.rescued) - breathe.long(),
            surfaced=(game.surfaced & ~deep) | breathe,
            move_speed=game.move_speed - faster.long(),
            spawn_speed=game.spawn_speed - (slow & (game.spawn_speed > 1)).long(),
            ramps=game.ramps + slow,
        )
        return after, torch.where(all_six, game.oxygen * 10 // 200, 0), (game.oxygen <= 0) | empty

    def show(self, game: SeaquestState) -> Frame:
        fish, sub, diver, shot, trail = self._moving(game).unbind()
        last, columns = (line(game.x) == 9)[:, None], line(game.x)
        return frame(
            cell(game.y, game.x),
            cell(game.y, game.x - torch.where(game.right, 1, -1)),
            shot,
            trail,
            game.torpedoes.any(0),
            fish,
            sub,
            last & (columns < game.oxygen * 10 // 200),
            last & (columns >= 9 - game.rescued) & (columns < 9),
            diver,
        )

    def _moving(self, game: SeaquestState) -> Bool[Tensor, "5 10 10"]:
        """Fish, submarines, divers, the player's bullets, and the cells behind the first three."""
        enemies, divers, shots = game.enemies, game.divers, game.shots
        there, x, y, right = (torch.cat([a, b]) for a, b in zip(enemies[:4], divers[:4], strict=True))
        kind = torch.cat([enemies.sub.long(), torch.full_like(divers.x, 2), torch.full_like(shots.x, 3)])
        behind = x - torch.where(right, 1, -1)
        x, y = torch.cat([x, shots.x, behind]), torch.cat([y, shots.y, y])
        place = 100 * torch.cat([kind, torch.full_like(behind, 4)]) + 10 * y + x
        return _marked(place, torch.cat([there, shots.there, there]) & (x >= 0) & (x <= 9), 5)
