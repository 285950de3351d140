import dataclasses
import json
import pickle
import sys

import gymnasium as gym
import numpy as np
import pytest

from deeprl.core.objects import load_object
from deeprl.core.spec import EnvSpec
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.pool import EnvPoolVector
from deeprl.envs.spaces import env_spec, require, to_env_action
from deeprl.envs.vector import Episode, PopulationEnvs, env_seeds
from deeprl.errors import DeeprlError
from deeprl.run import checkpoint

PENDULUM = EnvFactory("Pendulum-v1", {"max_episode_steps": 12}, ())
HOPPER = EnvFactory("Hopper-v5", {"max_episode_steps": 25}, ())  # random actions fall after 10 to 40 steps


def actions(steps, agents, width, dim, seed=0):
    """Random actions in [-1, 1]: [T, S, N, A]; those of agent m in environment e depend on (m, e) alone.

    Multiples of 1/1024, so that rescaling them in float32 does not round.
    """
    drawn = [
        [np.random.default_rng([seed, m, e]).uniform(-1, 1, (steps, dim)) for e in range(width)] for m in range(agents)
    ]
    return (np.round(np.array(drawn) * 1024) / 1024).astype(np.float32).transpose(2, 0, 1, 3)


def play(envs, moves):
    """Transitions, observations before and after, is_first after each step; and all finished episodes."""
    record = []
    for move in moves:
        before, first = envs.obs.copy(), envs.is_first.copy()
        t = envs.step(move)
        assert np.array_equal(t.obs, before)
        record.append((t, first, envs.obs.copy()))
    return record, envs.pop_episodes()


def by_hand(make, seed, moves, high):
    """The same with a single Gymnasium environment: rows (obs, reward, terminated, truncated, next_obs, is_first)."""
    env = make()
    obs, _ = env.reset(seed=seed)
    rows, episodes, total, length, first = [], [], 0.0, 0, True
    for move in moves:
        next_obs, reward, terminated, truncated, _ = env.step(np.float32(high) * move)
        rows.append((obs, reward, terminated, truncated, next_obs, first))
        total, length, obs, first = total + reward, length + 1, next_obs, False
        if terminated or truncated:
            episodes.append((total, length))
            obs, total, length, first = env.reset()[0], 0.0, 0, True
    return rows, episodes, obs


def f32(x):
    return np.asarray(x, np.float32)


@pytest.mark.parametrize(
    ("make", "high", "steps"), [(PENDULUM, 2.0, 40), (HOPPER, 1.0, 90)], ids=["truncated", "terminated"]
)
def test_transitions_equal_a_hand_stepped_env(make, high, steps):
    envs = PopulationEnvs(make, [3, 8], 2)
    moves = actions(steps, 2, 2, envs.spec.action_dim)
    record, episodes = play(envs, moves)
    ends = {"terminated": 0, "truncated": 0}
    for m, seed in enumerate((3, 8)):
        for e, start in enumerate(env_seeds(seed, "env", 2)):
            rows, expected, last = by_hand(make, start, moves[:, m, e], high)
            for (t, first, after), (obs, reward, terminated, truncated, next_obs, is_first) in zip(
                record, rows, strict=True
            ):
                assert np.array_equal(t.obs[m, e], f32(obs))
                assert np.array_equal(t.next_obs[m, e], f32(next_obs))  # the true successor, at ends too
                assert t.reward[m, e] == f32(reward)
                assert t.terminated[m, e] == terminated
                assert t.truncated[m, e] == truncated
                assert first[m, e] == is_first
                ended = terminated or truncated
                assert np.array_equal(after[m, e], f32(next_obs)) == (not ended)
                ends["terminated"] += terminated
                ends["truncated"] += truncated
            assert np.array_equal(envs.obs[m, e], f32(last))
            found = [(ep.ret, ep.length) for ep in episodes if (ep.member, ep.env) == (m, e)]
            assert found == [(pytest.approx(ret, rel=1e-12), length) for ret, length in expected]
    if make is PENDULUM:
        assert ends == {"terminated": 0, "truncated": 4 * 3}  # 40 steps hold three episodes of 12
    else:
        assert ends["terminated"] > 4
    envs.close()


def test_obs_after_an_end_is_the_reset_observation():
    envs = PopulationEnvs(PENDULUM, [3], 1)
    record, _ = play(envs, actions(13, 1, 1, 1))
    end, _, after = record[11]
    assert end.truncated.all()
    assert not end.terminated.any()
    following = record[12][0]
    assert np.array_equal(following.obs, after)
    assert not np.array_equal(after, end.next_obs)
    assert [bool(first.item()) for _, first, _ in record] == [True] + [False] * 11 + [True]


def test_both_ends_at_once_are_both_reported():
    class Both(gym.Wrapper):
        def step(self, action):
            obs, reward, _, truncated, info = self.env.step(action)
            return obs, reward, truncated, truncated, info

    envs = PopulationEnvs(lambda: Both(gym.make("Pendulum-v1", max_episode_steps=3)), [0])
    record, _ = play(envs, actions(3, 1, 1, 1))
    assert [(t.terminated.item(), t.truncated.item()) for t, _, _ in record] == [(False, False)] * 2 + [(True, True)]


def test_earlier_transitions_are_not_overwritten():
    envs = PopulationEnvs(PENDULUM, [3], 2)
    moves = actions(13, 1, 2, 1)
    first = envs.step(moves[0])
    copies = [np.array(x) for x in first]
    for move in moves[1:]:
        envs.step(move)
    assert all(np.array_equal(a, b) for a, b in zip(first, copies, strict=True))


class Count(gym.Env):
    """Reward 1, 2, 3, ... within an episode; ends as `terminated` after 3 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0]), {}

    def step(self, action):
        self.t += 1
        self.last_action = action
        return np.array([float(self.t)]), float(self.t), self.t == 3, False, {}


def test_returns_and_lengths_by_hand():
    envs = PopulationEnvs(Count, [0, 1], 2)
    for _ in range(7):
        envs.step(np.zeros((2, 2, 2), np.float32))
    # 1 + 2 + 3 = 6 in three steps, twice; in the order of their ends, then member, then environment
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert envs.pop_episodes() == [Episode(m, e, 6.0, 3) for _ in range(2) for m, e in places]
    assert envs.pop_episodes() == []
    for _ in range(2):
        envs.step(np.zeros((2, 2, 2), np.float32))
    assert envs.pop_episodes() == [Episode(m, e, 6.0, 3) for m, e in places]  # one step was done before


def test_obs_is_float32_whatever_the_env_gives():
    envs = PopulationEnvs(Count, [0])
    t = envs.step(np.zeros((1, 1, 2), np.float32))
    assert t.obs.dtype == t.next_obs.dtype == t.reward.dtype == np.float32
    assert t.terminated.dtype == t.truncated.dtype == np.bool_


# --- actions ---


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ([-1.0, -1.0], [-1.0, 0.0]),
        ([1.0, 1.0], [3.0, 10.0]),
        ([0.0, 0.0], [1.0, 5.0]),  # the middles of [-1, 3] and [0, 10]
        ([0.5, -0.5], [2.0, 2.5]),  # -1 + 1.5 / 2 * 4 and 0 + 0.5 / 2 * 10
        ([1.5, -7.0], [3.0, 0.0]),  # clipped
    ],
)
def test_actions_are_rescaled_to_asymmetric_bounds(action, expected):
    envs = PopulationEnvs(Count, [0])
    envs.step(np.array(action, np.float32).reshape(1, 1, 2))
    sent = envs.vector.envs[0].unwrapped.last_action
    assert sent.dtype == np.float32
    assert sent.tolist() == expected
    spec = EnvSpec((1,), 2, (-1.0, 0.0), (3.0, 10.0))
    assert to_env_action(spec, np.array([[action]], np.float32)).tolist() == [[expected]]


def test_pendulum_actions_are_doubled():
    spec = env_spec(make_env("Pendulum-v1"))
    assert spec == EnvSpec((3,), 1, (-2.0,), (2.0,))
    assert to_env_action(spec, np.array([[-1.0], [0.25], [1.0], [9.0]], np.float32)).ravel().tolist() == [-2, 0.5, 2, 2]


def boxed(box):
    env = Count()
    env.action_space = box
    return env_spec(env)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_actions_are_of_the_spaces_type_and_inside_its_bounds(dtype):
    box = gym.spaces.Box(np.array([-0.4, 0.1], dtype), np.array([0.4, 0.7], dtype), dtype=dtype)
    spec = boxed(box)
    assert spec.action_dtype == np.dtype(dtype).name
    grid = np.linspace(-1.0, 1.0, 201, dtype=np.float32)
    sent = to_env_action(spec, np.stack([grid, grid], -1))
    assert sent.dtype == dtype
    assert all(box.contains(action) for action in sent)
    # 0.4 of float32 is 0.4000000059604645, outside of the bounds of float64
    assert sent[[0, 200]].tolist() == [box.low.tolist(), box.high.tolist()]
    assert sent[100].tolist() == pytest.approx([0.0, 0.4], abs=float(np.finfo(dtype).eps))


def test_bounds_of_half_precision_do_not_overflow():
    spec = boxed(gym.spaces.Box(-6e4, 6e4, (1,), np.float16))  # 12e4 is infinite there
    assert to_env_action(spec, np.array([[-1.0], [0.5], [1.0]], np.float32)).ravel().tolist() == [-6e4, 3e4, 6e4]


def test_float32_actions_are_the_numbers_they_were():
    low, high = np.float32([-2.3, 0.1]), np.float32([1.7, 0.3])
    given = np.random.default_rng(0).uniform(-1.2, 1.2, (500, 2)).astype(np.float32)
    expected = np.clip(low + (given + 1.0) * 0.5 * (high - low), low, high)
    sent = to_env_action(boxed(gym.spaces.Box(low, high)), given)
    assert (sent.dtype, sent.tobytes()) == (np.float32, expected.tobytes())


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (gym.spaces.Box(0, 4, (2,), np.int64), r"acts in whole numbers, Box\(0, 4.*wrap it to take floats"),
        (gym.spaces.Box(0, 1, (2,), np.uint8), r"acts in whole numbers"),
        (gym.spaces.Box(-3e38, 3e38, (2,), np.float32), r"has unbounded actions .*float32 can hold bounds"),
        (gym.spaces.Box(-1e300, 1e300, (2,), np.float64), r"has unbounded actions"),
        (gym.spaces.Box(np.float32([-1, -np.inf]), np.float32([1, 1])), r"has unbounded actions"),
    ],
)
def test_actions_that_floats_cannot_reach_are_refused(box, message):
    with pytest.raises(DeeprlError, match=rf"^Count {message}"):
        boxed(box)


def test_spec_of_an_older_run_has_float32_actions():
    spec = boxed(gym.spaces.Box(-0.4, 0.4, (1,), np.float64))
    stored = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert EnvSpec.from_json(stored) == spec
    del stored["action_dtype"]
    assert to_env_action(EnvSpec.from_json(stored), np.ones((1, 1), np.float32)).dtype == np.float32


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_doubles_reach_the_environment(backend):
    envs = PopulationEnvs(EnvFactory("odd_envs:Doubles-v0", {}, ()), [0, 1], 1, backend)
    for action in (-1.0, 1.0, 0.25):
        reward = envs.step(np.full((2, 1, 1), action, np.float32)).reward
        assert reward.ravel().tolist() == [np.float32(0.4 * action)] * 2
    envs.close()


def test_transition_keeps_the_unscaled_action():
    envs = PopulationEnvs(Count, [0])
    move = np.array([[[0.5, -0.5]]], np.float32)
    assert np.array_equal(envs.step(move).action, move)


# --- seeds ---


def test_population_of_three_equals_each_alone():
    moves = actions(30, 3, 2, 1)
    together, episodes = play(PopulationEnvs(PENDULUM, [5, 0, 9], 2), moves)
    for m, seed in enumerate((5, 0, 9)):
        alone, own = play(PopulationEnvs(PENDULUM, [seed], 2), moves[:, m : m + 1])
        for (t, first, after), (t1, first1, after1) in zip(together, alone, strict=True):
            assert all(np.array_equal(a[m], b[0]) for a, b in zip(t, t1, strict=True))
            assert np.array_equal(first[m], first1[0])
            assert np.array_equal(after[m], after1[0])
        assert [e._replace(member=0) for e in episodes if e.member == m] == own


@pytest.mark.parametrize("stream", ["env", "eval"])
def test_seed_of_an_env_does_not_depend_on_their_number(stream):
    seven = env_seeds(11, stream, 7, counter=3)
    assert len(set(seven)) == 7
    assert all(0 <= s < 2**31 for s in seven)
    for n in range(1, 7):
        assert env_seeds(11, stream, n, counter=3) == seven[:n]


def test_first_env_is_the_same_beside_others():
    moves = actions(15, 1, 3, 1)
    three, _ = play(PopulationEnvs(PENDULUM, [5], 3), moves)
    one, _ = play(PopulationEnvs(PENDULUM, [5], 1), moves[:, :, :1])
    for (t, _, _), (t1, _, _) in zip(three, one, strict=True):
        assert all(np.array_equal(a[:, :1], b) for a, b in zip(t, t1, strict=True))


def test_seeds_differ_between_agents_streams_and_counters():
    drawn = [env_seeds(*words) for words in ((0, "env", 3), (1, "env", 3), (0, "eval", 3), (0, "eval", 3, 1))]
    assert len({s for seeds in drawn for s in seeds}) == 12


# --- backends and state ---


def test_async_equals_sync():
    moves = actions(30, 2, 1, 1)
    envs = PopulationEnvs(PENDULUM, [5, 9], 1, "async")
    try:
        found, episodes = play(envs, moves)
        spec = envs.spec
    finally:
        envs.close()
    sync = PopulationEnvs(PENDULUM, [5, 9], 1)
    expected, own = play(sync, moves)
    assert spec == sync.spec
    assert episodes == own
    for (t, first, after), (t1, first1, after1) in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(t, t1, strict=True))
        assert np.array_equal(first, first1)
        assert np.array_equal(after, after1)


@pytest.mark.parametrize("make", [PENDULUM, HOPPER], ids=["pendulum", "hopper"])
def test_saved_state_goes_on_bit_for_bit(make, tmp_path):
    envs = PopulationEnvs(make, [5, 9], 2)
    moves = actions(70, 2, 2, envs.spec.action_dim)
    for move in moves[:17]:
        envs.step(move)
    checkpoint.save(tmp_path, 17, {"envs": envs.state_dict()})
    expected, episodes = play(envs, moves[17:])
    other = PopulationEnvs(make, [1, 2], 2)
    assert other.load_state_dict(checkpoint.load_checkpoint(tmp_path)[1]["envs"]) == 0
    found, own = play(other, moves[17:])
    assert own == episodes
    assert len(own) > 4
    for (t, first, after), (t1, first1, after1) in zip(expected, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(t, t1, strict=True))
        assert np.array_equal(first, first1)
        assert np.array_equal(after, after1)


def test_unknown_env_goes_on_after_a_restore():
    envs = PopulationEnvs(Count, [0, 1])
    for _ in range(2):
        envs.step(np.zeros((2, 1, 2), np.float32))
    other = PopulationEnvs(Count, [0, 1])
    assert other.load_state_dict(envs.state_dict()) == 0
    assert not other.is_first.any()
    assert (other.obs == 2).all()
    other.step(np.zeros((2, 1, 2), np.float32))
    assert other.pop_episodes() == [Episode(0, 0, 6.0, 3), Episode(1, 0, 6.0, 3)]


# --- names and errors ---


@pytest.mark.parametrize(
    ("name", "near"),
    [("Pendulm-v1", "Pendulum-v1"), ("halfcheetah-v5", "HalfCheetah-v5"), ("Pendulum-v9", "Pendulum-v1")],
)
def test_unknown_id_gives_the_nearest_names(name, near):
    with pytest.raises(DeeprlError, match=rf"unknown environment '{name}'; did you mean .*{near}"):
        make_env(name)


def test_unlike_any_name_is_one_line():
    with pytest.raises(DeeprlError, match="unknown environment 'zzzz'") as raised:
        make_env("zzzz")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("MinAtar/Breakout-v1", "minatar", "minatar"),
        ("LunarLander-v3", "Box2D", "box2d"),
    ],
)
def test_missing_extra_is_named(name, package, extra, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(DeeprlError, match=rf"{name.split('/')[0]}.*pip install 'deeprl\[{extra}\]'$"):
        make_env(name)


def test_missing_envpool_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(DeeprlError, match=r"pip install 'deeprl\[envpool\]'$"):
        EnvPoolVector(EnvFactory("ALE/Pong-v5", {}, ()), [0])


def test_envpool_refuses_makers_without_a_name():
    with pytest.raises(DeeprlError, match=r"^env_backend: envpool makes its environments by name"):
        PopulationEnvs(lambda: gym.make("CartPole-v1"), [0], 1, "envpool")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("Pendulum-v1", {"gravity": 9.81}, r"unexpected keyword argument 'gravity'"),
        ("Pendulum-v1", {"max_episode_steps": 0}, r"max_episode_steps"),
        ("HalfCheetah-v5", {"xml_file": "absent.xml"}, r"absent\.xml does not exist"),
    ],
)
def test_wrong_arguments_are_named(name, kwargs, message):
    with pytest.raises(DeeprlError, match=rf"^{name} with arguments .*{message}"):
        make_env(name, kwargs)


def test_arguments_reach_the_env():
    assert make_env("Pendulum-v1", {"g": 2.0}).unwrapped.g == 2.0


def test_continuous_algorithms_refuse_discrete_actions():
    with pytest.raises(DeeprlError, match=r"^sac needs continuous actions \(a flat Box\), not 2 discrete"):
        require("sac", env_spec(make_env("CartPole-v1")), "continuous")


def test_discrete_algorithms_refuse_continuous_actions():
    with pytest.raises(DeeprlError, match=r"^dqn needs discrete actions, not 1 continuous ones \(a Box\); try sac"):
        require("dqn", env_spec(make_env("Pendulum-v1")), "discrete")


class Shaped(Count):
    def __init__(self, obs=(1,), low=-1.0):
        self.observation_space = gym.spaces.Box(-1, 1, obs, np.float32)
        self.action_space = gym.spaces.Box(low, 1.0, (2,), np.float32)


def test_algorithms_for_vectors_refuse_images():
    with pytest.raises(
        DeeprlError, match=r"^sac needs vectors, not observations of shape \(8, 8\) .*FlattenObservation"
    ):
        require("sac", env_spec(Shaped(obs=(8, 8))), "continuous")


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (gym.spaces.Dict(a=gym.spaces.Discrete(2)), gym.spaces.Discrete(2), r"observes Dict.*supported are"),
        (gym.spaces.Discrete(5), gym.spaces.Discrete(2), r"observes Discrete\(5\); supported are.*Flatten"),
        (gym.spaces.MultiBinary(3), gym.spaces.Discrete(2), r"observes MultiBinary.*supported are Box vectors"),
        (gym.spaces.Box(0, 1, (2,)), gym.spaces.MultiDiscrete([2, 3]), r"acts in MultiDiscrete.*supported are"),
        (gym.spaces.Box(0, 1, (2,)), gym.spaces.Dict(a=gym.spaces.Discrete(2)), r"acts in Dict.*supported are"),
        (gym.spaces.Box(0, 1, (2,)), gym.spaces.Box(0, 1, (2, 2)), r"acts in Box.*flat Box"),
    ],
)  # fmt: skip
def test_other_spaces_are_refused_with_what_is_supported(obs, action, message):
    env = Count()
    env.observation_space, env.action_space = obs, action
    with pytest.raises(DeeprlError, match=rf"^Count {message}"):
        env_spec(env)


def test_spec_of_discrete_actions_counts_from_the_envs_first():
    env = Count()
    env.action_space = gym.spaces.Discrete(3, start=5)
    spec = env_spec(env)
    assert (spec.discrete, spec.actions, spec.action_dim) == (True, 3, 0)
    assert to_env_action(spec, np.array([[0, 2]])).tolist() == [[5, 7]]


def test_spec_of_images_keeps_their_type_and_finds_the_frame_stack():
    env = Shaped(obs=(8, 8))
    env.observation_space = gym.spaces.Box(0, 255, (8, 8), np.uint8)
    assert env_spec(env).obs_dtype == "uint8"
    assert env_spec(env).frame_stack == 0
    stacked = env_spec(gym.wrappers.FrameStackObservation(env, 4))
    assert (stacked.obs_shape, stacked.frame_stack, stacked.image) == ((4, 8, 8), 4, True)
    last = gym.Wrapper(gym.wrappers.FrameStackObservation(env, 4))
    last.observation_space = gym.spaces.Box(0, 255, (8, 8, 4), np.uint8)  # its first axis is no stack any more
    assert env_spec(last).frame_stack == 0
    assert env_spec(gym.wrappers.FlattenObservation(env)).obs_dtype == "float32"


def test_unbounded_actions_are_refused():
    with pytest.raises(DeeprlError, match=r"Shaped has unbounded actions"):
        env_spec(Shaped(low=-np.inf))


MODULE = """
import gymnasium as gym

class Double(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

class AddTen(gym.RewardWrapper):
    def reward(self, reward):
        return reward + 10

gym.register("{name}-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=5)
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Name of a module in the current directory that registers an environment `<Name>-v0` and holds wrappers."""
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)
    gym.registry.pop(f"{name}-v0", None)


def test_module_of_the_current_directory_registers_its_env(module):
    env = make_env(f"{module}:{module}-v0")
    assert env.spec.max_episode_steps == 5
    assert env_spec(env).action_high == (2.0,)


def test_wrappers_go_innermost_first(module):
    plain = make_env("Pendulum-v1")
    wrapped = make_env("Pendulum-v1", {}, (f"{module}:AddTen", f"{module}:Double"))
    for env in (plain, wrapped):
        env.reset(seed=0)
    action = np.zeros(1, np.float32)
    assert wrapped.step(action)[1] == pytest.approx(2 * (plain.step(action)[1] + 10))


def test_gymnasium_wrappers_can_be_named():
    assert isinstance(make_env("Pendulum-v1", {}, ("gymnasium.wrappers:FlattenObservation",)), gym.Wrapper)


@pytest.mark.parametrize("path", ["absent_module:Wrapper", "gymnasium.wrappers:Absent", "gymnasium.wrappers", ""])
def test_wrong_wrapper_is_named(path):
    with pytest.raises(DeeprlError, match=rf"^wrapper '{path}': expected module:name; "):
        make_env("Pendulum-v1", {}, (path,))


def test_wrong_module_is_named():
    with pytest.raises(DeeprlError, match=r"^absent_module:Id-v0: .*absent_module"):
        make_env("absent_module:Id-v0")


def test_unknown_id_in_a_module_is_named(module):
    with pytest.raises(DeeprlError, match="unknown environment"):
        make_env(f"{module}:Absent-v0")


def test_load_object_gives_the_object():
    assert load_object("deeprl.errors:DeeprlError", "net") is DeeprlError


def test_factory_is_picklable():
    made = pickle.loads(pickle.dumps(PENDULUM))()
    assert made.spec.max_episode_steps == 12


@pytest.mark.parametrize("which", [0, 1])
def test_killed_worker_is_named_and_the_other_one_ends(which):
    envs = PopulationEnvs(PENDULUM, [0, 1], backend="async")
    processes = envs.vector.processes
    processes[which].kill()
    processes[which].join()
    with pytest.raises(DeeprlError, match="the process of an environment was killed"):
        envs.step(np.zeros((2, 1, 1), np.float32))
    envs.close()
    assert [p.is_alive() for p in processes] == [False, False]
