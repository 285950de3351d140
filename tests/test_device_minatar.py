"""MinAtar on the device, step by step beside the package from the same states, where chance decides alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from deeprl.core import rng
from deeprl.core.tree import flatten, tree_leaves, tree_map
from deeprl.envs.device import begin, step
from deeprl.envs.device.minatar import (
    Asterix,
    AsterixChance,
    AsterixState,
    Breakout,
    BreakoutState,
    Freeway,
    FreewayState,
    MinAtarChance,
    MinAtarState,
    SpaceInvaders,
    SpaceInvadersState,
)
from deeprl.envs.device.minatar_seaquest import (
    DIVERS,
    ENEMIES,
    SHOTS,
    Seaquest,
    SeaquestChance,
    SeaquestDivers,
    SeaquestEnemies,
    SeaquestShots,
    SeaquestState,
)
from deeprl.envs.make import make_env
from deeprl.envs.spaces import env_spec

minatar = pytest.importorskip("minatar")

GAMES: dict[str, Any] = {
    "Breakout": Breakout,
    "Asterix": Asterix,
    "Freeway": Freeway,
    "SpaceInvaders": SpaceInvaders,
    "Seaquest": Seaquest,
}
THEIR_NAMES = {"SpaceInvaders": "space_invaders"}
NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)


def whole(number: Any) -> Tensor:
    return torch.tensor(int(number))


def flag(value: Any) -> Tensor:
    return torch.tensor(bool(value))


def plane(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array) != 0)


def places(entries: list[Any], count: int, width: int) -> tuple[Tensor, ...]:
    """A list of theirs, the newest last, as columns of places, the newest first, after which of them are taken."""
    assert len(entries) <= count
    table = np.zeros((count, width), np.int64)
    if entries:
        table[: len(entries)] = np.array(entries, np.int64)[::-1]
    return torch.arange(count) < len(entries), *torch.from_numpy(table).unbind(1)


def flying(bullets: list[Any]) -> Tensor:
    planes = torch.zeros(2, 10, 10, dtype=torch.bool)
    for x, y, right in bullets:
        planes[int(right), y, x] = True
    return planes


def state_of(name: str, game: Any) -> Any:
    """The state of a game of theirs as one of ours."""
    g = game
    if name == "Breakout":
        numbers = map(whole, (g.ball_x, g.ball_y, g.last_x, g.last_y, g.ball_dir, g.pos))
        return BreakoutState(*numbers, plane(g.brick_map), flag(g.strike))
    if name == "Asterix":
        lanes = [(0, row, 0, 0) if one is None else one for row, one in enumerate(g.entities, 1)]
        assert [lane[1] for lane in lanes] == list(range(1, 9))
        x, _, right, gold = torch.tensor([[int(n) for n in lane] for lane in lanes]).unbind(1)
        timers = (g.spawn_timer, g.spawn_speed, g.move_timer, g.move_speed, g.ramp_timer, g.ramp_index)
        there = torch.tensor([one is not None for one in g.entities])
        return AsterixState(
            whole(g.player_x), whole(g.player_y), there, x, right > 0, gold > 0, *(whole(n) for n in timers)
        )
    if name == "Freeway":
        x, _, timer, speed = torch.from_numpy(np.array(g.cars, np.int64)).unbind(1)
        return FreewayState(*(whole(n) for n in (g.pos, g.move_timer, g.terminate_timer)), x, speed, timer)
    if name == "SpaceInvaders":
        timers = (g.alien_dir, g.enemy_move_interval, g.alien_move_timer, g.alien_shot_timer, g.shot_timer)
        planes = map(plane, (g.alien_map, g.f_bullet_map, g.e_bullet_map))
        return SpaceInvadersState(whole(g.pos), *planes, *(whole(n) for n in timers))
    swimmers = [[*fish, 0, 0] for fish in g.e_fish] + [[*sub[:4], 1, sub[4]] for sub in g.e_subs]
    there, x, y, right, timer, sub, reload = places(swimmers, ENEMIES, 6)
    enemies = SeaquestEnemies(there, x, y, right > 0, timer, sub > 0, reload)
    there, x, y, right, timer = places(g.divers, DIVERS, 4)
    divers = SeaquestDivers(there, x, y, right > 0, timer)
    there, x, y, right = places(g.f_bullets, SHOTS, 3)
    timers = (g.e_spawn_timer, g.e_spawn_speed, g.d_spawn_timer, g.move_speed, g.shot_timer, g.ramp_index, 0)
    return SeaquestState(
        *(whole(g.sub_x), whole(g.sub_y), flag(g.sub_or), whole(g.oxygen), whole(g.diver_count), flag(g.surface)),
        *(SeaquestShots(there, x, y, right > 0), flying(g.e_bullets), enemies, divers),
        *(whole(n) for n in timers),
    )


def tidied(state: Any) -> Any:
    """Without what is in empty places, and the others together: fish before submarines, as theirs have two lists."""
    if isinstance(state, AsterixState):
        there = state.there
        return state._replace(lane_x=state.lane_x * there, right=state.right & there, gold=state.gold & there)
    if not isinstance(state, SeaquestState):
        return state
    parts: list[Any] = []
    for swimmers in (state.enemies, state.divers, state.shots):
        order = 2 * (~swimmers.there).long() + (swimmers.sub.long() if hasattr(swimmers, "sub") else 0)
        index = torch.argsort(order, dim=-1, stable=True)
        leaves = {k: (v * swimmers.there).gather(-1, index) for k, v in swimmers._asdict().items()}
        if "sub" in leaves:
            leaves["reload"] = leaves["reload"] * leaves["sub"]
        parts.append(type(swimmers)(**leaves))
    return state._replace(enemies=parts[0], divers=parts[1], shots=parts[2])


class Told:
    """Stands where their random numbers come from, and gives those that it is told."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def rand(self, *shape: int) -> Any:
        return self.answers.pop(0)

    def randint(self, *bounds: int, **others: int) -> Any:
        answer = self.answers.pop(0)
        return answer(*bounds) if callable(answer) else answer


def answers(game: Any, chance: Any) -> list[Any]:
    """What their random numbers have to be for what chance decides with us."""
    if isinstance(chance, AsterixChance):
        return [0.25 + 0.5 * (not chance.right), 0.1 + 0.8 * (not chance.gold), lambda n: int(chance.row * n)]
    if isinstance(chance, SeaquestChance):
        enemy = [0.25 + 0.5 * (not chance.right), 0.1 + 0.8 * (not chance.sub), int(chance.row)]
        diver = [0.25 + 0.5 * (not chance.diver_right), int(chance.diver_row)]
        return (enemy if game.e_spawn_timer == 0 else []) + (diver if game.d_spawn_timer == 0 else [])
    if isinstance(chance, Tensor):
        return [chance.abs().numpy(), np.where(chance > 0, 0.75, 0.25)]
    return []


class Theirs:
    """A game of the package, whose chance is told, beside ours with the same settings."""

    def __init__(self, name: str, ours: Any):
        self.name, self.ours, self.resets = name, ours, 0
        self.env = minatar.Environment(THEIR_NAMES.get(name, name.lower()), 0.1, ours.ramping)
        self.game = self.env.env
        self.env.random, self.game.random = Told(), Told()
        self.reset()

    def reset(self) -> None:
        self.resets += 1
        begun = self.ours.reset(rng.key(1, "env", self.resets)).game
        self.game.random.answers = {
            "Breakout": lambda: [int(begun.x > 0)],
            "Freeway": lambda: answers(self.game, begun.speed),
        }.get(self.name, list)()
        self.env.reset()
        assert_equal(tidied(begun), state_of(self.name, self.game))
        assert torch.equal(self.ours.show(begun), self.frame)

    def act(self, action: int, chance: MinAtarChance) -> tuple[float, bool]:
        self.env.random.answers = [0.0 if chance.repeat else 0.5]
        self.game.random.answers = answers(self.game, chance.game)
        reward, ended = self.env.act(self.ours.actions[action])
        return float(reward), bool(ended)

    @property
    def state(self) -> MinAtarState:
        return MinAtarState(state_of(self.name, self.game), whole(self.env.last_action))

    @property
    def frame(self) -> Tensor:
        return torch.from_numpy(self.env.state().copy())


def assert_equal(ours: Any, theirs: Any) -> None:
    found, expected = flatten(ours), flatten(theirs)
    assert not [k for k in expected if found[k].dtype != expected[k].dtype or not torch.equal(found[k], expected[k])]


def stacked(trees: list[Any]) -> Any:
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def rows(tree: Any, count: int) -> Iterator[Any]:
    return (tree_map(lambda leaf, i=i: leaf[i], tree) for i in range(count))


class Recorded(NamedTuple):
    """Steps of theirs, stacked: the states before and after them, what they showed and gave."""

    before: MinAtarState
    after: MinAtarState
    frames: Tensor
    rewards: Tensor
    ended: Tensor


Choose = Callable[[np.random.Generator, Any], int]
Meddle = Callable[[np.random.Generator, Any, int], None]


def compared(
    ours: Any, name: str, steps: int, choose: Choose, meddle: Meddle | None = None, go_on: bool = False
) -> Recorded:
    """Asserts that each of some steps of theirs is one of ours.

    meddle: changes their game before a step. go_on: where a game would be over, with the game as it is.
    """
    theirs, draw, found = Theirs(name, ours), np.random.default_rng(0), []
    chances = torch.vmap(ours.draws)(torch.stack([rng.key(0, "env", t) for t in range(steps)]))
    actions, before = [], theirs.state
    for t, chance in enumerate(rows(chances, steps)):
        if meddle:
            meddle(draw, theirs.game, t)
            before = theirs.state
        actions.append(choose(draw, theirs.game))
        reward, ended = theirs.act(actions[-1], chance)
        after = theirs.state
        found.append((before, after, theirs.frame, torch.tensor(reward), torch.tensor(ended)))
        before = after
        if ended and go_on:
            theirs.game.terminal = False
        elif ended:
            theirs.reset()
            before = theirs.state
    recorded = Recorded(*stacked(found))
    outcome = torch.vmap(ours.step_with)(recorded.before, torch.tensor(actions), chances)
    assert_equal(tidied(outcome.state.game), tidied(recorded.after.game))
    assert torch.equal(outcome.state.last, recorded.after.last)
    assert torch.equal(torch.vmap(ours.observe)(outcome.state), recorded.frames)
    assert torch.equal(outcome.reward, recorded.rewards)
    assert torch.equal(outcome.terminated, recorded.ended)
    return recorded


def at_random(actions: int) -> Choose:
    return lambda draw, game: int(draw.integers(actions))


def lost(recorded: Recorded) -> int:
    return int(recorded.ended.sum())


def total(recorded: Recorded) -> float:
    return float(recorded.rewards.sum())


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_spec_is_that_of_the_id(name: str, version: int) -> None:
    env = make_env(f"MinAtar/{name}-v{version}")
    base: Any = env.unwrapped
    ours = GAMES[name](use_minimal_action_set=version == 1)
    assert ours.spec == env_spec(env)
    assert list(ours.actions) == list(base.action_set)
    assert ours.limit == 0


def test_breakout_is_theirs() -> None:
    def follow(draw: np.random.Generator, game: Any) -> int:
        side = int(np.sign(game.ball_x - game.pos))
        return int(draw.integers(3)) if draw.random() < 0.1 else (1, 0, 2)[side + 1]

    def holes(draw: np.random.Generator, game: Any, t: int) -> None:
        if t % 25 == 0:
            game.brick_map[1:4] = draw.random((3, 10)) < (0.6 if t % 50 else 0.04)

    found = compared(Breakout(use_minimal_action_set=False), "Breakout", 1_500, at_random(6))
    assert lost(found) > 80
    found = compared(Breakout(), "Breakout", 3_000, follow)
    assert total(found) > 150
    found = compared(Breakout(), "Breakout", 1_500, follow, holes)
    assert (found.before.game.struck & found.after.game.struck).sum() > 5  # through a brick
    emptied = ~found.before.game.bricks.flatten(1).any(1) & found.after.game.bricks.flatten(1).any(1)
    assert emptied.sum() > 5


def test_asterix_is_theirs() -> None:
    found = compared(Asterix(use_minimal_action_set=False), "Asterix", 3_000, at_random(6))
    assert lost(found) > 30
    assert total(found) > 10
    found = compared(Asterix(), "Asterix", 1_500, at_random(5), go_on=True)
    assert found.after.game.spawn_speed.min() == found.after.game.move_speed.min() == 1
    assert found.before.game.there.all(1).any()  # no place for another
    found = compared(Asterix(difficulty_ramping=False), "Asterix", 300, at_random(5), go_on=True)
    assert found.after.game.spawn_speed.min() == 10


def test_freeway_is_theirs() -> None:
    ahead: Choose = lambda draw, game: int(draw.choice([0, 1, 1, 1, 1, 2]))  # noqa: E731
    found = compared(Freeway(), "Freeway", 2 * 2_501, ahead)
    assert found.ended.nonzero().flatten().tolist() == [2_500, 5_001]
    assert total(found) > 10
    assert len(found.after.game.speed.unique()) == 10
    assert total(compared(Freeway(use_minimal_action_set=False), "Freeway", 500, at_random(6))) == 0


def test_space_invaders_is_theirs() -> None:
    def shoot(draw: np.random.Generator, game: Any) -> int:
        return 3 if game.shot_timer == 0 else int(draw.integers(3))

    def low(draw: np.random.Generator, game: Any, t: int) -> None:
        if t % 100 == 0:
            game.alien_map = np.roll(game.alien_map, int(draw.integers(3, 7)), 0)

    found = compared(SpaceInvaders(use_minimal_action_set=False), "SpaceInvaders", 2_000, at_random(6))
    assert lost(found) > 20
    found = compared(SpaceInvaders(), "SpaceInvaders", 3_000, shoot, go_on=True)
    assert found.after.game.interval.min() == 6
    assert total(found) > 24 * 7
    found = compared(SpaceInvaders(), "SpaceInvaders", 1_500, shoot, low, go_on=True)
    assert found.after.game.aliens[:, 9].any()
    found = compared(SpaceInvaders(difficulty_ramping=False), "SpaceInvaders", 600, shoot, go_on=True)
    assert total(found) > 30
    assert found.after.game.interval.min() == 12


def crowded(draw: np.random.Generator, game: Any, t: int) -> None:
    """Many divers, on board and around, and after a while as many enemies as there can be."""
    game.oxygen = max(game.oxygen, 1)
    if t == 1_000:
        game.e_spawn_speed, game.move_speed = 1, 2
    if t % 40 == 0:
        game.diver_count = int(draw.integers(-1, 7))
    if t % 7 == 0 and len(game.divers) < 3:
        game.d_spawn_timer = 0


def test_seaquest_is_theirs() -> None:
    found = compared(Seaquest(), "Seaquest", 2_500, at_random(6))
    assert lost(found) > 50
    found = compared(Seaquest(), "Seaquest", 3_000, at_random(6), crowded, go_on=True)
    before, after = found.before.game, found.after.game
    up = after.surfaced & ~before.surfaced
    aboard = [int(n) for n in before.rescued[up].unique()]
    assert {-1, 1, 6} <= set(aboard)
    assert (found.ended & ~after.surfaced & (after.y == 0) & (after.rescued == 0)).sum() > 10  # up with nobody
    assert after.rescued.min() < 0
    assert found.rewards.max() > 2  # for six
    assert after.enemies.there.sum(1).max() > 20
    found = compared(Seaquest(difficulty_ramping=False), "Seaquest", 500, at_random(6), crowded, go_on=True)
    assert (found.after.game.surfaced & ~found.before.game.surfaced).any()
    assert found.after.game.spawn_speed.min() == 20


# What is seldom in play: their attributes, and an action.
SELDOM: list[tuple[dict[str, Any], int]] = [
    ({"f_bullets": [[3, 2, True]], "e_fish": [[4, 2, False, n] for n in (3, 1, 2)]}, NOOP),  # which of three is hit
    ({"f_bullets": [[3, 2, True]], "e_subs": [[4, 2, False, n, 5] for n in (3, 1, 2)]}, NOOP),
    ({"f_bullets": [[3, 2, True]], "e_fish": [[4, 2, False, 1]], "e_subs": [[4, 2, False, 1, 0]]}, NOOP),
    ({"f_bullets": [[3, 2, True]], "e_subs": [[5, 2, False, 0, n] for n in (7, 0, 9)]}, NOOP),  # which swims into it
    ({"f_bullets": [[3, 2, True]], "e_fish": [[5, 2, False, 0]], "e_subs": [[5, 2, False, 0, 0]]}, NOOP),
    ({"f_bullets": [[3, 2, True]], "e_subs": [[5, 2, False, 0, 0]]}, NOOP),  # shoots as it is killed
    ({"e_subs": [[9, 2, True, 0, 0], [0, 3, False, 0, 0]]}, NOOP),  # and as it leaves
    ({"f_bullets": [[4, 5, True]], "e_fish": [[6, 5, False, 0]], "sub_x": 5, "sub_y": 5}, NOOP),  # bullet and player
    ({"e_fish": [[0, 8, True, 0]]}, NOOP),  # met before it goes on
    ({"f_bullets": [[2, 8, False]], "e_fish": [[0, 8, True, 0]]}, NOOP),  # and hit after that
    ({"diver_count": 5, "divers": [[0, 8, True, 1], [0, 8, False, 3]]}, NOOP),  # room for one of two
    ({"diver_count": 5, "divers": [[0, 8, True, 0], [1, 8, False, 0]]}, NOOP),
    ({"diver_count": 5, "divers": [[1, 8, False, 0], [0, 8, True, 0]]}, NOOP),
    ({"diver_count": 6, "divers": [[1, 8, False, 0], [0, 8, True, 0]]}, NOOP),
    ({"sub_x": 9, "sub_or": True}, FIRE),  # out of the water at once
    ({"e_bullets": [[5, 2, True], [5, 2, True], [5, 2, False], [9, 3, True], [0, 3, False], [1, 8, False]]}, NOOP),
    ({"oxygen": 0}, NOOP),
    ({"oxygen": 1}, NOOP),
    ({"oxygen": 1, "sub_y": 1, "diver_count": 1}, UP),  # just in time
    ({"oxygen": 0, "sub_y": 1, "diver_count": 6}, UP),  # too late
    *(({"oxygen": 199, "sub_y": 1, "diver_count": n, "ramp_index": n % 2}, UP) for n in range(-2, 7)),
    *(
        ({"sub_y": 1, "diver_count": 2, "ramp_index": i, "e_spawn_speed": s, "move_speed": m}, UP)
        for i, s, m in ((1, 1, 3), (2, 1, 3), (3, 1, 2), (3, 2, 2))
    ),
]


def test_seaquest_is_theirs_where_several_things_meet() -> None:
    ours = Seaquest()
    chance = ours.draws(rng.key(0, "env"))._replace(repeat=flag(False))
    found = []
    for attributes, action in SELDOM:
        theirs = Theirs("Seaquest", ours)
        vars(theirs.game).update({"sub_x": 0, "sub_y": 8, "sub_or": False, "oxygen": 150, "surface": False})
        assert attributes.keys() <= vars(theirs.game).keys()
        vars(theirs.game).update(attributes)
        before = theirs.state
        reward, ended = theirs.act(action, chance)
        found.append((before, whole(action), theirs.state, theirs.frame, torch.tensor(reward), torch.tensor(ended)))
    before, actions, after, frames, rewards, ends = stacked(found)
    outcome = torch.vmap(ours.step_with, (0, 0, None))(before, actions, chance)
    assert_equal(tidied(outcome.state.game), tidied(after.game))
    assert torch.equal(torch.vmap(ours.observe)(outcome.state), frames)
    assert torch.equal(outcome.reward, rewards)
    assert torch.equal(outcome.terminated, ends)


@pytest.mark.parametrize("name", GAMES)
def test_games_on_their_own_stay_theirs(name: str) -> None:
    """Ours from its own states, with draws from keys alone; theirs is told of them."""
    ours, number = GAMES[name](), 6
    theirs = [Theirs(name, ours) for _ in range(number)]
    state = stacked([one.state for one in theirs])
    for t in range(60):
        keys = torch.stack([rng.key(seed, "env", t) for seed in range(number)])
        actions = rng.randint(rng.key(9, "env", t), (number,), len(ours.actions))
        outcome = torch.vmap(ours.step)(state, actions, keys)
        frames, following = torch.vmap(ours.observe)(outcome.state), []
        for i, (one, chance, now) in enumerate(
            zip(theirs, rows(torch.vmap(ours.draws)(keys), number), rows(outcome.state, number), strict=True)
        ):
            reward, ended = one.act(int(actions[i]), chance)
            assert (float(outcome.reward[i]), bool(outcome.terminated[i])) == (reward, ended)
            assert torch.equal(frames[i], one.frame)
            if ended:
                one.reset()
            following.append(one.state if ended else now)
        state = stacked(following)


def full_sea() -> MinAtarState:
    state = Seaquest().reset(rng.key(0, "env"))
    sea = state.game
    enemies = sea.enemies._replace(
        there=torch.ones_like(sea.enemies.there), x=torch.arange(ENEMIES) % 8 + 1, y=torch.full((ENEMIES,), 3)
    )
    divers = sea.divers._replace(there=torch.ones_like(sea.divers.there), x=sea.divers.x + 4, y=sea.divers.y + 5)
    return state._replace(game=sea._replace(enemies=enemies, divers=divers, spawn_timer=whole(0), diver_timer=whole(0)))


def test_seaquest_counts_what_has_no_place() -> None:
    ours, state = Seaquest(), full_sea()
    chance = MinAtarChance(flag(False), SeaquestChance(flag(True), flag(False), whole(6), flag(True), whole(7)))
    after = ours.step_with(state, whole(NOOP), chance).state.game
    assert int(after.lost) == 2
    assert after.enemies.there.all()
    assert (int(after.enemies.y[0]), int(after.divers.y[0])) == (6, 7)
    assert after.enemies.y[1:].tolist() == state.game.enemies.y[:-1].tolist()
    against = chance._replace(game=chance.game._replace(row=whole(3)))  # a row in which all swim to the left
    assert int(ours.step_with(state, whole(NOOP), against).state.game.lost) == 1
    part = state._replace(
        game=state.game._replace(enemies=state.game.enemies._replace(there=torch.arange(ENEMIES) != ENEMIES - 1))
    )
    assert int(ours.step_with(part, whole(NOOP), chance).state.game.lost) == 1


def keys(count: int, seed: int = 0) -> Tensor:
    return torch.stack([rng.fold_in(rng.key(seed, "env"), i) for i in range(count)])


def near(values: Tensor, share: float) -> bool:
    """Whether as many are true as are expected, by 5 standard deviations."""
    return abs(float(values.double().mean()) - share) <= 5 * (share * (1 - share) / len(values)) ** 0.5


def test_chance_has_the_shares_of_the_rules() -> None:
    count = 10_000
    many = keys(count)
    assert near(torch.vmap(Breakout().reset)(many).game.x == 9, 0.5)
    for name, kind in GAMES.items():
        assert near(torch.vmap(kind().draws)(many).repeat, 0.1), name
        assert near(torch.vmap(kind(sticky_action_prob=0.4).draws)(many).repeat, 0.4), name
    for speeds in (torch.vmap(Freeway().reset)(many).game.speed, torch.vmap(Freeway().draws)(many).game):
        for speed in range(1, 6):
            assert all(near(column, 0.1) for way in (-1, 1) for column in (speeds == way * speed).unbind(1))
    chance = torch.vmap(Seaquest().draws)(many).game
    assert near(chance.right, 0.5)
    assert near(chance.diver_right, 0.5)
    assert near(chance.sub, 1 / 3)
    assert near(chance.sub & chance.right, 1 / 6)
    for row in range(1, 9):
        assert near(chance.row == row, 1 / 8)
        assert near(chance.diver_row == row, 1 / 8)


def test_asterix_spawns_in_a_free_row_or_nowhere() -> None:
    ours, many = Asterix(sticky_action_prob=0.0), keys(5_000)
    begun = ours.reset(many[0])
    for taken in ([], [1, 2, 5], [0, 1, 2, 3, 4, 5, 6], list(range(8))):
        there = torch.tensor([row in taken for row in range(8)])
        state = begun._replace(game=begun.game._replace(there=there, spawn_timer=whole(0)))
        after = torch.vmap(ours.step, (None, None, 0))(state, whole(NOOP), many).state.game
        new = after.there & ~there
        assert (new.sum(1) == (len(taken) < 8)).all()
        for row in set(range(8)) - set(taken):
            assert near(new[:, row], 1 / (8 - len(taken)))
        if len(taken) < 8:
            assert near((after.right & new).any(1), 0.5)
            assert near((after.gold & new).any(1), 1 / 3)
            assert set(after.lane_x[new].tolist()) == {0, 9}
            assert torch.equal(after.lane_x[new] == 0, after.right[new])


@pytest.mark.parametrize("name", GAMES)
def test_sticky_actions_repeat_the_one_carried_out(name: str) -> None:
    always, never = GAMES[name](sticky_action_prob=1.0), GAMES[name](sticky_action_prob=0.0)
    state = always.reset(rng.key(0, "env"))
    assert int(state.last) == NOOP
    for t, action in enumerate((1, 2, 0, 2)):
        given, key = whole(action), rng.key(0, "env", t + 1)
        carried_out = never.step(state, given, key).state
        assert int(carried_out.last) == never.actions[action]
        again = always.step(carried_out, whole(1), key).state
        assert int(again.last) == never.actions[action]  # and on: not the one given
        assert_equal(again, never.step(carried_out, given, key).state)
        state = again


@pytest.mark.parametrize("name", GAMES)
def test_many_are_one_by_one(name: str) -> None:
    env = GAMES[name]()
    now, obs = torch.vmap(lambda key: begin(env, key))(torch.stack([rng.key(seed, "env") for seed in range(5)]))
    assert obs.dtype == torch.bool
    for t in range(15):
        many = torch.stack([rng.key(seed, "env", t + 1) for seed in range(5)])
        actions = rng.randint(rng.key(9, "env", t), (5,), env.spec.actions)
        together = torch.vmap(lambda n, a, k: step(env, n, a, k))(now, actions, many)
        if t % 7 == 0:
            assert_equal(together, stacked([step(env, *one) for one in rows((now, actions, many), 5)]))
        now = together.now


@pytest.mark.parametrize("name", GAMES)
def test_a_traced_step_is_a_step(name: str) -> None:
    """Recorded once as a graph, it plays other states: nothing in it depends on values."""
    env = GAMES[name]()
    now, _ = begin(env, rng.key(0, "env"))
    graph = make_fx(lambda n, a, k: step(env, n, a, k))(now, whole(0), rng.key(0, "env", 1))
    for t in range(12):
        action, key = whole(t % env.spec.actions), rng.key(0, "env", t + 1)
        held = tree_map(torch.clone, now)
        found, expected = graph(now, action, key), step(env, now, action, key)
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True))
        assert_equal(now, held)  # which it left alone
        now = expected.now


@pytest.mark.parametrize("name", GAMES)
def test_ended_games_begin_anew_without_a_last_action(name: str) -> None:
    env = GAMES[name]()
    now, _ = torch.vmap(lambda key: begin(env, key))(keys(16))
    if name == "Freeway":
        now = now._replace(state=now.state._replace(game=now.state.game._replace(clock=torch.arange(16) % 5)))
    ended = 0
    for t in range(80 if name != "Freeway" else 8):
        actions = rng.randint(rng.key(9, "env", t), (16,), env.spec.actions)
        one = torch.vmap(lambda n, a, k: step(env, n, a, k))(now, actions, keys(16, t + 1))
        assert not one.truncated.any()
        assert torch.equal(one.is_first, one.terminated)
        assert (one.now.state.last[one.is_first] == NOOP).all()
        assert (one.now.steps[one.is_first] == 0).all()
        ended, now = ended + int(one.is_first.sum()), one.now
    assert ended > 5
