import sys

import gymnasium as gym
import numpy as np
import pytest

from deeprl.api import Policy
from deeprl.commands import watch
from deeprl.envs.atari import (
    GAME_LENGTH,
    GAME_OVER,
    GAME_RETURN,
    AtariSettings,
    CountDecisions,
    EpisodicLife,
    FireOnReset,
    GameRecord,
    StickyActions,
)
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.spaces import env_spec
from deeprl.envs.vector import Episode, PopulationEnvs, env_seeds
from deeprl.errors import DeeprlError
from deeprl.run import checkpoint
from deeprl.run.evaluate import Evaluator

pytest.importorskip("ale_py")
cv2 = pytest.importorskip("cv2")

NATURE = {"repeat_action_probability": 0.0, "terminal_on_life_loss": True}


class Script(gym.Env):
    """Plays back games: each is a list of (reward, lives, terminated, truncated), one entry per step."""

    observation_space = gym.spaces.Box(0, 255, (2, 2), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, *games, meanings=("NOOP", "FIRE", "LEFT"), lives=3):
        self.games, self.meanings, self.start = games, list(meanings), lives
        self.game, self.done, self.log = -1, [], []

    def get_action_meanings(self):
        return self.meanings

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.game, self.t = self.game + 1, 0
        self.log.append("reset")
        return np.zeros((2, 2), np.uint8), {"lives": self.start}

    def step(self, action):
        self.log.append(int(action))
        reward, lives, terminated, truncated = self.games[self.game % len(self.games)][self.t]
        self.t += 1
        return np.full((2, 2), self.t % 256, np.uint8), reward, terminated, truncated, {"lives": lives}


def layers(script, fire=False):
    env = EpisodicLife(GameRecord(script))
    return CountDecisions(FireOnReset(env) if fire else env)


ON = (0.0, 3, False, False)
LOST = (1.0, 2, False, False)
ON2 = (0.5, 2, False, False)
OVER = (2.0, 0, True, False)


# --- lives ---


def test_lost_life_terminates_and_the_game_goes_on_after_a_no_op():
    script = Script([ON, LOST, ON2, (4.0, 2, False, False), OVER])
    env = layers(script)
    env.reset(seed=0)
    assert env.step(2)[2:4] == (False, False)
    obs, reward, terminated, truncated, info = env.step(2)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info[GAME_OVER], info[GAME_RETURN], info[GAME_LENGTH]) == (False, 1.0, 2)
    obs, info = env.reset()
    assert obs[0, 0] == 3  # the third frame of the same game, by a no-op
    assert info["lives"] == 2
    _, _, terminated, _, info = env.step(1)
    # rewards 0 + 1 + 0.5 (no-op) + 4; three decisions, the no-op is none
    assert (terminated, info[GAME_OVER], info[GAME_RETURN], info[GAME_LENGTH]) == (False, False, 5.5, 3)
    _, _, terminated, _, info = env.step(1)
    assert (terminated, info[GAME_OVER], info[GAME_RETURN], info[GAME_LENGTH]) == (True, True, 7.5, 4)
    env.reset()
    assert script.log == ["reset", 2, 2, 0, 1, 1, "reset"]


@pytest.mark.parametrize("end", [(1.0, 1, True, False), (1.0, 1, False, True)])
def test_game_that_ends_in_the_no_op_after_a_lost_life_is_reset(end):
    script = Script([LOST, end], [ON, OVER])
    env = layers(script)
    env.reset(seed=0)
    assert env.step(2)[2]
    obs, info = env.reset()
    assert obs[0, 0] == 0
    assert info["lives"] == 3
    assert script.log == ["reset", 2, 0, "reset"]
    env.step(2)
    assert env.step(2)[4] == {"lives": 0, GAME_OVER: True, GAME_RETURN: 2.0, GAME_LENGTH: 2}


def test_last_life_ends_with_the_game_itself():
    # no life is left for two frames before the game is over: one end, not two
    env = layers(Script([LOST, ON2, (0.0, 0, False, False), (0.0, 0, False, False), OVER]))
    env.reset(seed=0)
    assert env.step(0)[2]
    env.reset()
    assert [env.step(0)[2] for _ in range(3)] == [False, False, True]


def test_won_life_does_not_terminate_but_its_loss_does():
    env = layers(Script([(0.0, 4, False, False), ON, OVER]))
    env.reset(seed=0)
    assert [env.step(0)[2] for _ in range(2)] == [False, True]


def test_reset_in_the_middle_and_with_a_seed_is_real():
    script = Script([LOST, ON2, OVER])
    env = layers(script)
    env.reset(seed=0)
    env.step(0)
    env.reset(seed=1)  # after a lost life
    env.reset()  # in the middle of an episode
    assert script.log == ["reset", 0, "reset", "reset"]


def test_lost_life_at_the_limit_is_both_ends():
    script = Script([(1.0, 2, False, True)])
    env = layers(script)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info[GAME_OVER]) == (True, True, False)
    env.reset()
    assert script.log == ["reset", 0, "reset"]


# --- FIRE ---


def test_fire_follows_every_reset():
    script = Script([ON, LOST, ON2, ON2, OVER])
    env = layers(script, fire=True)
    obs, _ = env.reset(seed=0)
    assert obs[0, 0] == 1
    env.step(2)
    env.reset()
    assert env.step(2)[4] == {"lives": 0, GAME_OVER: True, GAME_RETURN: 4.0, GAME_LENGTH: 2}  # 0+1+0.5+0.5+2
    assert script.log == ["reset", 1, 2, 0, 1, 2]  # FIRE; a life; no-op, FIRE


def test_fire_that_ends_the_game_is_followed_by_a_reset():
    script = Script([(5.0, 0, True, False)], [ON, OVER])
    env = layers(script, fire=True)
    obs, _ = env.reset(seed=0)
    assert obs[0, 0] == 0
    assert script.log == ["reset", 1, "reset"]
    assert env.step(2)[4][GAME_RETURN] == 0.0  # of the second game


def test_fire_is_found_by_its_name():
    script = Script([ON, ON], meanings=("NOOP", "LEFT", "FIRE"))
    FireOnReset(script).reset(seed=0)
    assert script.log == ["reset", 2]


# --- sticky actions ---


def test_sticky_actions_hold_the_last_action_as_often_as_asked():
    script = Script([ON] * 4000)
    env = StickyActions(script, 0.25)
    env.reset(seed=0)
    for t in range(3000):
        env.step(1 + t % 2)
    played = np.array(script.log[1:])
    asked = 1 + np.arange(3000) % 2
    # a held action is the other one, or the same again after two in a row: 1/4 held of them
    held = np.mean(played[1:] == played[:-1])
    # P(two in a row equal) = 0.25 (this one held) * 1 + 0.75 (fresh) * P(the one before is the same as asked now):
    # the one before shows the other action unless it was held itself: x = 0.25 * (1 - x) -> x = 0.2
    assert held == pytest.approx(0.25 + 0.75 * 0.2, abs=0.03)
    assert np.mean(played != asked) == pytest.approx(0.2, abs=0.03)


def test_first_sticky_action_of_a_game_is_a_no_op():
    script = Script([ON, ON])
    env = StickyActions(script, 1.0)
    env.reset(seed=0)
    env.step(2)
    assert script.log == ["reset", 0]


# --- the whole of it ---


def kinds(env):
    found = []
    while isinstance(env, gym.Wrapper):
        found.append(type(env).__name__)
        env = env.env
    return found


def test_layers_stand_in_order():
    made = kinds(make_env("ALE/Breakout-v5", {"terminal_on_life_loss": True}))
    assert made[:7] == [
        "FrameStackObservation", "CountDecisions", "FireOnReset", "EpisodicLife", "AtariPreprocessing", "GameRecord",
        "StickyActions",
    ]  # fmt: skip
    plain = kinds(make_env("ALE/Freeway-v5", {"repeat_action_probability": 0.0}))  # which has no FIRE
    assert plain[:4] == ["FrameStackObservation", "CountDecisions", "AtariPreprocessing", "GameRecord"]
    assert "FireOnReset" not in kinds(make_env("ALE/Breakout-v5", {"fire_reset": False}))


def test_wrappers_of_the_user_go_outermost():
    env = make_env("ALE/Pong-v5", {}, ("gymnasium.wrappers:RecordEpisodeStatistics",))
    assert kinds(env)[:2] == ["RecordEpisodeStatistics", "FrameStackObservation"]
    spec = env_spec(env)
    assert (spec.obs_shape, spec.obs_dtype, spec.actions, spec.frame_stack) == ((4, 84, 84), "uint8", 6, 4)


def test_settings_reach_the_game():
    kwargs = {"full_action_space": True, "screen_size": 42, "stack": 2, "mode": 1, "difficulty": 1}
    env = make_env("ALE/Pong-v5", kwargs)
    assert env_spec(env).obs_shape == (2, 42, 42)
    assert env.action_space.n == 18
    env.reset(seed=0)
    assert (env.unwrapped._game_mode, env.unwrapped._game_difficulty) == (1, 1)


def test_rendering_films_raw_rgb():
    env = make_env("ALE/Pong-v5", render=True)
    env.reset(seed=0)
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((210, 160, 3), np.uint8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noop_mx": 3}, r"unexpected keyword argument 'noop_mx'"),
        ({"frameskip": 4}, r"frameskip is set by the preprocessing; use frame_skip$"),
        ({"max_episode_steps": 4}, r"use max_num_frames_per_episode$"),
        ({"noop_max": -1}, r"noop_max -1 is less than 0$"),
        ({"frame_skip": 0}, r"frame_skip 0 is less than 1$"),
        ({"stack": 2.0}, r"stack 2\.0 is not a whole number$"),
        ({"stack": True}, r"stack True is not a whole number$"),
        ({"repeat_action_probability": 1.5}, r"repeat_action_probability 1\.5 is not in \[0, 1\]$"),
        ({"terminal_on_life_loss": "yes"}, r"terminal_on_life_loss 'yes' is not true or false$"),
        ({"mode": 99}, r"[Ii]nvalid game mode"),
    ],
)
def test_wrong_settings_are_named_in_one_line(kwargs, message):
    with pytest.raises(DeeprlError, match=rf"^ALE/Pong-v5.*{message}") as raised:
        make_env("ALE/Pong-v5", kwargs)
    assert "\n" not in str(raised.value)


def test_missing_opencv_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DeeprlError, match=r"pip install 'deeprl\[atari\]'$"):
        make_env("ALE/Pong-v5")


def test_defaults_are_those_of_the_ids():
    make_env("ALE/Pong-v5")
    registered = gym.spec("ALE/Pong-v5").kwargs
    settings = AtariSettings()
    for name in ("repeat_action_probability", "full_action_space", "max_num_frames_per_episode"):
        assert getattr(settings, name) == registered[name]


# --- frames, against the bare game ---


def test_observation_is_the_brighter_of_the_last_two_frames_gray_and_small():
    env = make_env("ALE/SpaceInvaders-v5", {"repeat_action_probability": 0.0, "noop_max": 1, "fire_reset": False})
    raw = gym.make("ALE/SpaceInvaders-v5", frameskip=1, repeat_action_probability=0.0, obs_type="grayscale")
    obs, _ = env.reset(seed=0)
    raw.reset(seed=0)
    first = raw.step(0)[0]  # noop_max 1: always one
    small = [cv2.resize(first, (84, 84), interpolation=cv2.INTER_AREA)] * 4
    assert np.array_equal(obs, np.stack(small))
    rng = np.random.default_rng(0)
    differs = 0
    for _ in range(40):
        action = int(rng.integers(6))
        obs, reward, *_ = env.step(action)
        frames, rewards = zip(*[raw.step(action)[:2] for _ in range(4)], strict=True)
        small = [*small[1:], cv2.resize(np.maximum(frames[2], frames[3]), (84, 84), interpolation=cv2.INTER_AREA)]
        assert np.array_equal(obs, np.stack(small))
        assert reward == sum(rewards)
        differs += not np.array_equal(frames[2], frames[3])
    assert differs > 5  # shots of this game are drawn in every other frame


def play_to_the_end(env_kwargs, moves):
    """Rewards and ends of a game, its stacks, and its bare frames, the one after the only no-op first."""
    kwargs = {"repeat_action_probability": 0.0, "noop_max": 1, "fire_reset": False} | env_kwargs
    env = make_env("ALE/Breakout-v5", kwargs)
    raw = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0, obs_type="grayscale")
    limit = kwargs.get("max_num_frames_per_episode", 10**6)
    stacks = [env.reset(seed=0)[0]]
    raw.reset(seed=0)
    frames, over = [raw.step(0)[0]], False
    for move in moves:
        played = 0
        while played < kwargs.get("frame_skip", 4) and not over:
            frame, _, terminated, _, _ = raw.step(move)
            frames.append(frame)
            played += 1
            over = terminated or len(frames) == limit
        obs, _, terminated, truncated, _ = env.step(move)
        stacks.append(obs)
        assert (terminated or truncated) == over
        if over:
            return stacks, frames, terminated
    raise AssertionError("the game does not end")


@pytest.mark.parametrize(
    ("skip", "limit"), [(4, 101), (4, 102), (4, 103), (4, 104), (2, 102), (2, 103), (1, 100), (4, 10**6), (3, 10**6)]
)
def test_last_observation_of_a_game_shows_its_last_frames(skip, limit):
    settings = {"frame_skip": skip, "max_num_frames_per_episode": limit}
    stacks, frames, terminated = play_to_the_end(settings, [(1, 2, 3, 3)[t % 4] for t in range(1000)])
    assert terminated == (limit == 10**6)
    last = frames[-1] if skip == 1 else np.maximum(frames[-2], frames[-1])
    assert np.array_equal(stacks[-1][-1], cv2.resize(last, (84, 84), interpolation=cv2.INTER_AREA))
    assert np.array_equal(stacks[-1][:-1], stacks[-2][1:])


def test_states_without_the_last_frames_are_read():
    """As an older version wrote them."""
    make = EnvFactory("ALE/Breakout-v5", {"repeat_action_probability": 0.0, "max_num_frames_per_episode": 120}, ())
    envs, other = PopulationEnvs(make, [0]), PopulationEnvs(make, [1])
    moves = np.ones((40, 1, 1), np.int64)
    for move in moves[:7]:
        envs.step(move)
    state = envs.state_dict()
    for memory in state["envs"][0]["wrappers"]:
        for name in ("frame", "frame_before", "new_game"):
            memory.pop(name, None)
    assert other.load_state_dict(state) == 0
    ends = 0
    for move in moves[7:]:
        t, t1 = envs.step(move), other.step(move)
        assert all(np.array_equal(a, b) for a, b in zip(t, t1, strict=True))
        ends += int(t.truncated.sum())
    assert ends == 1


def test_number_of_no_ops_is_1_to_30_and_drawn_from_the_seed():
    env = make_env("ALE/Pong-v5", {"fire_reset": False})
    rounds = []
    for _ in range(2):
        starts = [env.reset(seed=3), *(env.reset() for _ in range(50))]
        rounds.append([info["episode_frame_number"] for _, info in starts])
    assert rounds[0] == rounds[1]
    assert min(rounds[0]) >= 1
    assert max(rounds[0]) <= 30
    assert len(set(rounds[0])) > 15


@pytest.mark.parametrize("kwargs", [NATURE, {}])
def test_seeded_reset_depends_on_the_seed_alone(kwargs):
    env, fresh = (make_env("ALE/Breakout-v5", kwargs) for _ in range(2))
    env.reset(seed=0)
    while not env.step(1)[2]:  # to a lost life, or the end of the game
        pass

    def start(env):
        first = env.reset(seed=7)[0]
        return [first, *(env.step(2 + t % 2)[0] for t in range(30))]

    assert np.array_equal(start(env), start(fresh))


@pytest.mark.parametrize("lost_lives", [True, False])
def test_limit_of_frames_truncates(lost_lives):
    env = make_env("ALE/Pong-v5", {"max_num_frames_per_episode": 100, "terminal_on_life_loss": lost_lives})
    env.reset(seed=0)
    for _ in range(25):
        _, _, terminated, truncated, info = env.step(0)
        if truncated:
            break
    assert (terminated, truncated, info[GAME_OVER]) == (False, True, False)
    assert info["episode_frame_number"] == 100
    obs, info = env.reset()
    assert info["episode_frame_number"] <= 30 + 4  # no-ops and FIRE
    assert all(np.array_equal(frame, obs[0]) for frame in obs)


def test_stack_after_a_lost_life_is_copies_too():
    env = make_env("ALE/Breakout-v5", NATURE)
    env.reset(seed=0)
    while not (step := env.step(0))[2]:
        pass
    assert (step[4]["lives"], step[4][GAME_OVER]) == (4, False)
    obs, _ = env.reset()
    assert all(np.array_equal(frame, obs[0]) for frame in obs)
    assert not np.array_equal(obs, step[0])
    after = env.step(0)[0]
    assert [np.array_equal(frame, obs[0]) for frame in after] == [True, True, True, False]


# --- in a population ---


def by_hand(seed, moves):
    """Whole games of one agent as (return, length), by the bare preprocessing; and how many lives they took."""
    env = make_env("ALE/Breakout-v5", NATURE)
    env.reset(seed=seed)
    games, total, length, lives = [], 0.0, 0, 0
    for move in moves:
        _, reward, terminated, truncated, info = env.step(int(move))
        total, length = total + reward, length + 1
        if terminated or truncated:
            lives += 1
            if info[GAME_OVER]:
                games.append((total, length))
                total, length = 0.0, 0
            env.reset()
    return games, lives


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_population_counts_whole_games(backend):
    envs = PopulationEnvs(EnvFactory("ALE/Breakout-v5", NATURE, ()), [3, 4], 1, backend)
    moves = np.random.default_rng(1).integers(0, 4, (260, 2, 1))
    terminated, info = np.zeros(2, int), None
    for move in moves:
        transition = envs.step(move)
        terminated += transition.terminated[:, 0]
        assert transition.next_obs.dtype == np.uint8
        same = envs.obs[..., 0, :, :] == envs.obs[..., 3, :, :]
        assert same.all((-2, -1))[envs.is_first].all()  # a stack of copies
    episodes = envs.pop_episodes()
    info = envs.vector.step(np.zeros(2, np.int64))[4]
    envs.close()
    assert info == {}  # of steps that end nothing: nobody reads what other infos hold
    assert len(episodes) >= 2
    for m in range(2):
        games, lives = by_hand(env_seeds((3, 4)[m], "env", 1)[0], moves[:, m, 0])
        assert [(e.ret, e.length) for e in episodes if e.member == m] == games
        assert terminated[m] == lives >= 5 * len(games)


@pytest.mark.parametrize(("wrappers", "kind"), [((), "captured"), (("opaque_envs:Holder",), "replayed")])
def test_population_goes_on_from_a_saved_state(wrappers, kind, tmp_path):
    make = EnvFactory("ALE/Breakout-v5", {"terminal_on_life_loss": True}, wrappers)
    moves = np.random.default_rng(1).integers(0, 4, (230, 2, 1))
    envs = PopulationEnvs(make, [3, 4])
    assert envs.restorable == kind
    for move in moves[:60]:
        envs.step(move)
    checkpoint.save(tmp_path, 60, {"envs": envs.state_dict()})
    other = PopulationEnvs(make, [5, 6])
    assert other.load_state_dict(checkpoint.load_checkpoint(tmp_path)[1]["envs"]) == 0
    assert not other.is_first.all()
    for move in moves[60:]:
        t, t1 = envs.step(move), other.step(move)
        assert all(np.array_equal(a, b) for a, b in zip(t, t1, strict=True))
    episodes = envs.pop_episodes()
    assert episodes == other.pop_episodes()
    assert len(episodes) >= 2


class Still(Policy):
    def __init__(self):
        self.seed = 0

    def reset(self):
        pass

    def __call__(self, obs):
        return 0


def test_film_shows_the_whole_game():
    env = make_env("ALE/Breakout-v5", NATURE, render=True)
    frames = watch._film(env, Still(), 1000).frames
    games, lives = by_hand(env_seeds(0, "eval", 1)[0], [0] * 300)
    assert len(frames) == 1 + games[0][1]
    assert lives > 5


def test_evaluation_plays_whole_games():
    evaluator = Evaluator(EnvFactory("ALE/Breakout-v5", NATURE, ()), [3], 2)
    episodes = evaluator(lambda obs, is_first, keys: np.full(obs.shape[:2], 3))
    evaluator.close()
    for e, start in enumerate(env_seeds(3, "eval", 2)):
        games, _ = by_hand(start, [3] * 400)
        assert episodes[e] == Episode(0, e, *games[0])


# --- MinAtar ---


@pytest.mark.parametrize(
    ("game", "channels", "actions"),
    [("Asterix", 4, 5), ("Breakout", 4, 3), ("Freeway", 7, 3), ("Seaquest", 10, 6), ("SpaceInvaders", 6, 4)],
)
def test_minatar_observes_bool_images(game, channels, actions, recwarn):
    pytest.importorskip("minatar")
    env = make_env(f"MinAtar/{game}-v1")
    spec = env_spec(env)
    assert (spec.obs_shape, spec.obs_dtype, spec.actions, spec.frame_stack) == ((10, 10, channels), "bool", actions, 0)
    obs, _ = env.reset(seed=0)
    assert (obs.shape, obs.dtype) == ((10, 10, channels), np.bool_)
    assert env_spec(make_env(f"MinAtar/{game}-v0")).actions == 6
    assert not [w for w in recwarn if "Overriding" in str(w.message)]


def test_minatar_freeway_ends_as_terminated():
    pytest.importorskip("minatar")
    env = make_env("MinAtar/Freeway-v1")
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(2501)]  # 2,500 frames, and the one that finds the timer below zero
    assert ends == [(False, False)] * 2500 + [(True, False)]


def test_minatar_seeded_reset_depends_on_the_seed_alone():
    pytest.importorskip("minatar")
    env, fresh = (make_env("MinAtar/Breakout-v1", {"sticky_action_prob": 0.9}) for _ in range(2))
    env.reset(seed=1)
    env.step(1)

    def start(env):
        first = env.reset(seed=7)[0]
        return [first, *(env.step(2)[0] for _ in range(6))]

    assert np.array_equal(start(env), start(fresh))
    env.step(1)
    held = env.unwrapped.game.last_action
    env.reset()
    assert env.unwrapped.game.last_action == held  # MinAtar's own way
