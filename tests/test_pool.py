import gymnasium as gym
import numpy as np
import pytest

from deeprl.core.spec import EnvSpec
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.pool import CROPPED, EnvPoolVector
from deeprl.envs.vector import PopulationEnvs, env_seeds
from deeprl.errors import DeeprlError

pytest.importorskip("envpool")

NATURE = {"repeat_action_probability": 0.0, "terminal_on_life_loss": True}


def population(env, kwargs=None, seeds=(0, 1, 2), width=1):
    return PopulationEnvs(EnvFactory(env, dict(kwargs or {}), ()), list(seeds), width, "envpool")


def play(envs, steps, seed=0):
    """Transitions, and is_first and obs after each."""
    draw = np.random.default_rng(seed)
    record = []
    for _ in range(steps):
        if envs.spec.discrete:
            move = draw.integers(0, envs.spec.actions, (envs.agents, envs.width))
        else:
            move = draw.uniform(-1, 1, (envs.agents, envs.width, envs.spec.action_dim)).astype(np.float32)
        record.append((envs.step(move), envs.is_first.copy(), envs.obs.copy()))
    return record


# --- resets ---


def test_every_transition_is_one_step_of_the_dynamics():
    """No junk transition, and the true successor at the ends: each step is done again by Gymnasium's CartPole."""
    envs = population("CartPole-v1", width=2)
    reference = gym.make("CartPole-v1").unwrapped
    reference.reset(seed=0)
    ends = 0
    for t, first, after in play(envs, 60):
        for place in np.ndindex(3, 2):
            reference.state, reference.steps_beyond_terminated = t.obs[place].astype(float), None
            next_obs, reward, terminated, _, _ = reference.step(int(t.action[place]))
            assert t.next_obs[place] == pytest.approx(next_obs, abs=1e-5)
            assert t.reward[place] == reward
            assert t.terminated[place] == terminated == first[place]
            assert np.array_equal(after[place], t.next_obs[place]) == (not terminated)
            ends += terminated
        assert (np.abs(after[first]) <= 0.05).all()  # CartPole starts there
    assert ends > 10
    assert len(envs.pop_episodes()) == ends
    envs.close()


def test_time_limit_truncates():
    envs = population("Pendulum-v1", {"max_episode_steps": 7})
    record = play(envs, 15)
    assert [bool(t.truncated.all()) for t, _, _ in record] == ([False] * 6 + [True]) * 2 + [False]
    assert not any(t.terminated.any() for t, _, _ in record)
    episodes = envs.pop_episodes()
    assert [e.length for e in episodes] == [7] * 6
    assert episodes[0].ret == pytest.approx(sum(float(t.reward[0, 0]) for t, _, _ in record[:7]), rel=1e-6)


def test_some_ends_leave_the_others_alone():
    envs, calm = (population("CartPole-v1", seeds=seeds) for seeds in ((0, 1, 2), (1,)))
    middle = np.random.default_rng(0).integers(0, 2, 60)
    for a in middle:
        t = envs.step(np.array([[0], [a], [1]]))  # the outer ones end all the time
        alone = calm.step(np.array([[a]]))
        assert all(np.array_equal(x[1], y[0]) for x, y in zip(t, alone, strict=True))


def test_earlier_transitions_are_not_overwritten():
    envs = population("ALE/Breakout-v5", NATURE)
    first = envs.step(np.zeros((3, 1), np.int64))
    copies = [np.array(x) for x in first]
    play(envs, 30)
    assert all(np.array_equal(a, b) for a, b in zip(first, copies, strict=True))


# --- seeds and state ---


def test_env_depends_on_its_seed_alone():
    together, alone = population("ALE/Pong-v5", seeds=(5, 0, 9)), population("ALE/Pong-v5", seeds=(9,))
    assert np.array_equal(together.obs[2], alone.obs[0])
    move = np.full((3, 1), 2)
    for _ in range(30):
        t, t1 = together.step(move), alone.step(move[:1])
        assert np.array_equal(t.next_obs[2], t1.next_obs[0])


def test_reset_with_the_same_seeds_begins_the_same_and_with_others_does_not():
    make = EnvFactory("ALE/Breakout-v5", NATURE, ())
    seeds = env_seeds(3, "env", 2)
    vector = EnvPoolVector(make, seeds)

    def start(seeds):
        obs = [vector.reset(seed=seeds)[0]]
        obs += [vector.step(np.array([2, 3]))[0] for _ in range(12)]
        return np.stack(obs)

    first = start(seeds)
    assert np.array_equal(start(seeds), first)
    assert not np.array_equal(start([s + 1 for s in seeds]), first)
    vector.close()


def test_resumed_pool_begins_new_episodes():
    envs = population("ALE/Breakout-v5", NATURE)
    play(envs, 12)
    state = envs.state_dict()
    assert state["envs"] == []
    other = population("ALE/Breakout-v5", NATURE)
    assert other.load_state_dict(state) == 3
    assert other.is_first.all()
    assert (other.obs == other.obs[:, :, :1]).all()  # stacks of copies
    episodes = [e for _ in range(40) for e in (play(other, 10), other.pop_episodes())[1]]
    assert len(episodes) >= 3
    assert all(e.length > 20 for e in episodes)


# --- Atari ---


def test_spec_is_that_of_the_other_backend():
    kwargs = {"screen_size": 42, "stack": 3, "full_action_space": True}
    make = EnvFactory("ALE/Breakout-v5", kwargs, ())
    assert population("ALE/Breakout-v5", kwargs).spec == PopulationEnvs(make, [0]).spec
    expected = EnvSpec((4, 84, 84), 0, (), (), "uint8", 6, 0, 4)
    assert population("ALE/Pong-v5").spec == expected
    sync = PopulationEnvs(EnvFactory("Pendulum-v1", {}, ()), [0]).spec
    assert population("Pendulum-v1").spec == sync


def test_settings_reach_envpool():
    kwargs = {"repeat_action_probability": 0.5, "noop_max": 7, "frame_skip": 2, "fire_reset": False, "difficulty": 1}
    config = EnvPoolVector(EnvFactory("ALE/Breakout-v5", kwargs, ()), [0])._pool.config
    names = ("repeat_action_probability", "noop_max", "frame_skip", "use_fire_reset", "difficulty", "reward_clip")
    assert [config[n] for n in names] == [0.5, 7, 2, False, 1, False]
    assert config["max_episode_steps"] == 54_000  # 108,000 frames, two of them a step
    assert not config["episodic_life"]
    assert config["use_inter_area_resize"]
    assert config["gray_scale"]


def test_lost_lives_end_episodes_and_games_are_counted_whole():
    envs = population("ALE/Breakout-v5", NATURE)
    record = play(envs, 500)
    episodes = envs.pop_episodes()
    assert len(episodes) >= 3
    for m in range(3):
        rewards = [float(t.reward[m, 0]) for t, _, _ in record]
        ends = [i for i, (t, _, _) in enumerate(record) if t.terminated[m, 0]]
        games = [e for e in episodes if e.member == m]
        assert len(ends) >= 5 * len(games)  # Breakout has five lives
        start = 0
        for i, game in enumerate(games):
            end = ends[5 * i + 4]
            assert game[2:] == (sum(rewards[start : end + 1]), end + 1 - start)
            start = end + 1
        assert sum(e.ret for e in games) > 0


def test_stack_of_every_first_observation_is_copies():
    envs = population("ALE/Breakout-v5", NATURE)
    lost = 0
    age = np.zeros(3, int)
    last = envs.obs[:, 0].copy()
    for t, first, after in play(envs, 200):
        age += 1
        for m in range(3):
            next_obs = t.next_obs[m, 0]
            assert np.array_equal(next_obs[:3], last[m][1:])  # the stack before, one frame on
            if first[m, 0]:
                lost, age[m] = lost + 1, 0
                assert (after[m, 0] == after[m, 0][-1]).all()
        last = after[:, 0]
    assert lost > 10


def test_whole_games_without_life_loss():
    envs = population("ALE/Breakout-v5", {"repeat_action_probability": 0.0})
    record = play(envs, 400)
    episodes = envs.pop_episodes()
    ends = sum(int(t.terminated.sum()) for t, _, _ in record)
    assert len(episodes) == ends >= 2


def test_limit_of_frames_truncates_and_a_new_game_begins():
    envs = population("ALE/Pong-v5", {"max_num_frames_per_episode": 100, "terminal_on_life_loss": True})
    record = play(envs, 51)
    assert [i for i, (t, _, _) in enumerate(record) if t.truncated.all()] == [24, 49]
    assert not any(t.terminated.any() for t, _, _ in record)
    assert [e.length for e in envs.pop_episodes()] == [25] * 6


# --- errors ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (EnvFactory("ALE/Pong-v5", {}, ("a:B",)), r"^env_backend: envpool takes no wrappers \(a:B\)"),
        (EnvFactory("ALE/Pog-v5", {}, ()), r"^EnvPool has no environment 'ALE/Pog-v5'; did you mean .*Pong-v5"),
        (EnvFactory("zzzz", {}, ()), r"^EnvPool has no environment 'zzzz'$"),
        (EnvFactory("ALE/Pong-v5", {"noop_mx": 1}, ()), r"^EnvPool's ALE/Pong-v5 with arguments .*'noop_mx'"),
        (EnvFactory("ALE/Pong-v5", {"noop_max": 0}, ()), r"EnvPool needs a noop_max of at least 1"),
        (EnvFactory("ALE/Pooyan-v5", {}, ()), r"^ALE/Pooyan-v5: EnvPool shows only a part of this game's screen"),
        (EnvFactory("ALE/Pong-v5", {"mode": 99}, ()), r"^EnvPool's ALE/Pong-v5 .*[Ii]nvalid game mode"),
        (EnvFactory("CartPole-v1", {"num_envs": 3}, ()), r"^EnvPool's CartPole-v1 .*num_envs"),
        (EnvFactory("FrozenLake-v1", {}, ()), r"^FrozenLake-v1 observes Discrete.*supported are Box"),
    ],
)
def test_what_envpool_cannot_do_is_said_in_one_line(make, message):
    with pytest.raises(DeeprlError, match=message) as raised:
        EnvPoolVector(make, [0])
    assert "\n" not in str(raised.value)


def test_games_that_envpool_would_crop_have_taller_screens():
    roms = pytest.importorskip("ale_py.roms")
    make_env("ALE/Pong-v5")  # registers the names
    ale = pytest.importorskip("ale_py").ALEInterface()
    for name in {"Pong", "Seaquest", *CROPPED}:  # benchmarks/atari.py looks at all others, too
        ale.loadROM(roms.get_rom_path(gym.spec(f"ALE/{name}-v5").kwargs["game"]))
        height, width = ale.getScreenDims()
        assert (height > 210, width) == (name in CROPPED, 160)
