"""Atari games: what `make_env("ALE/Pong-v5", env_kwargs)` puts around the game, innermost first.

1. the game, one frame per step, and its limit of frames (an end by it is `truncated`);
2. `StickyActions`: with `repeat_action_probability` a frame plays the action of the frame before it;
3. `GameRecord`: the return of the whole game, below everything that clips, cuts or hides;
4. `AtariPreprocessing`, Gymnasium's but for the last observation of a game that ends within an action: 1 to `noop_max`
   no-op frames after a reset, each action for `frame_skip` frames, their rewards summed, the brighter of the last two
   frames at each pixel, gray, resized to `screen_size` by area;
5. `EpisodicLife`, with `terminal_on_life_loss` only;
6. `FireOnReset`, with `fire_reset`, in games that have FIRE;
7. `CountDecisions`: how often the agent has acted in this game;
8. Gymnasium's `FrameStackObservation`: the last `stack` frames; at first, copies of the first one.

The defaults play by the protocol of Machado et al. (2018, sections 4 and 5): sticky actions, whole games. That of
Mnih et al. (2015), which most published code follows, is `{"repeat_action_probability": 0.0,
"terminal_on_life_loss": true}`; scores under the one and the other cannot be compared. Rewards are never clipped here:
that is a setting of the learner.

The info of every step holds, whatever ended the learner's episode,

    deeprl.game_over     whether the game itself is over
    deeprl.game_return   undiscounted sum of all rewards of this game so far, those of no-op and FIRE frames too
    deeprl.game_length   decisions of the agent in this game so far, without the frames that wrappers play on their own

A game that ends inside a reset (in the no-op after a lost life, or by FIRE) is reported nowhere: no step saw its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from deeprl.errors import DeeprlError

# Names of our own: an environment may tell of a `game_over` that means something else.
GAME_OVER, GAME_RETURN, GAME_LENGTH = OWN_INFO = ("deeprl.game_over", "deeprl.game_return", "deeprl.game_length")
_GAME = "deeprl.game"  # the number of the game, from `GameRecord` to `CountDecisions`

# What the preprocessing sets for the game, and the setting to use in its place.
_TAKEN = {
    "frameskip": "use frame_skip",
    "max_episode_steps": "use max_num_frames_per_episode",
    "obs_type": "observations are gray frames",
    "continuous": "actions are discrete",
    "sound_obs": "observations are gray frames",
}
_KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false"}


@dataclasses.dataclass(frozen=True)
class AtariSettings:
    """How a game is played and shown. These are names of `env_kwargs`, for both backends."""

    repeat_action_probability: float = 0.25  # Machado et al. 2018, as in ALE/...-v5; Mnih et al. 2015: 0
    full_action_space: bool = False  # all 18 actions instead of those that the game knows
    noop_max: int = 30  # Mnih et al. 2015, Table 1
    frame_skip: int = 4
    screen_size: int = 84
    stack: int = 4
    terminal_on_life_loss: bool = False  # Mnih et al. 2015: True in training
    fire_reset: bool = True
    max_num_frames_per_episode: int = 108_000  # 30 minutes; 0: no limit

    @classmethod
    def split(cls, env: str, env_kwargs: Mapping[str, Any]) -> tuple[AtariSettings, dict[str, Any]]:
        """The settings in `env_kwargs`, and all else in it. Raises DeeprlError for values that make no sense."""
        kwargs = dict(env_kwargs)
        for name, instead in _TAKEN.items():
            if name in kwargs:
                raise DeeprlError(f"{env}: {name} is set by the preprocessing; {instead}")
        fields = dataclasses.fields(cls)
        given = {f.name: kwargs.pop(f.name) for f in fields if f.name in kwargs}
        for f in fields:
            value = given.get(f.name, f.default)
            kinds = {"float": (int, float), "int": (int,), "bool": (bool,)}[str(f.type)]
            if not isinstance(value, kinds) or (isinstance(value, bool) and f.type != "bool"):
                raise DeeprlError(f"{env}: {f.name} {value!r} is not {_KINDS[str(f.type)]}")
        settings = cls(**given)
        least = {"frame_skip": 1, "screen_size": 1, "stack": 1, "noop_max": 0, "max_num_frames_per_episode": 0}
        for name, low in least.items():
            if getattr(settings, name) < low:
                raise DeeprlError(f"{env}: {name} {getattr(settings, name)} is less than {low}")
        if not 0 <= settings.repeat_action_probability <= 1:
            raise DeeprlError(f"{env}: repeat_action_probability {settings.repeat_action_probability} is not in [0, 1]")
        return settings, kwargs


def make_atari(env: str, env_kwargs: Mapping[str, Any]) -> gym.Env:
    """A game in all its layers; what is no setting of ours goes to `gym.make`, whose errors are let through."""
    import ale_py  # an extra

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else each process prints a banner
    s, others = AtariSettings.split(env, env_kwargs)
    game = gym.make(
        env,
        frameskip=1,
        # As `AtariPreprocessing` shows it; a third of the bytes to convert.
        obs_type="grayscale",
        repeat_action_probability=0.0,
        full_action_space=s.full_action_space,
        max_num_frames_per_episode=s.max_num_frames_per_episode,
        **others,
    )
    if s.repeat_action_probability > 0:
        game = StickyActions(game, s.repeat_action_probability)
    game = AtariPreprocessing(GameRecord(game), noop_max=s.noop_max, frame_skip=s.frame_skip, screen_size=s.screen_size)
    if s.terminal_on_life_loss:
        game = EpisodicLife(game)
    unwrapped: Any = game.unwrapped
    if s.fire_reset and "FIRE" in unwrapped.get_action_meanings():
        game = FireOnReset(game)
    return gym.wrappers.FrameStackObservation(CountDecisions(game), s.stack)


class StickyActions(gym.Wrapper):
    """Plays, with a probability, the action of the frame before instead of the one that is asked for.

    ALE can do this itself, by the same rule, but its copies of the state leave the held action out: a restored game
    would not go on as it was.
    """

    def __init__(self, env: gym.Env, probability: float):
        super().__init__(env)
        self.probability, self.held = probability, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.held = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.unwrapped.np_random.random() >= self.probability:
            self.held = int(action)
        return self.env.step(self.held)


class GameRecord(gym.Wrapper):
    """Adds the return of the whole game to the info of its steps, and the number of the game.

    Keeps the last two frames [H, W] uint8, `frame_before` and `frame`. None where there has been none, or none since
    the game was restored from a state of a version that did not keep them.
    """

    frame_before: np.ndarray | None = None
    frame: np.ndarray | None = None

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.total, self.games = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self.total, self.games = 0.0, self.games + 1
        self.frame_before, self.frame = None, obs
        return obs, {**info, _GAME: self.games}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        self.frame_before, self.frame = self.frame, obs
        return (
            obs,
            reward,
            terminated,
            truncated,
            {**info, GAME_OVER: bool(terminated), GAME_RETURN: self.total, _GAME: self.games},
        )


class AtariPreprocessing(gym.wrappers.AtariPreprocessing):
    """As there, around a `GameRecord`; the last observation of a game shows the last frames that were played.

    Gymnasium's version looks at the screen after the last two of `frame_skip` frames only, and so shows older frames
    where a game ends or is cut before these are played.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            obs = self._last_frames()
        return obs, reward, terminated, truncated, info

    def _last_frames(self) -> np.ndarray:
        """The brighter of the last two frames, or the last with a frame_skip of 1, as after any other step."""
        import cv2

        game: Any = self.env
        pooled = game.frame
        if self.frame_skip > 1 and game.frame_before is not None:
            pooled = np.maximum(game.frame_before, game.frame)
        return cv2.resize(pooled, self.screen_size, interpolation=cv2.INTER_AREA)


class CountDecisions(gym.Wrapper):
    """Adds to the info of every step how many there have been in this game, which `GameRecord` gives a number."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.game = self.length = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        if (game := info.pop(_GAME)) != self.game:
            self.game, self.length = game, 0
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.length += 1
        del info[_GAME]
        info[GAME_LENGTH] = self.length
        return obs, reward, terminated, truncated, info


class EpisodicLife(gym.Wrapper):
    """Ends the learner's episode as `terminated` where a life is lost and others are left; the game goes on.

    The reset after it is one no-op step, or a real one if that step ends the game. A reset that its caller gives a seed
    is always real; a seed that arrives here may be one that a wrapper gives to every reset, so that `announce_reset`
    tells by `new_game` what was asked for outside of all wrappers. Where nobody tells, the seed is the caller's.
    Gymnasium's own version (`AtariPreprocessing(terminal_on_life_loss=True)`) resets the game, so that nobody would
    ever learn to play with the last lives.
    """

    new_game: bool | None = None  # what the next reset is to begin

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.lives, self.goes_on = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        asked = seed is not None if self.new_game is None else self.new_game
        self.new_game = None
        real = asked or not self.goes_on
        if not real:
            obs, _, terminated, truncated, info = self.env.step(0)
            real = terminated or truncated
        if real:
            obs, info = self.env.reset(seed=seed, options=options)
        self.lives, self.goes_on = info["lives"], False
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        # In some games no life is left for a few frames before the end: that end is the game's own.
        lost = 0 < info["lives"] < self.lives
        self.lives, self.goes_on = info["lives"], lost and not (terminated or truncated)
        return obs, reward, terminated or lost, truncated, info


class FireOnReset(gym.Wrapper):
    """Presses FIRE once after every reset, for games that wait for it; where that ends the game, resets again."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        unwrapped: Any = env.unwrapped
        self.fire: int = unwrapped.get_action_meanings().index("FIRE")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        obs, _, terminated, truncated, info = self.env.step(self.fire)
        if terminated or truncated:
            obs, info = self.env.reset(options=options)
        return obs, info


def announce_reset(env: gym.Env, new_game: bool) -> None:
    """Tell a game of several lives, through all wrappers, whether its next reset is to begin it anew."""
    if (life := _episodic_life(env)) is not None:
        life.new_game = new_game


def game_goes_on(env: gym.Env) -> bool:
    """Whether the last step lost a life of a game that goes on with the next reset."""
    life = _episodic_life(env)
    return life is not None and life.goes_on


def _episodic_life(env: gym.Env) -> EpisodicLife | None:
    layer: Any = env
    while isinstance(layer, gym.Wrapper) and not isinstance(layer, EpisodicLife):
        layer = layer.env
    return layer if isinstance(layer, EpisodicLife) else None
